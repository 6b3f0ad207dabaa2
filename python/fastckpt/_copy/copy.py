"""Copy checkpoints to another disk or machine, each byte verified on the way. Imports no torch."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable

from fastckpt import _native
from fastckpt._arguments import checked_steps, checked_threads, one_path, output_path
from fastckpt.errors import CheckpointError

from .files import FileCopier, Progress
from .items import copy_item, link_best, linked_item
from .report import CopiedCheckpoint, CopiedFile, CopyReport, Outcome
from .sources import CheckpointItem, FileItem, Item, Selection, select

__all__ = ["CopiedCheckpoint", "CopiedFile", "CopyReport", "Outcome", "copy_checkpoint"]

_Path = str | os.PathLike[str]

# Names that end so are names of files, whatever the source is called.
_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
# After these, a destination takes nothing more.
_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def copy_checkpoint(
    source: _Path,
    output: _Path | None = None,
    *,
    to: _Path | None = None,
    steps: Iterable[int] = (),
    newest: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CopyReport:
    """Copy checkpoints byte for byte, and verify them on the way.

    Each file is read once: the bytes that are written are the very bytes whose checksums were
    compared. Modes and modification times are kept; the owner is whoever copies.

    The shards of a step come first, then manifest and meta, then the model. Each file is fsynced before it
    gets its name, and the directory before the model does. So readers see the copy as a step only once all
    of it is there, and it is durable when this returns. A crash leaves at most files that belong to no step.
    The same call resumes from there: what is whole at the destination already is verified and not copied
    again. A file that was under way starts from its beginning.

    Where a file is damaged, nothing of its step stays at the destination, and the other steps are still
    copied. A different file at the destination is never overwritten.

    Args:
        source: A directory with nanochat's steps (all that are whole are copied) or with a
            CheckpointManager's checkpoints, a step in such a directory (``"runs/d12@1200"``), or one
            .pt file.
        output: The directory to copy to; it is created if it is missing. One .pt file may be copied to a
            new name: where `output` has a suffix of checkpoints (.pt, .pth, .ckpt, .bin) or that of the
            source, and is not a directory, it is the name of the copy.
        to: Another name of `output`.
        steps: Which steps of the directory; empty means all.
        newest: Copy the newest step that is whole.
        threads: Number of threads for each file; None chooses.
        progress: Called with bytes done and bytes in all. What it raises ends the copy.

    Returns:
        The report, which is true if all of it is at the destination: `.checkpoints`, `.files`, `.status`,
        `.exit_code`. What is damaged, or in the way, is in the report and not raised.

    Raises:
        ValueError: The arguments contradict each other, or source and destination are the same.
        TypeError: The destination is missing, or an argument is not a path.
        FileNotFoundError: The source does not exist.
        OSError: The destination cannot be created, or there is not enough space.

    Example:
        >>> import fastckpt, os, tempfile
        >>> fastckpt.save({"n": 1}, "example.pt")
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     report = fastckpt.copy_checkpoint("example.pt", directory)
        ...     report.ok, os.listdir(directory)
        (True, ['example.pt'])
    """
    started = time.monotonic()
    threads = checked_threads(threads)
    path = one_path("source", source)
    target = output_path(output, to, 'copy_checkpoint("runs/d12", "archive/d12")')
    selection = select(path, checked_steps(steps), newest=newest)
    directory = _rename(selection, target)
    _refuse_itself(selection, directory)
    done = _Copy.plan(selection, directory, threads, progress).run() if selection.items else []
    missing = [
        CopiedCheckpoint(f"step {step}", step, Outcome.NOT_FOUND, message="no file of this step")
        for step in selection.missing
    ]
    return CopyReport(
        source=path,
        directory=selection.directory,
        to=target,
        checkpoints=(*done, *missing),
        others=tuple(selection.others),
        seconds=time.monotonic() - started,
    )


def _rename(selection: Selection, target: str) -> str:
    """Return the directory to copy to; what names a file gives its name to the copy of a file.

    As `cp` does: into a directory that is there, else to the name. A name without a suffix of checkpoints
    stands for a directory that is made, as it does for a step.
    """
    file = selection.items[0] if len(selection.items) == 1 else None
    if not isinstance(file, FileItem) or os.path.isdir(target) or target.endswith(os.sep):
        return target
    suffix = os.path.splitext(target)[1]
    if not suffix or suffix not in (*_SUFFIXES, os.path.splitext(file.path)[1]):
        return target
    directory, file.name = os.path.split(target)
    return directory or "."


def _refuse_itself(selection: Selection, directory: str) -> None:
    if not os.path.isdir(directory) or not os.path.samefile(selection.directory, directory):
        return
    file = selection.items[0] if len(selection.items) == 1 else None
    if isinstance(file, FileItem) and file.name != os.path.basename(file.path):
        return
    raise ValueError(f"{directory} is where the source is: name another directory")


class _Copy:
    """Copies what was selected, one checkpoint after the other."""

    def __init__(
        self,
        selection: Selection,
        linked: CheckpointItem | None,
        copier: FileCopier,
        new_nbytes: int,
    ) -> None:
        self._selection = selection
        self._linked = linked
        self._copier = copier
        self._to = copier.to
        self._new_nbytes = new_nbytes
        self._is_full = False

    @classmethod
    def plan(
        cls,
        selection: Selection,
        to: str,
        threads: int | None,
        progress: Callable[[int, int], None] | None,
    ) -> _Copy:
        """Look at what was selected: how much there is to read, and how much of it is new."""
        linked = None if selection.best is None else linked_item(selection.best, selection.items)
        items = [*selection.items]
        if selection.best is not None and linked is None:
            items.append(FileItem(selection.best))
        sizes = [size for item in items for size in _sizes(item)]
        copier = FileCopier(to, threads, Progress(progress, sum(n for _, n in sizes)))
        new = [nbytes for name, nbytes in sizes if not os.path.lexists(os.path.join(to, name))]
        return cls(selection, linked, copier, sum(new))

    def run(self) -> list[CopiedCheckpoint]:
        """Copy all of it.

        Raises:
            OSError: The destination cannot be created, or has no room for it all.
        """
        with _native.Commit() as commit:
            commit.create_directory(self._to)
            commit.require_space(self._to, self._new_nbytes)
        done = [self._copy(item) for item in self._selection.items]
        if self._selection.best is not None:
            done.append(self._copy_best(self._selection.best, done))
        return done

    def _copy(self, item: Item) -> CopiedCheckpoint:
        if self._is_full:
            words = "the destination takes no more"
            return CopiedCheckpoint(item.name, item.step, Outcome.NOT_REACHED, message=words)
        try:
            return copy_item(item, self._copier)
        except FileNotFoundError as error:
            # IncompleteCheckpointError is one too.
            outcome = Outcome.INCOMPLETE if item.asked else Outcome.SKIPPED
            message = str(error)
        except CheckpointError as error:
            outcome, message = Outcome.DAMAGED, str(error)
        except OSError as error:
            self._is_full = error.errno in _FATAL
            outcome, message = Outcome.IO_ERROR, str(error)
        return CopiedCheckpoint(item.name, item.step, outcome, message=message)

    def _copy_best(self, best: str, done: list[CopiedCheckpoint]) -> CopiedCheckpoint:
        if self._linked is not None:
            copied = done[self._selection.items.index(self._linked)]
            if copied.outcome not in {Outcome.COPIED, Outcome.PRESENT}:
                words = f"it is a second name of {self._linked.name}, which was not copied"
                outcome = Outcome.NOT_REACHED
                return CopiedCheckpoint(os.path.basename(best), None, outcome, message=words)
            try:
                file = link_best(best, self._linked, self._to)
            except OSError as error:
                outcome, words = Outcome.IO_ERROR, str(error)
                return CopiedCheckpoint(os.path.basename(best), None, outcome, message=words)
            if file is not None:
                return CopiedCheckpoint(os.path.basename(best), None, Outcome.LINKED, (file,))
        return self._copy(FileItem(best))


def _sizes(item: Item) -> list[tuple[str, int]]:
    """Return names and sizes of an item's files; none where it will be refused."""
    try:
        return [(piece.name, piece.nbytes) for piece in item.pieces()]
    except (CheckpointError, OSError):
        return []
