"""The hidden directories in which an export writes until its files are whole. Imports no torch.

A stage is locked as long as the process that made it lives. As for temporary files, the lock tells a live
owner from a dead one, and age does not.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Hidden, and not the name of a checkpoint in any program's eyes.
_PREFIX = ".fastckpt-export-"
# The machine, and what `tempfile.mkdtemp` adds. Other names are somebody else's.
_NAME = re.compile(r"\.fastckpt-export-[0-9a-f]{8}-[a-z0-9_]{8}", re.ASCII)


def is_stage(directory: str, name: str) -> bool:
    """Whether what has this name is a stage, of a live process or a dead one."""
    path = os.path.join(directory, name)
    return bool(_NAME.fullmatch(name)) and os.path.isdir(path) and not os.path.islink(path)


def is_of_this_machine(name: str) -> bool:
    """Whether a stage was made since this machine was started, so that the lock of its owner is seen here."""
    return name.startswith(f"{_PREFIX}{_machine()}-")


class Stage:
    """A stage that is locked by this process, which made it or found its owner dead.

    Both it and the directory that it is in are held open, so that what is removed is this one, whatever the
    path leads to by then.

    Attributes:
        path: Where it is.
    """

    def __init__(self, path: str, parent: int, fd: int) -> None:
        self.path = path
        self._parent = parent
        self._fd = fd

    def remove(self) -> None:
        """Remove it with all that is in it; what somebody else has removed is no error.

        Raises:
            OSError: Something in it could not be removed; the rest of it may be gone.
        """
        try:
            with os.scandir(self._fd) as entries:
                found = list(entries)
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(f"/proc/self/fd/{self._fd}/{entry.name}")
                else:
                    os.unlink(entry.name, dir_fd=self._fd)
            if self.is_there():
                os.rmdir(os.path.basename(self.path), dir_fd=self._parent)
        except FileNotFoundError:
            return
        except OSError as error:
            error.filename = self.path
            raise

    def is_there(self) -> bool:
        """Whether its name still leads to it."""
        name = os.path.basename(self.path)
        try:
            found = os.stat(name, dir_fd=self._parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(self._fd))

    def close(self) -> None:
        """Give up the lock."""
        for fd in (self._fd, self._parent):
            # Nothing was written to them, so nothing is lost with what close may say.
            with suppress(OSError):
                os.close(fd)


def make_stage(directory: str) -> Stage:
    """Make a stage, locked until it is closed."""
    while True:
        path = tempfile.mkdtemp(prefix=f"{_PREFIX}{_machine()}-", dir=directory)
        # Until it is locked, somebody who looks for stale ones may take this for one.
        stage = _open_locked(path, needs_lock=False)
        if stage is not None:
            return stage


@contextmanager
def claimed(path: str) -> Iterator[Stage | None]:
    """Lock a stage whose owner is dead while the block runs.

    Yields:
        The stage; None where its owner lives, or that cannot be told: it may not be opened, or not be locked.
    """
    stage = None
    with suppress(OSError):
        stage = _open_locked(path, needs_lock=True)
    try:
        yield stage
    finally:
        if stage is not None:
            stage.close()


def _open_locked(path: str, *, needs_lock: bool) -> Stage | None:
    """Open a stage and lock it, without waiting; None where somebody else has it, or has removed it.

    Args:
        path: Where it is.
        needs_lock: Whether one that cannot be locked, on a network file system say, is an error.

    Raises:
        OSError: It cannot be opened, or not be locked.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    parent = os.open(os.path.dirname(path) or os.curdir, flags)
    name = os.path.basename(path)
    try:
        fd = os.open(name, flags | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        os.close(parent)
        if isinstance(error, FileNotFoundError):
            return None
        raise
    stage = Stage(path, parent, fd)
    try:
        if not _lock(fd, needs_lock=needs_lock) or not stage.is_there():
            stage.close()
            return None
    except BaseException:
        stage.close()
        raise
    return stage


def _lock(fd: int, *, needs_lock: bool) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        if needs_lock:
            raise
    return True


def files_in(path: str) -> list[str]:
    """Return the paths of the files in a stage, sorted; none for what cannot be listed."""
    return sorted(os.path.join(at, name) for at, _, names in os.walk(path) for name in names)


def _machine() -> str:
    """Return what is the same for all processes whose locks are seen here: until it is started anew."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip().partition("-")[0]
