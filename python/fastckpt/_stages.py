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


def make_stage(directory: str) -> tuple[str, int]:
    """Make a stage; return its path, and the descriptor that holds its lock until it is closed."""
    while True:
        path = tempfile.mkdtemp(prefix=f"{_PREFIX}{_machine()}-", dir=directory)
        # Until it is locked, somebody who looks for stale ones may take this for one.
        with suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.path.exists(path):
                return path, fd
            os.close(fd)


@contextmanager
def claimed(path: str) -> Iterator[bool]:
    """Lock a stage whose owner is dead while the block runs; yields whether it is one.

    It is not where its owner lives, or cannot be told: the stage may not be opened, or not be locked.
    """
    fd = None
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd is not None and _can_lock(fd)
    finally:
        if fd is not None:
            os.close(fd)


def _can_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def files_in(path: str) -> list[str]:
    """Return the paths of the files in a stage, sorted; none for what cannot be listed."""
    return sorted(os.path.join(at, name) for at, _, names in os.walk(path) for name in names)


def remove_stage(path: str) -> None:
    """Remove a stage that is claimed; what somebody else has removed is no error.

    Raises:
        OSError: Something in it could not be removed; the rest of it may be gone.
    """
    with suppress(FileNotFoundError):
        shutil.rmtree(path)


def _machine() -> str:
    """Return what is the same for all processes whose locks are seen here: until it is started anew."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip().partition("-")[0]
