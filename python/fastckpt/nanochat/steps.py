"""Save one step: all the files of a rank, so that the step is there whole or not at all.

This is the one place that knows which files a step has and in which order they appear.
"""

import operator
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastckpt import _native
from fastckpt._archive import pickling, save
from fastckpt._steps.manifest import Manifest, ManifestFile
from fastckpt._steps.save_id import SaveMark, begin_save

from .discovery import StepPaths
from .log import logger
from .meta import encode_meta
from .replacing import keep_replaced, release_kept, release_unreplaced

_Path = str | os.PathLike[str]

# torch.save's default. Protocols other than 2 and 3 are refused by torch.load(weights_only=True).
_PICKLE_PROTOCOL = 2
# More than any manifest of one rank's files has.
_MANIFEST_NBYTES = 4096


def save_checkpoint(
    checkpoint_dir: _Path,
    step: int,
    model_data: object,
    optimizer_data: object,
    meta_data: object,
    rank: int = 0,
    *,
    world_size: int | None = None,
) -> None:
    """Save one rank's files of a step, as nanochat (92d63d4) does, durably and atomically.

    Rank 0 saves the model and the meta. Every rank whose `optimizer_data` is not None saves that as
    its shard. There is no collective and no waiting for other ranks: call it on all ranks, or on the
    master alone. The tensors may live on any device. They are not changed, and neither is any RNG.

    On return, this rank's files are on disk under their names: written, fsynced, renamed, and the
    directory fsynced. The step as a whole is durable once all ranks have returned; see
    `barrier_commit`.

    The archives of one save carry the same save id, so that a loader never takes parts of two saves for
    one. The ranks agree on the id through torch.distributed's store. Without a process group they cannot:
    rank 0 then makes an id for itself, and a shard of a rank above 0 carries none and does not count as
    part of the step. Rank 0 also writes `manifest_{step:06d}.json`, which ties the meta to the archives;
    a copy without it loads too.

    Shard, manifest and meta become visible first, and `model_*.pt` last, since that is the file by
    which a step is found. A crash before that leaves every other step as it was. If the step is there
    already, the replaced files stay under hidden names until the new save is whole on all ranks: a crash
    in between leaves the old save loadable.

    Args:
        checkpoint_dir: Directory of the run; created if it is missing.
        step: Number of the step; numpy integers work.
        model_data: State dict of the model; used on rank 0 only.
        optimizer_data: State dict of the optimizer, or None to save no optimizer state.
        meta_data: What JSON can express; used on rank 0 only. Infinity and NaN are accepted.
        rank: This process's rank.
        world_size: How many ranks save optimizer state; the step is whole when all have [default: the
            size of the process group, 1 without one]. Pass 1 if the master alone saves the state of
            all ranks, and pass 1 to `load_checkpoint` then, too. More than 1 needs a process group.

    Raises:
        TypeError: JSON cannot express `meta_data`. Nothing has been written.
        ValueError: `world_size` is above 1 and there is no process group, or it does not count this
            `rank`: no loader would take the shards for one step. Nothing has been written.
        OSError: Writing failed. The files that were there before are untouched. A lack of disk space is
            known before anything is written.
        CommitUnknownError: The last fsync failed: the files are there, but may not survive a power
            cut.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> save_checkpoint(
        ...     "runs/d12", 100, model.state_dict(), optimizer.state_dict(), {"step": 100}
        ... )
    """
    step = operator.index(step)
    saves_optimizer = optimizer_data is not None
    mark = begin_save(
        checkpoint_dir, step, rank, saves_optimizer=saves_optimizer, world_size=world_size
    )
    # Everything is encoded before anything is written: what cannot be saved must not cost a file.
    paths = StepPaths(checkpoint_dir, step)
    files = _RankFiles(paths, mark)
    if rank == 0:
        files.meta = encode_meta(meta_data)
        files.model = _archive(paths.model, "model parameters", model_data)
    if saves_optimizer:
        files.shard = _archive(paths.optimizer(rank), "optimizer state", optimizer_data)
    if files.model is None and files.shard is None:
        return
    with _native.Commit() as commit:
        _write(commit, files)
        _replace(commit, files)


@dataclass(frozen=True)
class _Archive:
    """A .pt file that is planned, but not written."""

    path: str
    contents: str
    pickled: pickling.Pickled


@dataclass
class _RankFiles:
    """The files of a step that one rank saves."""

    paths: StepPaths
    mark: SaveMark
    shard: _Archive | None = None
    meta: bytes | None = None
    model: _Archive | None = None

    def archives(self) -> Iterator[_Archive]:
        """Yield the archives in the order in which they are written."""
        yield from filter(None, (self.shard, self.model))

    def nbytes(self) -> int:
        """Return the size of all files together."""
        small = 0 if self.meta is None else len(self.meta) + _MANIFEST_NBYTES
        return small + sum(
            save.nbytes_of(archive.path, archive.pickled) for archive in self.archives()
        )


def _archive(path: str, contents: str, data: object) -> _Archive:
    return _Archive(path, contents, pickling.pickle_object(data, _PICKLE_PROTOCOL))


def _write(commit: _native.Commit, files: _RankFiles) -> None:
    """Write all files under temporary names, fsynced."""
    directory = os.fspath(files.paths.directory)
    commit.require_space(_existing(directory), files.nbytes())
    commit.create_directory(directory)
    mark = files.mark
    described = []
    for archive in files.archives():
        written = save.write_into(
            commit,
            archive.path,
            archive.pickled,
            shards=mark.shards,
            save_id=mark.save_id,
        )
        name = os.path.basename(archive.path)
        described.append(ManifestFile(name, written.nbytes, written.content_hash))
    if files.meta is not None:
        manifest = Manifest.of_meta(
            files.meta, mark.save_id, files.paths.step, mark.shards, described
        )
        commit.write_bytes(files.paths.manifest, manifest.encode())
        commit.write_bytes(files.paths.meta, files.meta)


def _replace(commit: _native.Commit, files: _RankFiles) -> None:
    """Make the files visible, the model last; what they replace stays until the step is whole."""
    paths = files.paths
    directory, step = os.fspath(paths.directory), paths.step
    logged = {archive.path: archive.contents for archive in files.archives()}
    first = [] if files.shard is None else [files.shard.path]
    if files.meta is not None:
        first += [paths.manifest, paths.meta]
        logged[paths.meta] = "metadata"
    last = [] if files.model is None else [files.model.path]
    names = [os.path.basename(path) for path in first + last]

    release_kept(commit, directory)
    try:
        keep_replaced(commit, directory, step, names, files.mark.save_id)
        _publish(commit, first, logged)
        _publish(commit, last, logged)
    except BaseException:
        release_unreplaced(commit, directory, step, names)
        raise
    release_kept(commit, directory)


def _publish(commit: _native.Commit, paths: Sequence[str], logged: dict[str, str]) -> None:
    """Make files visible together, then log each: a logged file survives a power cut."""
    if not paths:
        return
    commit.publish(paths)
    for path in paths:
        if path in logged:
            # Not log0: nanochat logs the shard of every rank, and the rest where `rank` is 0.
            logger.info(f"Saved {logged[path]} to: {path}")


def _existing(directory: str) -> str:
    """Return the directory, or its nearest parent that exists."""
    while not os.path.isdir(directory or "."):
        directory = os.path.dirname(directory)
    return directory or "."
