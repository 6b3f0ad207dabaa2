"""Remove what interrupted saves have left behind, and only that.

Three things are garbage: temporary files whose owner is dead (a lock tells, not their age), second names
of replaced files that a newer, whole save has made useless, and, where that is asked for, steps
that can never be completed. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable

from fastckpt import _native
from fastckpt._steps.parts import own_name
from fastckpt._steps.removal import Removal
from fastckpt._steps.replaced import superseded_names
from fastckpt._steps.saves import read_save
from fastckpt._steps.survey import Directory, StepFiles, parse_name, walk_directories
from fastckpt.errors import CheckpointError

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

# The names that the core gives to temporary files; others of the kind are somebody else's.
_TEMPORARY = re.compile(r"\.fastckpt-[0-9]+-[0-9]+\.tmp", re.ASCII)


def collect_garbage(
    path: _Path | Iterable[_Path], *, dry_run: bool = False, incomplete: bool = False
) -> GcReport:
    """Remove what interrupted saves have left in checkpoint directories.

    A step that is whole is never touched, nor is any file that fastckpt has not written. Saves may
    run meanwhile, in this process or in others on this machine. On a file system that several machines
    share, nobody should be saving there: a lock says nothing about processes elsewhere.

    A step can never be completed where it is not whole, a later step is whole, and none of its files
    is newer than that one: every rank has gone past it. Of such a step the model is removed
    first, and the rest once that is durable, so that a crash never leaves what looks more complete
    than before. Where a save is running in the same directory, no step is removed.

    Args:
        path: A checkpoint directory, a directory above such, or several of these.
        dry_run: Only say what would be removed.
        incomplete: Remove steps that can never be completed too; else they are only listed.

    Returns:
        The report: `.files`, `.steps`, `.freed_nbytes`, `.errors`. What cannot be removed is in
        it, and is not raised; the rest goes on.

    Example:
        >>> import fastckpt
        >>> fastckpt.collect_garbage("no/such/directory", dry_run=True).not_found
        ('no/such/directory',)
    """
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    work = _Collection(dry_run=dry_run, incomplete=incomplete)
    visited: set[tuple[int, int]] = set()
    for one in paths:
        root = os.fspath(one)
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
        if directory.leftovers:
            self._remove_temporary(directory)
        for files in directory.steps:
            if files.kept:
                self._remove_replaced(directory.path, files)
        if directory.steps:
            self._look_at_steps(directory)

    # Temporary files.

    def _remove_temporary(self, directory: Directory) -> None:
        path = directory.path
        try:
            stale = _native.remove_stale(path, dry_run=True)
        except OSError as error:
            self.fail(error, path)
            return
        ours = [name for name in directory.leftovers if _TEMPORARY.fullmatch(name)]
        self._live += [os.path.join(path, name) for name in ours if name not in stale]
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

    # Second names.

    def _remove_replaced(self, directory: str, files: StepFiles) -> None:
        try:
            names = superseded_names(directory, files)
        except CheckpointError:
            # No save of the step is whole: what is left of it is looked at as a whole.
            return
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                self.fail(error, directory)
            return
        for name in names:
            path = os.path.join(directory, name)
            nbytes, error_text = self._space.look(path), None
            if not self._dry_run:
                try:
                    # Fsyncs the directory first: the names that replaced this one may be those of
                    # other ranks, which have not come to their fsync yet.
                    with _native.Commit() as commit:
                        commit.discard(directory, [name])
                except OSError as error:
                    error_text = self.fail(error, path)
            removed = error_text is None and not self._dry_run
            kind = GarbageKind.REPLACED
            self._add(GarbageFile(path, kind, nbytes, removed, files.step, error_text))

    # Steps that are not whole.

    def _look_at_steps(self, directory: Directory) -> None:
        judge = _StepJudge(directory)
        for files in sorted(directory.steps, key=lambda files: files.step, reverse=True):
            try:
                judge.look(files)
            except OSError as error:
                self.fail(error, directory.path)
        is_saved_to = any(os.path.dirname(path) == directory.path for path in self._live)
        for step in reversed(judge.unfinished):
            removable = step.state is StepState.ABANDONED and not is_saved_to
            if not (removable and self._incomplete):
                self._steps.append(step)
                continue
            self._steps.append(dataclasses.replace(step, removed=self._remove_step(step)))

    def _remove_step(self, step: UnfinishedStep) -> bool:
        """Remove the files of a step, or list them; tell whether all are gone."""
        sizes = {path: self._space.look(path) for path in step.files}
        errors = {}
        if not self._dry_run:
            models = [path for path in step.files if _is_model(path)]
            others = [path for path in step.files if not _is_model(path)]
            errors = self._removal.unlink_in_order(step.directory, models, others, what="model")
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


class _StepJudge:
    """Looks at the steps of a directory, the highest first, and keeps those that are not whole."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory.path
        # Of the whole steps so far: when the last file of each was written.
        self._whole: list[int] = []
        self.unfinished: list[UnfinishedStep] = []

    def look(self, files: StepFiles) -> None:
        """Judge one step; every step above it has been looked at.

        Raises:
            OSError: One of its files cannot be read.
        """
        try:
            save = read_save(self._directory, files.step, optimizer=True)
        except FileNotFoundError as error:
            # IncompleteCheckpointError is one too.
            self._add(files, self._state(files), error)
        except CheckpointError as error:
            self._add(files, StepState.DAMAGED, error)
        else:
            self._whole.append(_newest_change(save.paths()))

    def _state(self, files: StepFiles) -> StepState:
        if not self._is_left_behind(files):
            return StepState.UNDER_WAY
        if not _are_ours(self._directory, files):
            return StepState.FOREIGN
        if not files.shards and not files.kept and self._loads_model(files):
            return StepState.MODEL_ONLY
        return StepState.ABANDONED

    def _is_left_behind(self, files: StepFiles) -> bool:
        """Whether a later step is whole, and was written after this one.

        Steps alone do not tell: a run that was started again from an early step writes steps below
        those of the first run.
        """
        return bool(self._whole) and _newest_change(self._paths(files)) <= max(self._whole)

    def _loads_model(self, files: StepFiles) -> bool:
        try:
            read_save(self._directory, files.step, optimizer=False)
        except (CheckpointError, FileNotFoundError):
            return False
        return True

    def _add(self, files: StepFiles, state: StepState, error: Exception) -> None:
        paths = self._paths(files)
        self.unfinished.append(
            UnfinishedStep(
                directory=self._directory,
                step=files.step,
                state=state,
                reason=str(error),
                loads_model=state is not StepState.DAMAGED and self._loads_model(files),
                nbytes=sum(_size(path) for path in paths),
                files=tuple(paths),
            )
        )

    def _paths(self, files: StepFiles) -> list[str]:
        """Return the paths of a step's files, models first, and each manifest behind its meta.

        A meta without its manifest is taken at its word: gone first, the manifest could make a model of
        one save and a meta of another look like one step.
        """
        names = [*files.names(), *files.kept_names()]
        paths = [os.path.join(self._directory, name) for name in names]
        return sorted(paths, key=lambda path: (not _is_model(path), _role(path) == "manifest"))


def _are_ours(directory: str, files: StepFiles) -> bool:
    """Whether fastckpt has written all archives of a step."""
    names = [*filter(None, [files.model]), *files.shards.values()]
    if not names:
        return files.manifest is not None or bool(files.kept)
    return all(_is_marked(os.path.join(directory, name)) for name in names)


def _is_marked(path: str) -> bool:
    try:
        return _native.Archive.open(path).save_mark is not None
    except (CheckpointError, FileNotFoundError):
        return False


def _is_model(path: str) -> bool:
    return _role(path) == "model"


def _role(path: str) -> str | None:
    named = parse_name(own_name(os.path.basename(path)))
    return None if named is None else named.role


def _newest_change(paths: list[str]) -> int:
    """Return when the last of these files was written, in nanoseconds."""
    times = []
    for path in paths:
        try:
            times.append(os.lstat(path).st_mtime_ns)
        except FileNotFoundError:
            continue
    return max(times, default=0)


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0
