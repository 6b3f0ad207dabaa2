"""A directory that is held open, and its lock. Imports no torch.

Before checkpoints are deleted they are judged, which takes time: other processes save meanwhile. So they are
looked at again right before the deletion, in the directory that was opened (wherever its path leads by then),
and under a lock that savers share while they give files their names: between the second look and the deletion
no file appears.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import compress, repeat

from fastckpt import _native
from fastckpt._contents.identity import Identity, Standing, standing

# Savers hold the lock for some renames, which takes microseconds. A deletion waits no longer than this, and is
# then given up.
_PATIENCE_SECS = 1.0
_INTERVAL_SECS = 0.002
# The errors of a file system without locks, or without locks for directories.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.EBADF})


class HeldDirectory:
    """An open directory, from `open`; `contextlib.closing` closes it.

    Attributes:
        path: Where it was when it was opened.
    """

    def __init__(self, path: str, fd: int, *, has_numbers: bool) -> None:
        self.path = path
        self._fd = fd
        self._has_numbers = has_numbers

    @classmethod
    def open(cls, path: str) -> HeldDirectory:
        """Open a directory.

        Raises:
            OSError: It cannot be opened.
        """
        try:
            fd = os.open(path or os.curdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            error.strerror = f"{error.strerror}, while opening the directory"
            raise
        try:
            # Network and FUSE file systems may give a file another number once they have forgotten it.
            has_numbers = _native.is_local(path or os.curdir)
        except OSError:
            _let_go(fd)
            raise
        return cls(path, fd, has_numbers=has_numbers)

    def close(self) -> None:
        """Close the directory."""
        _let_go(self._fd)

    def names(self, part: str = "") -> list[str]:
        """List the names in it that contain `part`, in no order; there may be very many others."""
        with self._described("listing the directory"):
            names = os.listdir(self._fd)
        return list(compress(names, map(str.__contains__, names, repeat(part))))

    def look(self, name: str) -> Standing | None:
        """Return which file has a name in it; None if no file has."""
        with self._described("looking at the file", name):
            there = standing(name, directory=self._fd)
        if there is None:
            return None
        file = None if there.file is None else self.comparable(there.file)
        return Standing(self.comparable(there.name), file)

    def comparable(self, file: Identity) -> Identity:
        """Return what is compared of a file in it: without its number, if that says nothing here."""
        return file if self._has_numbers else file._replace(device=0, inode=0)

    def look_at(self, names: list[str]) -> dict[str, Standing]:
        """Return which file has each of these names; names without a file are left out."""
        found = {name: self.look(name) for name in names}
        return {name: there for name, there in found.items() if there is not None}

    def unlink(self, name: str) -> None:
        """Remove a name."""
        with self._described("deleting the file", name):
            os.unlink(name, dir_fd=self._fd)

    @contextmanager
    def _described(self, doing: str, name: str = "") -> Iterator[None]:
        """Make errors say what was being done, and to what: the calls know only a descriptor."""
        try:
            yield
        except OSError as error:
            error.strerror = f"{error.strerror}, while {doing}"
            error.filename = os.path.join(self.path, name) if name else self.path
            raise

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Have the directory's lock alone while the block runs; yields False if another process has it.

        Yields True also if directories have no locks here: then only the second look protects.
        """
        held = self._lock()
        try:
            yield held is not False
        finally:
            if held:
                # Explicitly: a process that was forked meanwhile has the directory open too.
                with suppress(OSError):
                    fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _lock(self) -> bool | None:
        """Take the lock; None if directories have no locks here."""
        end = time.monotonic() + _PATIENCE_SECS
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    return None
                if error.errno != errno.EWOULDBLOCK or time.monotonic() >= end:
                    return False
                time.sleep(_INTERVAL_SECS)
            else:
                return True


def _let_go(fd: int) -> None:
    # Nothing was written to it, so nothing is lost with what close may say.
    with suppress(OSError):
        os.close(fd)
