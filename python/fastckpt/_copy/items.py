"""Copy the files of one checkpoint so that they become a checkpoint together. Imports no torch."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

from fastckpt import _native
from fastckpt._contents.identity import Identity, identity
from fastckpt._hard_links import NO_LINKS
from fastckpt._steps.checkpoint_names import BEST_NAME
from fastckpt._steps.durable import make_durable
from fastckpt._steps.held import HeldDirectory
from fastckpt._steps.manager_files import survey_manager
from fastckpt.errors import IncompleteCheckpointError

from .files import FileCopier
from .report import CopiedCheckpoint, CopiedFile, Outcome
from .sources import CheckpointItem, Item, Piece

# A source that is saved again while it is copied is copied again; one that never rests is given up.
_ATTEMPTS = 3


def copy_item(item: Item, copier: FileCopier) -> CopiedCheckpoint:
    """Copy the files of a checkpoint.

    Raises:
        IncompleteCheckpointError: It is not whole, or changes all the time.
        CheckpointError: A file is damaged in a way that shows before it is read in full.
        OSError: A file cannot be read or written. What is there of it by then stays for another
            attempt; readers do not take it for a checkpoint.
    """
    for _ in range(_ATTEMPTS):
        result = _ItemCopy.begin(item, copier).run()
        if result is not None:
            return result
    raise IncompleteCheckpointError(
        f"{item.name} is being saved: its files change while they are copied; copy it again later"
    )


class _ItemCopy:
    """One attempt."""

    def __init__(
        self, item: Item, copier: FileCopier, pieces: list[Piece], identities: list[object]
    ) -> None:
        self._item = item
        self._copier = copier
        self._pieces = pieces
        self._identities = identities
        self._done: dict[str, CopiedFile] = {}
        # What stands at the destination for each of these: what was found there, or was published.
        self._files: dict[str, Identity] = {}
        self._published: list[str] = []

    @classmethod
    def begin(cls, item: Item, copier: FileCopier) -> _ItemCopy:
        """Look at the item's files as they are now; for the errors see `Item.pieces`."""
        pieces = item.pieces()
        return cls(item, copier, pieces, _identities(pieces))

    def run(self) -> CopiedCheckpoint | None:
        """Copy it; None where the source changed meanwhile, and nothing of it was left."""
        foreign = self._foreign_names()
        if foreign:
            names = ", ".join(foreign)
            words = f"the destination has files of this step that the source does not have: {names}"
            return self._result(Outcome.CONFLICT, words)
        for piece in self._pieces:
            before = identity(self._copier.target(piece))
            found = self._copier.compare(piece)
            if found is not None:
                self._done[piece.name] = found
            if found is not None and before is not None:
                self._files[piece.name] = before
        if any(file.outcome is Outcome.CONFLICT for file in self._done.values()):
            return self._result(Outcome.CONFLICT)
        # Whoever has put them there may not have come to sync them: cp never does.
        make_durable(file.path for file in self._done.values())
        if len(self._done) == len(self._pieces):
            return self._result(Outcome.PRESENT)
        with _native.Commit() as commit:
            return self._copy_missing(commit)

    def _foreign_names(self) -> list[str]:
        names = {piece.name for piece in self._pieces}
        return sorted({*self._item.foreign_names(self._copier.to)} - names)

    def _copy_missing(self, commit: _native.Commit) -> CopiedCheckpoint | None:
        for piece in self._pieces:
            if piece.name in self._done:
                continue
            copied = self._copier.copy(commit, piece)
            self._done[piece.name] = copied
            if copied.outcome is Outcome.DAMAGED:
                self._undo()
                return self._result(Outcome.DAMAGED)
            # The last one makes a checkpoint of them all: they have to be of one save.
            if piece is self._pieces[-1] and self._has_changed():
                self._undo()
                return None
            if not self._publish(commit, piece):
                return None
        return self._result(Outcome.COPIED)

    def _publish(self, commit: _native.Commit, piece: Piece) -> bool:
        """Make a file visible; False where others have been at work there, so that it has to be looked at again."""
        target = self._copier.target(piece)
        others = [name for name in self._files if piece is self._pieces[-1]]
        own = identity(commit.temporary_path(target))
        try:
            # At once, so that what has been copied need not be copied again after a crash. It makes the
            # directory durable, too: the model comes after all that belongs to it.
            commit.publish(
                [target],
                replace=False,
                # The last one makes a checkpoint of them all: they have to be there still.
                unchanged=[(self._path(name), self._files[name]) for name in others],
            )
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno == errno.ESTALE:
                return False
            raise
        if own is not None:
            self._files[piece.name] = own
            self._published.append(piece.name)
        return True

    def _path(self, name: str) -> str:
        return os.path.join(self._copier.to, name)

    def _has_changed(self) -> bool:
        """Whether the source has changed since its files were opened: another save, say."""
        now = self._item.pieces()
        return now != self._pieces or _identities(now) != self._identities

    def _undo(self) -> None:
        """Remove what this attempt has published: without the last file it is not a checkpoint.

        With it, somebody else has made one of them: then they stay. Under the directory's lock, since another
        copy that comes to its last file looks whether the others are there.
        """
        held = HeldDirectory.open(self._copier.to)
        with closing(held), held.locked() as is_locked:
            if is_locked and held.look(self._pieces[-1].name) is None:
                for name in self._published:
                    there = held.look(name)
                    own = held.comparable(self._files[name])
                    if there is not None and there.name == own:
                        held.unlink(name)
        for name, file in self._done.items():
            if file.outcome is Outcome.COPIED:
                self._done[name] = replace(file, outcome=Outcome.NOT_REACHED)
        self._published = []

    def _result(self, outcome: Outcome, message: str | None = None) -> CopiedCheckpoint:
        files = [
            self._done.get(piece.name)
            or CopiedFile(
                piece.source, self._copier.target(piece), piece.nbytes, Outcome.NOT_REACHED
            )
            for piece in self._pieces
        ]
        return CopiedCheckpoint(self._item.name, self._item.step, outcome, tuple(files), message)


