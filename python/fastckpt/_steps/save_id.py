"""Agree on the save id of a step: one number that all ranks write into their files of one save.

There is no collective and no waiting: the first rank that asks puts its proposal into the store of
torch.distributed, and the others find it there. The directory's name, the step, and how often this process
has saved that step say which save of which step a rank means.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed

# The serialization id has room for fourteen digits; 0 means that there is no save id.
_SAVE_ID_END = 10**14

_Path = str | os.PathLike[str]


@dataclass(frozen=True)
class SaveMark:
    """What all archives of one save carry.

    Attributes:
        save_id: The number; 0 if this rank cannot know the one of the others.
        shards: Number of optimizer shards in the step.
    """

    save_id: int
    shards: int


_lock = threading.Lock()
# How often this process has begun to save a step, by directory name and step.
_saves_begun: Counter[tuple[str, int]] = Counter()
_override: SaveMark | None = None


def begin_save(
    checkpoint_dir: _Path, step: int, rank: int, *, saves_optimizer: bool, world_size: int | None
) -> SaveMark:
    """Return the mark of the save that this rank begins now.

    Every call counts, also one of a rank that has nothing to write: the counts are what keeps the
    ranks together when a step is saved again.

    Raises:
        ValueError: The ranks cannot agree on an id, or the step would not count the shard of this rank.
    """
    store = default_store()
    if world_size is None and store is not None:
        world_size = torch.distributed.get_world_size()
    if saves_optimizer and _override is None:
        _require_counted(rank, world_size)
        _require_agreement(world_size, has_group=store is not None)
    key = _count_save(checkpoint_dir, step)
    if _override is not None:
        return SaveMark(_override.save_id, _override.shards if saves_optimizer else 0)
    shards = (world_size or 1) if saves_optimizer else 0
    if rank > 0 and (store is None or not saves_optimizer):
        # Without a process group the ranks cannot agree, and nobody asks a rank without files.
        return SaveMark(0, 0)
    proposed = secrets.randbelow(_SAVE_ID_END - 1) + 1
    if store is None:
        return SaveMark(proposed, shards)
    # An empty expectation sets the value if there is none yet; what is there then is returned.
    agreed = store.compare_set(f"fastckpt/save_id/{key}", "", str(proposed))
    return SaveMark(int(agreed), shards)


def _require_counted(rank: int, world_size: int | None) -> None:
    """Refuse a rank whose shard the step would not count: the step would be whole without it."""
    if world_size is not None and world_size < 1:
        raise ValueError(f"world_size must be at least 1, not {world_size}")
    if rank < 0:
        raise ValueError(f"rank must be at least 0, not {rank}")
    if world_size is not None and rank >= world_size:
        counted = "rank 0" if world_size == 1 else f"ranks 0 to {world_size - 1}"
        raise ValueError(
            f"rank {rank} has optimizer state to save, but world_size={world_size} counts only {counted}"
        )


def _require_agreement(world_size: int | None, *, has_group: bool) -> None:
    """Refuse several ranks that cannot agree on an id: no loader would take their files for one save.

    Nothing that they know without talking to each other is different for each save: an id made of the
    directory and the step would be that of a later run too, and files of a save that is interrupted could
    then be taken together with those of the save that it was to replace.
    """
    if not has_group and world_size is not None and world_size > 1:
        raise ValueError(
            f"world_size={world_size} needs a process group, through which the ranks agree on the id of "
            "their save: call torch.distributed.init_process_group first (the gloo backend will do); where "
            "this process saves the optimizer state of all ranks, pass world_size=1"
        )


def current_save(checkpoint_dir: _Path, step: int) -> str:
    """Return the key of the save of a step that this process has begun last."""
    name = _directory_name(checkpoint_dir)
    with _lock:
        return f"{name}/{step}/{_saves_begun[name, step]}"


def default_store() -> Any:
    """Return the store of torch.distributed; None without a process group."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed.distributed_c10d._get_default_store()


@contextmanager
def agreed(save_id: int, world_size: int) -> Iterator[None]:
    """Save under an id that was agreed on by other means than torch.distributed.

    For custom launchers, and for one process that saves the parts of several ranks. Applies to all
    threads of the process.

    Args:
        save_id: 1 to 10^14 - 1, a new one for each save.
        world_size: Number of ranks that save optimizer state.
    """
    global _override
    if not 1 <= save_id < _SAVE_ID_END:
        raise ValueError(f"save_id must be 1 to {_SAVE_ID_END - 1}, not {save_id}")
    previous = _override
    _override = SaveMark(save_id, world_size)
    try:
        yield
    finally:
        _override = previous


def _count_save(checkpoint_dir: _Path, step: int) -> str:
    name = _directory_name(checkpoint_dir)
    with _lock:
        _saves_begun[name, step] += 1
        return f"{name}/{step}/{_saves_begun[name, step]}"


def _directory_name(checkpoint_dir: _Path) -> str:
    # The name alone: the path may differ from machine to machine.
    return os.path.basename(os.path.abspath(os.fsdecode(checkpoint_dir)))
