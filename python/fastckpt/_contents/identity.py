"""Which file is at a path, as far as that can be seen without reading it."""

from __future__ import annotations

import os
from typing import NamedTuple


class Identity(NamedTuple):
    """Two names with the same of this lead to the same file, and it has not been written since."""

    device: int
    inode: int
    nbytes: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """Return what `stat` says."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def identity(path: str) -> Identity | None:
    """Return which file is at a path; None if there is no file.

    Raises:
        OSError: That cannot be seen.
    """
    try:
        return Identity.of(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


class Standing(NamedTuple):
    """What stands at a name.

    Attributes:
        name: The name itself: a file, or a symbolic link.
        file: The file that a symbolic link leads to, else the same; None where it leads nowhere.
    """

    name: Identity
    file: Identity | None

    @property
    def changed_ns(self) -> int:
        """When the name, or the file that it leads to, was last written, in nanoseconds."""
        return max(one.changed_ns for one in self if one is not None)


def standing(name: str, *, directory: int | None = None) -> Standing | None:
    """Return what stands at a name, in an open directory or at a path; None where nothing does.

    Raises:
        OSError: That cannot be seen.
    """
    try:
        own = Identity.of(os.stat(name, dir_fd=directory, follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return Standing(own, Identity.of(os.stat(name, dir_fd=directory)))
    except (FileNotFoundError, NotADirectoryError):
        return Standing(own, None)