def _identities(pieces: Sequence[Piece]) -> list[object]:
    return [identity(piece.source) for piece in pieces]


# The best one, which is a second name.


def linked_item(best: str, items: Sequence[Item]) -> CheckpointItem | None:
    """Return the checkpoint of which `best_model.pt` is a second name."""
    found = identity(best)
    for item in items:
        if found and isinstance(item, CheckpointItem) and identity(item.path) == found:
            return item
    return None


def link_best(best: str, item: CheckpointItem, to: str) -> CopiedFile | None:
    """Give a copied checkpoint its second name.

    Returns:
        The file; None where the destination has no second names, or another file has this one.

    Raises:
        OSError: The destination refuses.
    """
    own = os.path.join(to, os.path.basename(item.path))
    target = os.path.join(to, BEST_NAME)
    file = CopiedFile(best, target, os.stat(own).st_size, Outcome.LINKED)
    try:
        # Fails where there is something already.
        os.link(own, target)
    except FileExistsError:
        return file if _take_over(own, target, to) else None
    except OSError as error:
        if error.errno in NO_LINKS:
            return None
        raise
    with _native.Commit() as commit:
        commit.sync_directory(to)
    return file


def _take_over(own: str, target: str, to: str) -> bool:
    """Make a name that is taken a second name of a checkpoint, if nothing is lost with it."""
    if os.path.samefile(own, target):
        make_durable([target])
        return True
    held = HeldDirectory.open(to)
    with closing(held), held.locked() as is_locked, _native.Commit(sync=False) as commit:
        if not is_locked or not _is_second_name(target, to):
            return False
        if not commit.link(own, BEST_NAME):
            return False
    with _native.Commit() as commit:
        commit.sync_directory(to)
    return True


def _is_second_name(path: str, directory: str) -> bool:
    """Whether a checkpoint of the directory is the same file, so that nothing is lost with this name."""
    checkpoints, _ = survey_manager(directory)
    names = [files.name for files in checkpoints if files.name is not None]
    found = identity(path)
    return found is not None and any(
        identity(os.path.join(directory, name)) == found for name in names
    )
