"""Make files durable that another program may have written, before anything is deleted for them. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

from .removal import sync_directory


def make_durable(paths: Iterable[str]) -> None:
    """Flush files, and the names that they have, to the disk.

    What was read whole may be whole in memory only: cp and torch.save do not sync, and a save that was
    killed may not have synced the directory.

    Raises:
        OSError: A file could not be flushed. It may not be on the disk.
    """
    directories: set[str] = set()
    for path in paths:
        _sync_file(path)
        # If the path is a link to another directory, the file has its name there.
        directories |= {os.path.dirname(path), os.path.dirname(os.path.realpath(path))}
    for directory in sorted(directories):
        sync_directory(directory)


def _sync_file(path: str) -> None:
    doing = "opening the file"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            doing = "flushing the file to disk (fsync)"
            os.fsync(descriptor)
        finally:
            # Nothing was written here, so nothing is lost with what close may say.
            with suppress(OSError):
                os.close(descriptor)
    except OSError as error:
        error.strerror = f"{error.strerror}, while {doing}"
        error.filename = path
        raise
