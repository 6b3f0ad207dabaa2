"""Remove what interrupted saves have left behind, and only that.

Four things are garbage: temporary files and hidden directories of exports whose owner is dead (a lock
tells, not their age), second names of replaced files that a newer, whole save has made useless, and,
where that is asked for, steps that can never be completed. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from contextlib import closing

from fastckpt import _native
from fastckpt._arguments import one_or_several_paths
from fastckpt._stages import claimed, files_in
from fastckpt._steps.held import HeldDirectory
from fastckpt._steps.left_behind import divide_temporaries
from fastckpt._steps.manager_files import group_by_checkpoint
from fastckpt._steps.removal import Removal
from fastckpt._steps.replaced import superseded_names
from fastckpt._steps.survey import Directory, Listing, StepFiles, walk_directories
from fastckpt.errors import CheckpointError

from .judging import Judgement, RankFilesJudge, StepJudge
from .report import GarbageFile, GarbageKind, GcReport, StepState, UnfinishedStep

__all__ = [
    "GarbageFile",
    "GarbageKind",
    "GcReport",
    "StepState",
    "UnfinishedStep",
    "collect_garbage",
]

_Path = str | os.PathLike[str]


def collect_garbage(
    path: _Path | Iterable[_Path], *, dry_run: bool = False, incomplete: bool = False
) -> GcReport:
    """Remove what interrupted saves have left in checkpoint directories.

    A whole step is never touched, nor is any file that fastckpt has not written. Saves may run meanwhile, in
    this process or in others on this machine. On a file system that several machines share, nobody should
    be saving there: a lock says nothing about processes on other machines.

    A step can never be completed if it is not whole, a later step is whole, and none of its files is newer
    than that one: every rank has gone past it. The model of such a step is removed first, and the rest once
    that is durable, so that a crash never leaves what looks more complete than before. Where a save or an
    export is running in the same directory, no step is removed.

    The same holds for what the other ranks of a `CheckpointManager` have saved of a checkpoint that is gone,
    or that rank 0 never finished.

    Args:
        path: A checkpoint directory or a parent of such directories; one or several.
        dry_run: Only say what would be removed.
        incomplete: Remove steps that can never be completed too; by default they are only listed.

    Returns:
        The report, which is true if all went well: `.files`, `.steps`, `.freed_nbytes`, `.errors`. What
        cannot be removed is in the report and not raised; the rest is removed all the same.

    Raises:
        TypeError: `path` is neither a path nor a list of paths.

    Example:
        >>> import fastckpt
        >>> fastckpt.collect_garbage("no/such/directory", dry_run=True).not_found
        ('no/such/directory',)
    """
    paths = one_or_several_paths("path", path)
    work = _Collection(dry_run=dry_run, incomplete=incomplete)
    visited: set[tuple[int, int]] = set()
    for root in paths:
        if not os.path.isdir(root):
            work.not_found.append(root)
            continue
        for found in walk_directories(root, visited):
            if isinstance(found, OSError):
                work.fail(found, root)
            elif found is not None:
                work.clean(found)
    return work.report()


class _Collection:
    """What was found and done so far."""

    def __init__(self, *, dry_run: bool, incomplete: bool) -> None:
        self._dry_run = dry_run
        self._incomplete = incomplete
        self._files: list[GarbageFile] = []
        self._steps: list[UnfinishedStep] = []
        self._live: list[str] = []
        self._removal = Removal()
        self._space = self._removal.space
        self.not_found: list[str] = []

    def report(self) -> GcReport:
        """Return all of it."""
        return GcReport(
            files=tuple(self._files),
            steps=tuple(self._steps),
            live=tuple(self._live),
            errors=tuple(self._removal.errors),
            not_found=tuple(self.not_found),
            freed_nbytes=self._space.freed_nbytes(),
            dry_run=self._dry_run,
            incomplete=self._incomplete,
        )

    def fail(self, error: OSError, path: str) -> str:
        """Note an error; return its words."""
        return self._removal.fail(error, path)

    def clean(self, directory: Directory) -> None:
        """Find and remove the garbage of one directory, those below it left out."""
        try:
            held = HeldDirectory.open(directory.path)
        except OSError as error:
            self.fail(error, directory.path)
            return
        with closing(held):
            if directory.leftovers:
                self._remove_temporary(directory)
            listing = Listing(directory.path)
            for files in directory.steps:
                if files.kept:
                    self._remove_replaced(held, files, listing)
            for name in directory.stages:
                self._remove_stage(os.path.join(directory.path, name))
            self._look_at_steps(held, directory)
            self._look_at_files_of_ranks(held, directory)

    # Temporary files.

    def _remove_temporary(self, directory: Directory) -> None:
        path = directory.path
        try:
            live, stale = divide_temporaries(path, directory.leftovers)
        except OSError as error:
            self.fail(error, path)
            return
        self._live += [os.path.join(path, name) for name in live]
        sizes = {name: self._space.look(os.path.join(path, name)) for name in stale}
        error_text = None
        gone: set[str] = set()
        if not self._dry_run:
            try:
                gone = {*_native.remove_stale(path)}
            except OSError as error:
                # It stops at the first that it cannot remove; what went before is gone.
                error_text = self.fail(error, path)
                gone = {name for name in stale if not os.path.lexists(os.path.join(path, name))}
        # The second look may have found one more, whose owner died between the two.
        for name in sorted({*stale, *gone}):
            self._add(
                GarbageFile(
                    path=os.path.join(path, name),
                    kind=GarbageKind.TEMPORARY,
                    nbytes=sizes.get(name, 0),
                    removed=name in gone,
                    error=None if name in gone else error_text,
                )
            )

    # Directories of exports.

    def _remove_stage(self, path: str) -> None:
        with claimed(path) as stage:
            if stage is None:
                if os.path.lexists(path):
                    self._live.append(path)
                return
            files = files_in(path)
            nbytes = sum(map(self._space.look, files))
            error_text = None
            if not self._dry_run:
                try:
                    stage.remove()
                except OSError as error:
                    error_text = self.fail(error, path)
        for file in files:
            if self._dry_run or not os.path.lexists(file):
                self._space.count(file)
        removed = error_text is None and not self._dry_run
        self._files.append(GarbageFile(path, GarbageKind.EXPORT, nbytes, removed, error=error_text))

    # Second names.

    def _remove_replaced(self, held: HeldDirectory, files: StepFiles, listing: Listing) -> None:
        directory = held.path
        try:
            superseded = superseded_names(directory, files, listing)
        except CheckpointError:
            # No save of the step is whole: what is left of it is looked at as a whole.
            return
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                self.fail(error, directory)
            return
        for judged in superseded:
            path = os.path.join(directory, judged[0])
            nbytes, error_text = self._space.look(path), None
            if not self._dry_run:
                error_text = self._removal.discard(held, judged)
            removed = error_text is None and not self._dry_run
            kind = GarbageKind.REPLACED
            self._add(GarbageFile(path, kind, nbytes, removed, files.step, error_text))

    # Steps that are not whole.

    def _look_at_steps(self, held: HeldDirectory, directory: Directory) -> None:
        judge = StepJudge(held)
        for files in sorted(directory.steps, key=lambda files: files.step, reverse=True):
            try:
                judge.look(files)
            except OSError as error:
                self.fail(error, directory.path)
        self._list_or_remove(directory, judge.unfinished[::-1])

    def _look_at_files_of_ranks(self, held: HeldDirectory, directory: Directory) -> None:
        checkpoints = group_by_checkpoint(directory.others)
        judge = RankFilesJudge(held, checkpoints)
        unfinished = []
        for files in checkpoints:
            if files.name is not None:
                continue
            try:
                unfinished.append(judge.look(files))
            except OSError as error:
                self.fail(error, directory.path)
        self._list_or_remove(directory, unfinished)

    def _list_or_remove(self, directory: Directory, unfinished: Sequence[Judgement]) -> None:
        is_used = any(os.path.dirname(path) == directory.path for path in self._live)
        for judgement in unfinished:
            step = judgement.step
            removable = step.state is StepState.ABANDONED and not is_used
            if removable and self._incomplete:
                step = dataclasses.replace(step, removed=self._remove_step(judgement))
            self._steps.append(step)

    def _remove_step(self, judgement: Judgement) -> bool:
        """Remove the files of a step, or list them; tell whether all are gone."""
        step = judgement.step
        sizes = {path: self._space.look(path) for path in step.files}
        errors = {} if self._dry_run else self._removal.remove(judgement.going)
        for path, nbytes in sizes.items():
            error_text = errors.get(path)
            removed = error_text is None and not self._dry_run
            kind = GarbageKind.INCOMPLETE
            self._add(GarbageFile(path, kind, nbytes, removed, step.step, error_text))
        return not self._dry_run and not errors

    def _add(self, file: GarbageFile) -> None:
        self._files.append(file)
        if file.error is None:
            self._space.count(file.path)
