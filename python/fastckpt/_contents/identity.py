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


def identity(path: str) -> Identity | None:
    """Return which file is at a path; None where there is none.

    Raises:
        OSError: That cannot be seen.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
