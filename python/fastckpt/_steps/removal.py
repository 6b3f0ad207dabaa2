"""Remove the files of a checkpoint, in an order that never leaves what looks more whole than before.

The file without which the rest is no checkpoint to any reader goes first, and is durably gone before
anything else is touched. Nothing goes that is not what was judged: each part is looked at once more, under the
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
    """A checkpoint that goes, as it was when that was decided.

    Attributes:
        directory: Where it is.
        first: Names of the files without which the rest is no checkpoint.
        rest: Names of its other files, in the order of removal.
        judged: What stood at its names.
        part: What all names of the checkpoint have in them, and few others.
        belongs: Says of a name whether it is of this checkpoint: where a name is that was not judged,
            nothing goes.
        relies_on: What has to stay as it is, since the checkpoint goes on its account.
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
        """Say why these names may not go now; None if they are what was judged, or gone.

        Raises:
            OSError: That cannot be seen.
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
    """Return files of ranks whose checkpoint is gone, for the case that they go."""
    return Going(
        directory=directory,
        first=(),
        rest=files.rank_names(),
        judged=judged,
        part=part_of_checkpoint(files.step, files.epoch),
        belongs=partial(is_of_checkpoint, step=files.step, epoch=files.epoch),
    )


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

    def remove(self, going: Going, *, sync: bool = True) -> dict[str, str]:
        """Remove the files of a checkpoint; return why what is still there is.

        Args:
            going: The checkpoint.
            sync: Whether the removal of the first files is made durable where nothing else goes.

        Returns:
            By path; empty where all is gone.
        """
        first, rest = list(going.first), list(going.rest)
        errors = self._remove(going, first, left=[*first, *rest]) if first else {}
        if errors:
            # With that there, the rest is what makes it whole.
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
        """Remove names, if all that is left of the checkpoint is what was judged."""
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
            # First of all the names that replaced this one have to be durable: they may be those of other
            # ranks, which have not come to their fsync yet.
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
    # It may be a link to a file that was kept beside the target of another link.
    with _native.Commit() as commit:
        commit.discard(directory, [judged], after_sync=False)


def _by_path(going: Going, names: Sequence[str], words: str) -> dict[str, str]:
    return {os.path.join(going.directory.path, name): words for name in names}


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
        """Size of the files all of whose names are gone."""
        sizes: dict[tuple[int, int], int] = {}
        # A name that was looked at after another had gone has the lower count.
        names: Counter[tuple[int, int]] = Counter()
        for key, nbytes, links in self._files.values():
            sizes[key] = nbytes
            names[key] = max(names[key], links)
        return sum(sizes[key] for key, gone in self._counted.items() if gone >= names[key])


def _status(path: str) -> os.stat_result:
    if parse_kept_name(os.path.basename(path)) is not None:
        # Removed with the file that it leads to, where it is a link.
        return os.stat(path)
    return os.lstat(path)


def sync_directory(path: str) -> None:
    """Make all that has happened in a directory durable."""
    with _native.Commit() as commit:
        commit.sync_directory(path)
