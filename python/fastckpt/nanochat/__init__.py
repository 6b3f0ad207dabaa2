"""nanochat's checkpoint functions over fastckpt: same files, same objects, every byte checked.

Matches `nanochat.checkpoint_manager` as of nanochat 92d63d4 (July 2026): names, positional
order, defaults, file names, returned values, log lines and exceptions. A training script changes
its import and nothing else:

    from fastckpt import save_checkpoint, load_checkpoint

`find_last_good_step` and `barrier_commit` are additions: which step is whole on every rank, and
waiting until it is.

One checkpoint is the files of one step in one directory: `model_000100.pt`, `meta_000100.json`
and, for each rank that saved an optimizer, `optim_000100_rank0.pt`. Saving, loading and finding
work where nanochat is not installed; only `build_model` and what calls it want nanochat's classes,
and take others in their place.
"""

from .barrier import barrier_commit
from .discovery import find_largest_model, find_last_step
from .loading import find_last_good_step, load_checkpoint
from .model import build_model, load_model, load_model_from_dir, load_optimizer_state
from .steps import save_checkpoint

__all__ = [
    "barrier_commit",
    "build_model",
    "find_largest_model",
    "find_last_good_step",
    "find_last_step",
    "load_checkpoint",
    "load_model",
    "load_model_from_dir",
    "load_optimizer_state",
    "save_checkpoint",
]
