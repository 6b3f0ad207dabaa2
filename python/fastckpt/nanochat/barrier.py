"""Wait until the whole step is durable, for scripts whose ranks should continue together."""

import os
import time
from typing import Any

import torch.distributed

from fastckpt import _native
from fastckpt._steps.save_id import current_save, default_store
from fastckpt._steps.saves import read_save
from fastckpt.errors import IncompleteCheckpointError

from .replacing import release_kept

_Path = str | os.PathLike[str]

_POLL_SECS = 0.05
# How long rank 0 waits for the others to see that all are there. A rank that dies meanwhile has its part on
# the disk already.
_FAREWELL_SECS = 10.0


def barrier_commit(checkpoint_dir: _Path, step: int, *, timeout_secs: float = 1800.0) -> None:
    """Wait until every rank's part of a step is durable, and check that the step is whole.

    Call it on all ranks after `save_checkpoint`, which itself never waits. The ranks meet in
    torch.distributed's store: no collective runs and no device is touched, so a rank that died causes
    an error that names it, not a hang. Without a process group there is no rank to wait for, and the
    step is checked at once.

    Args:
        checkpoint_dir: As given to `save_checkpoint`.
        step: As given to `save_checkpoint`.
        timeout_secs: How long to wait for the other ranks, in seconds.

    Raises:
        IncompleteCheckpointError: A rank did not arrive in time, or the step is not whole.
        CheckpointError: As for `load_checkpoint`.

    Example:
        >>> import fastckpt, torch
        >>> model, optimizer = {"w": torch.ones(2)}, {"exp_avg": torch.zeros(2)}
        >>> fastckpt.save_checkpoint("runs/d12", 100, model, optimizer, {"step": 100}, rank=0)
        >>> barrier_commit("runs/d12", 100)  # from here on step 100 survives the loss of any rank
    """
    directory = os.fspath(checkpoint_dir)
    store = default_store()
    if store is not None:
        _meet(store, directory, step, timeout_secs)
    read_save(directory, step, optimizer=True)
    with _native.Commit() as commit:
        release_kept(commit, directory)


def _meet(store: Any, directory: str, step: int, timeout_secs: float) -> None:
    """Report that this rank has saved, and wait until all ranks have."""
    prefix = f"fastckpt/committed/{current_save(directory, step)}"
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    store.set(f"{prefix}/{rank}", "1")
    keys = [f"{prefix}/{other}" for other in range(world_size)]
    deadline = time.monotonic() + timeout_secs
    # Not store.wait: it logs each timeout.
    while not store.check(keys):
        if time.monotonic() >= deadline:
            absent = [str(other) for other, key in enumerate(keys) if not store.check([key])]
            message = (
                f"step {step} in {directory} may not be whole: no report that it was saved came from rank "
                f"{', '.join(absent)} within {timeout_secs:g} s"
            )
            raise IncompleteCheckpointError(message, path=directory)
        time.sleep(_POLL_SECS)
    # The store is mostly in the process of rank 0: if that ended now, the others could no longer see that
    # all are there.
    left = store.add(f"{prefix}/left", 1)
    deadline = time.monotonic() + _FAREWELL_SECS
    while rank == 0 and left < world_size and time.monotonic() < deadline:
        time.sleep(_POLL_SECS)
        left = store.add(f"{prefix}/left", 0)
