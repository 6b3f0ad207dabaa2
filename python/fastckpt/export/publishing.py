"""Publish files that other libraries write: they become visible when they are complete and durable."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from fastckpt._hard_links import NO_LINKS
from fastckpt._native import Commit
from fastckpt._stages import claimed, is_of_this_machine, is_stage, make_stage
from fastckpt.errors import CommitUnknownError


@contextmanager
def staging(directory: str) -> Iterator[str]:
    """Make a hidden directory in another one; it is removed when the block ends, with its contents.

    It is locked as long as its process lives. Hidden directories that dead processes left are removed here,
    but only those of this machine, since a lock says nothing about another machine.
    """
    directory = directory or os.curdir
    _remove_stale(directory)
    stage = make_stage(directory)
    try:
        yield stage.path
    finally:
        # A later export or `fastckpt gc` removes what cannot be removed now.
        with suppress(OSError):
            stage.remove()
        stage.close()


def publish(stage: str, directory: str, names: Sequence[str]) -> list[str]:
    """Move files out of the hidden directory, in this order; each is durable before the next one is visible.

    A single file replaces an older one. None of several files may exist yet: a reader could take new and old
    ones for one export.

    Returns:
        The paths.

    Raises:
        FileExistsError: One of several files exists.
        CommitUnknownError: A single file is in place, but its directory could not be made durable.
        OSError: A file could not be written; then none of several files is left.
    """
    paths = [os.path.join(directory, name) for name in names]
    if len(names) > 1:
        refuse_existing(paths)
    mode = _default_mode(stage)
    for name in names:
        _make_durable(os.path.join(stage, name), mode)
    if len(names) == 1:
        os.rename(os.path.join(stage, names[0]), paths[0])
        _sync_directory(directory or os.curdir, paths[0], is_only=True)
        return paths
    published: list[tuple[str, os.stat_result]] = []
    try:
        for name, path in zip(names, paths, strict=True):
            own = os.stat(os.path.join(stage, name))
            _rename_new(os.path.join(stage, name), path)
            published.append((path, own))
            _sync_directory(directory or os.curdir, path, is_only=False)
    except BaseException:
        for path, own in published:
            with suppress(OSError):
                if os.path.samestat(own, os.lstat(path)):
                    os.unlink(path)
        raise
    return paths


def _rename_new(source: str, path: str) -> None:
    """Move a file to a name that must be free; the hidden directory may keep a name of it."""
    try:
        os.link(source, path)
    except FileExistsError:
        refuse_existing([path])
        raise
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # Without hard links this takes two calls, and a file that appears between them is replaced.
        refuse_existing([path])
        os.rename(source, path)


def _sync_directory(directory: str, path: str, *, is_only: bool) -> None:
    try:
        Commit().sync_directory(directory)
    except OSError as error:
        if not is_only:
            raise
        # The file that it has replaced cannot be brought back.
        raise CommitUnknownError(
            error.errno or errno.EIO,
            f"the file is in place, but its directory could not be made durable ({error.strerror})",
            path,
        ) from error


def refuse_existing(paths: Sequence[str]) -> None:
    """Raise FileExistsError if one of the paths exists."""
    for path in paths:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "exists already, and would be mixed with", path)


def sizes(paths: Sequence[str]) -> int:
    """Return the total size of files in bytes."""
    return sum(os.stat(path).st_size for path in paths)


def _remove_stale(directory: str) -> None:
    for name in os.listdir(directory):
        if not (is_of_this_machine(name) and is_stage(directory, name)):
            continue
        path = os.path.join(directory, name)
        with claimed(path) as stage, suppress(OSError):
            if stage is not None:
                stage.remove()


def _default_mode(stage: str) -> int:
    """Return the mode of a new file here: safetensors makes files that others cannot read."""
    path = os.path.join(stage, ".mode")
    with open(path, "wb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    os.unlink(path)
    return mode


def _make_durable(path: str, mode: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fchmod(fd, mode)
        os.fsync(fd)
    except OSError as error:
        # An error of fsync does not have the name.
        error.filename = path
        raise
    finally:
        os.close(fd)
