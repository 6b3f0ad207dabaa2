"""How much room files take, and what removing some of their names frees."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

# What a file is on the disk: device and inode.
_Key = tuple[int, int]


@dataclass
class Sizes:
    """Sizes of files, by what they are on the disk: a second name takes no room."""

    _files: dict[_Key, tuple[int, int]] = field(default_factory=dict)

    def key(self, path: str) -> _Key | None:
        """Look at a file; return what it is on the disk, None if it is not there any more."""
        try:
            status = os.stat(path)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ELOOP, errno.EACCES}:
                return None
            raise
        key = (status.st_dev, status.st_ino)
        self._files[key] = (status.st_size, status.st_nlink)
        return key

    def of(self, paths: Iterable[str]) -> int:
        """Return the size of some files, each on the disk counted once."""
        keys = {self.key(path) for path in paths}
        return sum(self._files[key][0] for key in keys if key is not None)

    def nbytes(self) -> int:
        """Return the size of all that were looked at."""
        return sum(nbytes for nbytes, _ in self._files.values())

    def freed_nbytes(self, paths: Iterable[str]) -> int:
        """Return what removing these names would free."""
        names: dict[_Key, set[str]] = {}
        for path in paths:
            # With a link goes the link alone.
            key = None if os.path.islink(path) else self.key(path)
            if key is not None:
                names.setdefault(key, set()).add(path)
        return sum(
            self._files[key][0] for key, gone in names.items() if len(gone) >= self._files[key][1]
        )

    def add(self, other: Sizes) -> None:
        """Take in what another has looked at."""
        self._files.update(other._files)
