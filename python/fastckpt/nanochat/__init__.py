"""The functions of `nanochat.checkpoint_manager` over fastckpt: same files, same objects, every byte checked.

Matches nanochat 92d63d4 (July 2026): names, positional order, defaults, file names, returned values,
log lines and exceptions. A training script changes its import and nothing else:

    from fastckpt import save_checkpoint, load_checkpoint

Two functions are additions: `find_last_good_step` finds a step that is whole on every rank, and
`barrier_commit` waits until one is. What differs from nanochat is listed in docs/coming_from.md.

One checkpoint is the files of one step in one directory: `model_000100.pt`, `meta_000100.json`
and, for each rank that saved an optimizer, `optim_000100_rank0.pt`. Saving, loading and finding
work where nanochat is not installed. Only `build_model` and its callers need the classes of nanochat,
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
