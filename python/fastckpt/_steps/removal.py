"""Remove the files of a checkpoint, in an order that never leaves it looking more whole than before.

The file without which no reader takes the rest for a checkpoint goes first, and is durably gone before
anything else is touched. Only what was judged is removed: each part is looked at once more, under the
directory's lock.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from fastckpt import _native
from fastckpt._contents.identity import Standing

from .held import HeldDirectory
from .manager_files import ManagerFiles, is_of_checkpoint, part_of_checkpoint
from .replaced import Judged, judged_names
from .survey import parse_kept_name

_CHANGED = "kept, since it was saved again meanwhile"
_LOCKED = "kept, since another process is saving or deleting here"


@dataclass(frozen=True)
class Going:
    """A checkpoint that is to be removed, as it was when that was decided.

    Attributes:
        directory: Where it is.
        first: Names of the files without which the rest is not a checkpoint.
        rest: Names of its other files, in the order of removal.
        judged: Which file had each of its names.
        part: What all names of the checkpoint, and few others, have in common.
        belongs: Says whether a name belongs to this checkpoint. If one does that was not judged, nothing is
            removed.
        relies_on: Files that must be unchanged, since the checkpoint is removed because they are good.
        what: What `first` is, for messages: "model".
    """

    directory: HeldDirectory
    first: Sequence[str]
    rest: Sequence[str]
    judged: Mapping[str, Standing]
    part: str
    belongs: Callable[[str], bool]
    relies_on: Mapping[str, Standing] = field(default_factory=dict)
    what: str = "checkpoint"

    def problem(self, left: Sequence[str]) -> str | None:
        """Say why these names may not be removed now; None if they are as judged, or gone.

        Raises:
            OSError: A name cannot be looked at.
        """
        there = [name for name in self.directory.names(self.part) if self.belongs(name)]
        if not {*there} <= {*left}:
            return _CHANGED
        if any(self.directory.look(name) not in (None, self.judged.get(name)) for name in there):
            return _CHANGED
        for name, before in self.relies_on.items():
            if self.directory.look(name) != before:
                return f"kept, since {name}, which was verified, has changed meanwhile"
        return None


def orphans_going(
    directory: HeldDirectory, files: ManagerFiles, judged: Mapping[str, Standing]
) -> Going:
    """Return files of ranks whose checkpoint is gone, ready to be removed."""
    return Going(
        directory=directory,
        first=(),
        rest=files.rank_names(),
        judged=judged,
        part=part_of_checkpoint(files.step, files.epoch),
        belongs=partial(is_of_checkpoint, step=files.step, epoch=files.epoch),
    )


class Removal:
    """Removes files, counts the space that is freed, and records what went wrong.

    Attributes:
        errors: What could not be done: path and message.
        space: The space that the removed names took.
    """

    def __init__(self) -> None:
        self.errors: list[tuple[str, str]] = []
        self.space = Space()

    def fail(self, error: OSError, path: str) -> str:
        """Record an error; return its words."""
        words = error.strerror or str(error)
        self.errors.append((os.fsdecode(error.filename or path), words))
        return words

    def remove(self, going: Going, *, sync: bool = True) -> dict[str, str]:
        """Remove the files of a checkpoint; return why some are still there.

        Args:
            going: The checkpoint.
            sync: Whether the removal of the first files is made durable if nothing else is removed.

        Returns:
            The reasons by path; empty if everything is gone.
        """
        first, rest = list(going.first), list(going.rest)
        errors = self._remove(going, first, left=[*first, *rest]) if first else {}
        if errors:
            # While that is there, the rest is needed for it to be whole.
            kept = f"kept, since the {going.what} could not be removed"
            reason = next(iter(errors.values()))
            words = reason if reason.startswith("kept") else kept
            return {**errors, **_by_path(going, rest, words)}
        if not rest and not sync:
            return {}
        try:
            sync_directory(going.directory.path)
        except OSError as error:
            words = self.fail(error, going.directory.path)
            return _by_path(going, rest, f"kept, since the directory could not be synced: {words}")
        return self._remove(going, rest, left=rest)

    def _remove(self, going: Going, names: Sequence[str], *, left: Sequence[str]) -> dict[str, str]:
        """Remove names, if everything left of the checkpoint is as judged."""
        directory = going.directory
        with directory.locked() as is_locked:
            if not is_locked:
                self.errors.append((directory.path, _LOCKED))
                return _by_path(going, names, _LOCKED)
            try:
                problem = going.problem(left)
            except OSError as error:
                words = self.fail(error, directory.path)
                return _by_path(going, names, f"kept: {words}")
            if problem is not None:
                return _by_path(going, names, problem)
            return self._unlink(going, names)

    def _unlink(self, going: Going, names: Sequence[str]) -> dict[str, str]:
        errors = {}
        for name in names:
            path = os.path.join(going.directory.path, name)
            try:
                self._unlink_one(going, name)
            except FileNotFoundError:
                continue
            except OSError as error:
                errors[path] = self.fail(error, path)
        return errors

    def _unlink_one(self, going: Going, name: str) -> None:
        if parse_kept_name(name) is None:
            going.directory.unlink(name)
            return
        # It was compared a moment ago, with the lock held.
        for judged in judged_names(going.directory.path, [name]):
            _discard(going.directory.path, judged)

    def discard(self, directory: HeldDirectory, judged: Judged) -> str | None:
        """Remove the second name of a replaced file; return why it stays, None if it is gone."""
        path = os.path.join(directory.path, judged[0])
        try:
            # First, the names that replaced this one must be durable: they may be those of other ranks, which
            # have not come to their fsync yet.
            sync_directory(directory.path)
            with directory.locked() as is_locked:
                if not is_locked:
                    self.errors.append((directory.path, _LOCKED))
                    return _LOCKED
                _discard(directory.path, judged)
        except OSError as error:
            return self.fail(error, path)
        return None


def _discard(directory: str, judged: Judged) -> None:
    # It may be a link to a file that is kept beside the target of another link.
    with _native.Commit() as commit:
        commit.discard(directory, [judged], after_sync=False)


def _by_path(going: Going, names: Sequence[str], words: str) -> dict[str, str]:
    return {os.path.join(going.directory.path, name): words for name in names}


class Space:
    """The disk space that removed names free: a file with another name elsewhere frees none."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[tuple[int, int], int, int]] = {}
        self._counted: Counter[tuple[int, int]] = Counter()

    def look(self, path: str) -> int:
        """Return the size of a file; the first look must come before it is removed."""
        if path in self._files:
            return self._files[path][1]
        try:
            status = _status(path)
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
        """Return the size of the files all of whose names are gone."""
        sizes: dict[tuple[int, int], int] = {}
        # A name that was looked at after another was removed has the lower count.
        names: Counter[tuple[int, int]] = Counter()
        for key, nbytes, links in self._files.values():
            sizes[key] = nbytes
            names[key] = max(names[key], links)
        return sum(sizes[key] for key, gone in self._counted.items() if gone >= names[key])


def _status(path: str) -> os.stat_result:
    if parse_kept_name(os.path.basename(path)) is not None:
        # If it is a link, the file that it leads to is removed with it.
        return os.stat(path)
    return os.lstat(path)


def sync_directory(path: str) -> None:
    """Make all that has happened in a directory durable."""
    with _native.Commit() as commit:
        commit.sync_directory(path)
