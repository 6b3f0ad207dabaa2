"""One file of a checkpoint: written durably, proven where that matters, then made visible."""

from __future__ import annotations

from fastckpt import _native
from fastckpt._archive.pickling import Pickled
from fastckpt._archive.save import nbytes_of, write_into
from fastckpt._steps.checkpoint_names import CheckpointName
from fastckpt._steps.save_id import SaveMark

from . import rotation
from .directory import CheckpointDirectory


def write_archive(
    directory: CheckpointDirectory,
    name: CheckpointName,
    pickled: Pickled,
    mark: SaveMark,
    *,
    proves: bool,
) -> None:
    """Write an archive durably, and make it visible once it is good.

    Args:
        directory: Where; created if it is not there.
        name: The checkpoint, or the file of one of its ranks.
        pickled: What is written.
        mark: The save that it belongs to.
        proves: Whether the file is read back and compared before it gets its name.

    Raises:
        ChecksumError: The disk does not return what was written; nothing was published.
        OSError: Writing failed; nothing was published.
        CommitUnknownError: The last fsync failed: the file is there, but may not survive a power cut.
    """
    path = directory.path_of(name)
    with _native.Commit() as commit:
        commit.create_directory(directory.path)
        commit.require_space(directory.path, nbytes_of(path, pickled))
        write_into(commit, path, pickled, shards=mark.shards, save_id=mark.save_id)
        if proves:
            rotation.prove_good(commit, path)
        commit.publish([path])
