"""The files of one step: writing them so that no crash leaves half a step in sight, reading them back.

This is the one place that knows which files a step has and in which order they appear.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from fastckpt import _load, _native, _pickling, _save
from fastckpt.errors import CheckpointError

from .discovery import StepPaths
from .log import logger
from .meta import encode_meta, read_meta
from .missing import check_presence, name_other_steps

_Path = str | os.PathLike[str]

# torch.save's default. Protocols other than 2 and 3 are refused by torch.load(weights_only=True).
_PICKLE_PROTOCOL = 2


def save_checkpoint(
    checkpoint_dir: _Path,
    step: int,
    model_data: object,
    optimizer_data: object,
    meta_data: object,
    rank: int = 0,
) -> None:
    """Save one rank's files of a step, as nanochat (92d63d4) does, durably and without half steps.

    Rank 0 saves the model and the meta; every rank whose `optimizer_data` is not None saves that as
    its shard. There is no collective and no waiting for other ranks: call it on all ranks, or on the
    master alone. The tensors may live on any device and are not changed; nor is any RNG.

    On return, this rank's files are on disk under their names: written, fsynced, renamed, and the
    directory fsynced. The shard and the meta are made visible first and `model_*.pt` last, since
    that is the file by which a step is found. A crash before that leaves every other step as it was
    and at most files that `find_last_step` does not see; one in the middle of overwriting a step
    leaves each of its files whole, but perhaps some of the new ones beside the old model.

    Args:
        checkpoint_dir: Directory of the run; made where it is missing.
        step: Number of the step; numpy integers work.
        model_data: State dict of the model; used on rank 0 only.
        optimizer_data: State dict of the optimizer, or None to save none.
        meta_data: What JSON can express; used on rank 0 only. Infinity and NaN are accepted.
        rank: This process's rank.

    Raises:
        TypeError: JSON cannot express `meta_data`. Nothing has been written then, nor where a state
            dict cannot be pickled.
        OSError: Writing failed. The files that were there before are untouched.

    Example:
        >>> save_checkpoint(
        ...     "runs/d12", 100, model.state_dict(), optimizer.state_dict(), {"step": 100}
        ... )
    """
    paths = StepPaths(checkpoint_dir, step)
    # All is encoded before anything is written: what cannot be saved must not cost a file.
    meta = _meta_file(paths.meta, meta_data) if rank == 0 else None
    model = _archive(paths.model, "model parameters", model_data) if rank == 0 else None
    shard = None
    if optimizer_data is not None:
        shard = _archive(paths.optimizer(rank), "optimizer state", optimizer_data)
    _write_step(checkpoint_dir, first=[shard, meta], last=[model])


@dataclass(frozen=True)
class _StepFile:
    """A file whose bytes are settled, but not written."""

    path: str
    contents: str
    write: Callable[[_native.Commit], object]


def _archive(path: str, contents: str, data: object) -> _StepFile:
    pickled = _pickling.pickle_object(data, _PICKLE_PROTOCOL)
    return _StepFile(path, contents, lambda commit: _save.write_into(commit, path, pickled))


def _meta_file(path: str, meta_data: object) -> _StepFile:
    encoded = encode_meta(meta_data)
    return _StepFile(path, "metadata", lambda commit: commit.write_bytes(path, encoded))


def _write_step(
    directory: _Path, *, first: Sequence[_StepFile | None], last: Sequence[_StepFile | None]
) -> None:
    """Write all files under temporary names, then make `first` visible and, when that is durable, `last`."""
    groups = [[file for file in group if file is not None] for group in (first, last)]
    if not any(groups):
        return
    with _native.Commit() as commit:
        commit.create_directory(directory)
        for file in chain(*groups):
            file.write(commit)
        for group in groups:
            _publish(commit, group)


def _publish(commit: _native.Commit, files: Sequence[_StepFile]) -> None:
    """Make files visible together, then log each: a logged file survives a power cut."""
    if not files:
        return
    commit.publish([file.path for file in files])
    for file in files:
        # Not log0: nanochat logs the shard of every rank, and the rest where `rank` is 0.
        logger.info(f"Saved {file.contents} to: {file.path}")


def load_checkpoint(
    checkpoint_dir: _Path,
    step: int,
    device: str | torch.device,
    load_optimizer: bool = False,
    rank: int = 0,
) -> tuple[Any, Any, Any]:
    """Load the files of a step, as nanochat (92d63d4) does, with every byte of them checked.

    The tensors lie in private memory of their own: they may be trained in place, and the files may be
    overwritten or removed. The RNG is not touched.

    Args:
        checkpoint_dir: Directory of the run.
        step: Number of the step; numpy integers work.
        device: Where the tensors go: "cpu", "cuda:0", "meta", or a torch.device.
        load_optimizer: Load the optimizer shard of `rank` too.
        rank: Whose optimizer shard.

    Returns:
        (model_data, optimizer_data, meta_data); optimizer_data is None unless `load_optimizer`.

    Raises:
        FileNotFoundError: A file is missing: the model, else the shard, else the meta. It is an
            IncompleteCheckpointError where other files of this step are there.
        ChecksumError: A tensor's bytes are not those that were written.
        FormatError: A file is not what its name says.
        UnsafePickleError: A file asks for more than torch.load(weights_only=True) allows.

    Example:
        >>> model_data, optimizer_data, meta = load_checkpoint(
        ...     "runs/d12", 100, "cpu", load_optimizer=True
        ... )
    """
    paths = StepPaths(checkpoint_dir, step)
    shard_path = paths.optimizer(rank) if load_optimizer else None
    # All files are looked for before the first is read, so that a missing one is known at once.
    check_presence(paths, rank if load_optimizer else None)
    try:
        model_data = load_file(paths.model, device)
        optimizer_data = None if shard_path is None else load_file(shard_path, device)
        return model_data, optimizer_data, read_meta(paths.meta)
    except CheckpointError as error:
        if len(error.args) == 1:  # The message alone: say where to go on from.
            error.args = (f"{error}; {name_other_steps(paths)}",)
        raise


def load_file(path: str, device: str | torch.device) -> Any:
    """Load one .pt file to a device; all that nanochat loads from disk comes through here."""
    return _load.load(path, map_location=device)
