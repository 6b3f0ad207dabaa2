"""Whether the shards of a step are for as many ranks as load it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial

import torch.distributed

from fastckpt._steps.save_id import default_store
from fastckpt.errors import StateMismatchError


def shards_check(
    directory: str, step: int, *, world_size: int | None, may_be_alone: bool
) -> Callable[[int], None]:
    """Return what refuses a number of shards that does not fit the ranks that load them.

    Shards are parts of one optimizer, cut for a number of ranks: one part alone is half an optimizer. The step
    is good, so the refusal is a StateMismatchError and not a CheckpointError: code that falls back to an older
    step after damage must not do so here.

    Args:
        directory: Where the step is, for the message.
        step: The step, for the message.
        world_size: How many shards the caller expects; None for as many as there are ranks.
        may_be_alone: Whether a process without a process group may load one shard of several.

    Raises:
        ValueError: `world_size` is below 1.
    """
    if world_size is not None:
        world_size = operator.index(world_size)
        if world_size < 1:
            raise ValueError(f"world_size must be at least 1, not {world_size}")
        return partial(_require_given, directory, step, world_size)
    return partial(_require_ranks, directory, step, may_be_alone)


def _require_given(directory: str, step: int, world_size: int, shards: int) -> None:
    # 0: a step without shards. What that means is said where one is looked for.
    if shards not in {0, world_size}:
        raise StateMismatchError(
            f"world_size={world_size} was given, but step {step} in {directory} has "
            f"{_counted(shards, 'optimizer shard')}: pass world_size={shards} to get a shard as it is"
        )


def _require_ranks(directory: str, step: int, may_be_alone: bool, shards: int) -> None:
    is_alone = default_store() is None
    ranks = 1 if is_alone else torch.distributed.get_world_size()
    if shards in {0, ranks} or (is_alone and may_be_alone):
        return
    resume = f"resume with {_counted(shards, 'rank')}"
    loading = f"this process group has {_counted(ranks, 'rank')}"
    if is_alone:
        loading = "1 process without a process group loads it"
        resume += " (call torch.distributed.init_process_group before loading)"
    raise StateMismatchError(
        f"step {step} in {directory} has {_counted(shards, 'optimizer shard')}, but {loading}: {resume}, or "
        f"pass world_size={shards} to get a shard as it is"
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
