"""Remove the files of a checkpoint, in an order that never leaves what looks more whole than before.

The file without which the rest is no checkpoint to any reader goes first, and is durably gone before
anything else is touched.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from fastckpt import _native


class Removal:
    """Removes files, counts the space that goes with them, and keeps what went wrong.

    Attributes:
        errors: What could not be done: path and message.
        space: The space that the removed names took.
    """

    def __init__(self) -> None:
        self.errors: list[tuple[str, str]] = []
        self.space = Space()

    def fail(self, error: OSError, path: str) -> str:
        """Note an error; return its words."""
        words = error.strerror or str(error)
        self.errors.append((os.fsdecode(error.filename or path), words))
        return words

    def unlink_in_order(
        self, directory: str, first: Sequence[str], rest: Sequence[str], *, what: str
    ) -> dict[str, str]:
        """Remove `first`, make that durable, then remove the rest; return why what is still there.

        Args:
            directory: Where the files are.
            first: What makes the rest a checkpoint.
            rest: The other files.
            what: What `first` is, for messages: "model".
        """
        errors = self._unlink(first)
        if errors:
            # With that there, the rest is what makes it whole.
            kept = f"kept, since the {what} could not be removed"
            return {**errors, **dict.fromkeys(rest, kept)}
        try:
            sync_directory(directory)
        except OSError as error:
            words = self.fail(error, directory)
            return dict.fromkeys(rest, f"kept, since the directory could not be synced: {words}")
        return self._unlink(rest)

    def _unlink(self, paths: Sequence[str]) -> dict[str, str]:
        errors = {}
        for path in paths:
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                errors[path] = self.fail(error, path)
        return errors


class Space:
    """The disk space that goes with names: a file with another name elsewhere keeps its own."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[tuple[int, int], int, int]] = {}
        self._counted: Counter[tuple[int, int]] = Counter()

    def look(self, path: str) -> int:
        """Return the size of a file; the first look has to come before it is removed."""
        if path in self._files:
            return self._files[path][1]
        try:
            status = os.lstat(path)
        except OSError:
            return 0
        key = (status.st_dev, status.st_ino)
        self._files[path] = (key, status.st_size, status.st_nlink)
        return status.st_size

    def count(self, path: str) -> None:
        """Count a name as gone."""
        if path in self._files:
            self._counted[self._files[path][0]] += 1

    def freed_nbytes(self) -> int:
        """Size of the files all of whose names are gone."""
        sizes: dict[tuple[int, int], int] = {}
        # A name that was looked at after another had gone has the lower count.
        names: Counter[tuple[int, int]] = Counter()
        for key, nbytes, links in self._files.values():
            sizes[key] = nbytes
            names[key] = max(names[key], links)
        return sum(sizes[key] for key, gone in self._counted.items() if gone >= names[key])


def sync_directory(path: str) -> None:
    """Make all that has happened in a directory durable."""
    with _native.Commit() as commit:
        commit.sync_directory(path)
