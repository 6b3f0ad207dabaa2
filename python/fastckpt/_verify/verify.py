"""Verify checkpoints: every byte of every file, and that no file of a step is missing.

Imports neither torch nor rich: the records are read and compared by the Rust core, and the command
line starts at once.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator

from fastckpt._arguments import checked_threads, one_or_several_paths
from fastckpt._named_step import NamedStep, find_step
from fastckpt._steps.survey import Directory, walk_directories

from .files import FileCheck, size_of, unreadable
from .report import Damage, FileReport, Status, StepReport, VerifyReport
from .steps import verify_step

__all__ = ["Damage", "FileReport", "Status", "StepReport", "VerifyReport", "verify"]

_Path = str | os.PathLike[str]
_Progress = Callable[[int, int], None]


def verify(
    path: _Path | Iterable[_Path],
    *,
    quick: bool = False,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> VerifyReport:
    """Check that checkpoints hold the bytes that were written, and that each step is whole.

    Reads every byte of each file, whichever program wrote it. What is wrong is in the report, and
    is not raised; this includes paths that do not exist.

    Args:
        path: A file, a step (``"runs/d12@1200"``), a checkpoint directory, or a parent of such
            directories; one or several.
        quick: Check the structure and which files there are, without reading the tensors.
        threads: Number of threads that read; None chooses.
        progress: Called with bytes done and bytes in all. What it raises ends the job.

    Returns:
        The report, which is true if nothing is wrong: `.ok`, `.exit_code`, `.damages`, `.steps`, `.files`.

    Raises:
        TypeError: `path` is neither a path nor a list of paths.
        ValueError: `threads` is less than 1.

    Example:
        >>> import fastckpt
        >>> fastckpt.verify("no/such/directory").status.value
        'not_found'
    """
    started = time.monotonic()
    threads = checked_threads(threads)
    work = _Work(one_or_several_paths("path", path))
    check = FileCheck(work.nbytes, quick=quick, threads=threads, progress=progress)
    files = list(work.errors)
    steps = []
    for directory in work.directories:
        for step in directory.steps:
            steps.append(verify_step(directory.path, step, check))
            files += steps[-1].files
        files += [check(os.path.join(directory.path, name)) for name in directory.others]
    files += [check(file) for file in work.files]
    unique = {id(file): file for file in files}
    return VerifyReport(
        files=tuple(unique.values()),
        steps=tuple(steps),
        leftovers=tuple(work.leftovers),
        quick=quick,
        seconds=time.monotonic() - started,
    )


class _Work:
    """What there is to verify under the paths that were given."""

    def __init__(self, paths: list[str]) -> None:
        self.files: list[str] = []
        self.directories: list[Directory] = []
        self.leftovers: list[str] = []
        self.errors: list[FileReport] = []
        visited: set[tuple[int, int]] = set()
        for path in paths:
            try:
                is_directory = stat.S_ISDIR(os.stat(path).st_mode)
            except (FileNotFoundError, NotADirectoryError):
                is_directory = False
            except OSError as error:
                self.errors.append(unreadable(path, "directory", error))
                continue
            if is_directory:
                self._add_directory(path, visited)
            elif not self._add_step(path):
                self.files.append(path)

    def _add_step(self, path: str) -> bool:
        """Add the step that DIR@STEP names; whether the path is one."""
        try:
            named = find_step(path)
        except OSError as error:
            self.errors.append(unreadable(path, "directory", error))
            return True
        if named is not None:
            self.directories.append(_directory_of(named))
        return named is not None

    def _add_directory(self, root: str, visited: set[tuple[int, int]]) -> None:
        is_empty = True
        for found in walk_directories(root, visited):
            if found is None:
                # Reached another way already, and looked through then.
                is_empty = False
                continue
            if isinstance(found, OSError):
                self.errors.append(unreadable(str(found.filename), "directory", found))
                is_empty = False
                continue
            self.directories.append(found)
            self.leftovers += [os.path.join(found.path, name) for name in found.leftovers]
            is_empty = is_empty and not (found.steps or found.others)
        if is_empty:
            message = "no checkpoint in this directory (model_*.pt, or any *.pt, *.pth, *.ckpt)"
            self.errors.append(FileReport(root, "directory", Status.NOT_FOUND, message=message))

    @property
    def nbytes(self) -> int:
        """Size of everything that will be read."""
        return sum(size_of(path) for path in self._paths())

    def _paths(self) -> Iterator[str]:
        yield from self.files
        for directory in self.directories:
            names = [name for step in directory.steps for name in step.names()]
            for name in names + directory.others:
                yield os.path.join(directory.path, name)


def _directory_of(named: NamedStep) -> Directory:
    """Return what a directory would hold if there were only this step."""
    steps = [named.nanochat] if named.is_nanochat else []
    return Directory(named.directory, steps, list(named.managed), [], [], [])
