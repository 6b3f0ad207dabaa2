"""Verify checkpoints: every byte of every file, and that no file of a step is missing.

Imports neither torch nor rich: the records are read and compared by the Rust core, and the command
line starts at once.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from fastckpt._contents.small_file import META_NBYTES_MAX, read_small_file
from fastckpt._steps.manifest import read_manifest
from fastckpt._steps.survey import (
    Directory,
    StepFiles,
    kind_of,
    parse_kept_name,
    parse_name,
    walk_directories,
)
from fastckpt.errors import CheckpointError, FormatError, IncompleteCheckpointError

from .report import (
    Damage,
    FileReport,
    Role,
    Status,
    StepReport,
    VerifyReport,
    worst,
)

if TYPE_CHECKING:
    from fastckpt import _native

__all__ = ["Damage", "FileReport", "Status", "StepReport", "VerifyReport", "verify"]

_Path = str | os.PathLike[str]
_Progress = Callable[[int, int], None]

# The first pickle of torch.save before 1.6 is the number 0x1950a86a20f9469cfc6c, after PROTO 2.
_LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
# POSIX ustar: the magic of a tar archive and its offset, as torch.save wrote before 0.2.
_TAR_MAGIC, _TAR_MAGIC_OFFSET = b"ustar", 257
_HEAD_NBYTES = 512


def verify(
    path: _Path | Iterable[_Path],
    *,
    quick: bool = False,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> VerifyReport:
    """Check that checkpoints hold the bytes that were written, and that each step is whole.

    Reads every byte of each file, whichever program wrote it. What is wrong is in the report, and
    is not raised: a path that is not there, too.

    Args:
        path: A file, a checkpoint directory, a directory above such (of model tags, say), or
            several of these.
        quick: Check the structure and which files there are, without reading the tensors.
        threads: Number of threads that read; None lets the core decide.
        progress: Called with the bytes done and the bytes in all. What it raises ends the job.

    Returns:
        The report: `.ok`, `.exit_code`, `.damages`, `.steps`, `.files`.

    Example:
        >>> import fastckpt
        >>> fastckpt.verify("no/such/directory").status.value
        'not_found'
    """
    started = time.monotonic()
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    work = _Work([os.fspath(one) for one in paths])
    check = _FileCheck(work.nbytes, quick=quick, threads=threads, progress=progress)
    files = list(work.errors)
    steps = []
    for directory in work.directories:
        for step in directory.steps:
            steps.append(_verify_step(directory.path, step, check))
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
                self.errors.append(_unreadable(path, "directory", error))
                continue
            if is_directory:
                self._add_directory(path, visited)
            else:
                self.files.append(path)

    def _add_directory(self, root: str, visited: set[tuple[int, int]]) -> None:
        is_empty = True
        for found in walk_directories(root, visited):
            if found is None:
                # Reached another way already, and looked through then.
                is_empty = False
                continue
            if isinstance(found, OSError):
                self.errors.append(_unreadable(str(found.filename), "directory", found))
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
        return sum(_size(path) for path in self._paths())

    def _paths(self) -> Iterator[str]:
        yield from self.files
        for directory in self.directories:
            names = [name for step in directory.steps for name in step.names()]
            for name in names + directory.others:
                yield os.path.join(directory.path, name)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # said when the file is verified


def _verify_step(directory: str, step: StepFiles, check: _FileCheck) -> StepReport:
    state = _StepState.of(directory, step)
    visible = [os.path.join(directory, name) for name in step.names()]
    kept = [path for path in state.paths if path not in visible]
    files = [state.judge(check(path)) for path in (*visible, *kept)]
    # A dangling link, or a file that was deleted meanwhile, is a file that is missing.
    gone = [os.path.basename(file.path) for file in files if file.status is Status.NOT_FOUND]
    missing = tuple(dict.fromkeys((*state.missing, *gone)))
    statuses = [file.status for file in files if file.status is not Status.NOT_FOUND]
    if missing or state.torn:
        statuses.append(Status.INCOMPLETE)
    extra = [os.path.basename(path) for path in visible if state.paths and path not in state.paths]
    return StepReport(
        directory=directory,
        step=step.step,
        status=worst(statuses),
        files=tuple(files),
        ranks=tuple(sorted(step.shards)),
        missing=missing,
        torn=state.torn,
        extra=tuple(extra),
        save_id=state.save_id,
    )


@dataclasses.dataclass(frozen=True)
class _StepState:
    """Which save of a step is whole, or why none is."""

    paths: tuple[str, ...] = ()
    save_id: int | None = None
    missing: tuple[str, ...] = ()
    torn: tuple[str, ...] = ()
    #: A file that is not the one that was saved, and the words for it.
    changed: tuple[str | None, str] = (None, "")

    @classmethod
    def of(cls, directory: str, step: StepFiles) -> _StepState:
        # Here and not at the top: the report's types are of use without the native module.
        from fastckpt._steps.saves import StepSaves

        saves = StepSaves(directory, step)
        # The words alone: an exception in a variable holds what its frames have open.
        changed: tuple[str | None, str] = (None, "")
        torn: tuple[str, ...] = ()
        try:
            save = saves.newest_whole(optimizer=True)
            return cls(tuple(save.paths()), save.save_id or None)
        except IncompleteCheckpointError as error:
            torn = (str(error),)
        except CheckpointError as error:
            changed = (error.path, str(error))
        except OSError:
            pass  # which the report of that file says
        try:
            problems = saves.problems()
        except CheckpointError as error:
            # Besides what is torn, a file cannot be opened, or is not the one that was saved.
            changed = (error.path, str(error)) if changed[0] is None else changed
            missing = step.missing()
            return cls(missing=missing, torn=() if missing else torn, changed=changed)
        except OSError:
            return cls(missing=step.missing(), changed=changed)
        missing = tuple(problem.name for problem in problems if problem.missing)
        torn = tuple(problem.message for problem in problems if not problem.missing)
        return cls(missing=missing, torn=torn, changed=changed)

    def judge(self, file: FileReport) -> FileReport:
        """Add what only the rest of the step shows: that a file is not the one that was saved."""
        path, words = self.changed
        if path != file.path or file.status is not Status.GOOD:
            return file
        damage = Damage(file.path, None, (), 0, file.nbytes, None, None, words)
        return dataclasses.replace(file, status=Status.DAMAGED, damages=(damage,))


class _FileCheck:
    """Verifies files one after the other, each only once, and counts the bytes."""

    def __init__(
        self, nbytes: int, *, quick: bool, threads: int | None, progress: _Progress | None
    ) -> None:
        self._nbytes = nbytes
        self._quick = quick
        self._threads = threads
        self._progress = progress
        self._done = 0
        self._verdicts: dict[str, FileReport] = {}

    def __call__(self, path: str) -> FileReport:
        """Verify one file."""
        key = os.path.abspath(path)
        if key not in self._verdicts:
            self._verdicts[key] = self._verify(path)
            self._done += self._verdicts[key].nbytes
        self._report(0)
        return self._verdicts[key]

    def _verify(self, path: str) -> FileReport:
        started = time.monotonic()
        name = os.path.basename(path)
        kept = parse_kept_name(name)
        named = parse_name(name) if kept is None else kept[2]
        role: Role = named.role if named else ("meta" if path.endswith(".json") else "other")
        try:
            verdict = self._look(path, role)
        except OSError as error:
            verdict = _unreadable(path, role, error)
        return dataclasses.replace(
            verdict,
            step=named.step if named else None,
            rank=named.rank if named else None,
            seconds=time.monotonic() - started,
        )

    def _look(self, path: str, role: Role) -> FileReport:
        head, nbytes, mode = read_head(path)
        if not stat.S_ISREG(mode):
            return _damaged(path, role, 0, f"{kind_of(mode)}, not a file")
        if nbytes == 0:
            return _damaged(path, role, 0, "the file is empty")
        if role == "meta":
            return _verify_meta(path, nbytes)
        if role == "manifest":
            return _verify_manifest(path, nbytes)
        old = old_format(head)
        if old is not None:
            message = f"{old}: no checksums in this format"
            return FileReport(path, role, Status.UNCHECKED, nbytes=nbytes, message=message)
        return self._verify_archive(path, role)

    def _verify_archive(self, path: str, role: Role) -> FileReport:
        # Here and not at the top: the report's types are of use without the native module.
        from fastckpt import _native

        found = _native.verify_file(
            path,
            quick=self._quick,
            threads=self._threads,
            progress=None if self._progress is None else lambda done, _: self._report(done),
        )
        if found.damages and found.records == 0:
            # The core could not open it; TorchScript has compressed records, and is no damage.
            script = self._verify_torchscript(path, role)
            if script is not None:
                return script
        return archive_report(path, role, found)

    def _verify_torchscript(self, path: str, role: Role) -> FileReport | None:
        from .torchscript import verify_torchscript

        outcome = verify_torchscript(path, quick=self._quick, progress=self._report)
        if outcome is None:
            return None
        records, damages = outcome
        return FileReport(
            path=path,
            role=role,
            status=Status.DAMAGED if damages else Status.GOOD,
            nbytes=_size(path),
            records=records,
            checksums="all",
            damages=damages,
            message="TorchScript: bytes between records are not covered",
        )

    def _report(self, done_in_file: int) -> None:
        if self._progress is not None:
            # A file that grew since it was listed must not pass the end.
            self._progress(min(self._done + done_in_file, self._nbytes), self._nbytes)


def archive_report(path: str, role: Role, found: _native.FileReport) -> FileReport:
    """Return what the core found in an archive, with the verdict."""
    damages = tuple(
        Damage(
            path=path,
            record=damage.record,
            tensors=tuple(damage.tensors),
            offset=damage.offset,
            nbytes=damage.nbytes,
            expected=damage.expected,
            found=damage.found,
            detail=damage.detail,
        )
        for damage in found.damages
    )
    status, message = Status.GOOD, None
    if damages:
        status = Status.DAMAGED
    elif found.checksums == "none":
        status = Status.UNCHECKED
        message = "its writer switched checksums off: only the structure was checked"
    elif found.checksums == "metadata":
        status = Status.UNCHECKED
        message = "its writer left out the checksums of the tensors (skip_data)"
    elif not found.headers_covered:
        message = "not the framing of any torch version: bytes between records are not covered"
    return FileReport(
        path=path,
        role=role,
        status=status,
        nbytes=found.nbytes,
        records=found.records,
        checksums=found.checksums,
        headers_covered=found.headers_covered,
        damages=damages,
        message=message,
    )


def read_head(path: str) -> tuple[bytes, int, int]:
    """Return the first bytes of a file, its size and its mode."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        return b"", 0, mode
    # Without blocking, should a named pipe have taken its place since.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        return os.read(fd, _HEAD_NBYTES), status.st_size, status.st_mode
    finally:
        os.close(fd)


def old_format(head: bytes) -> str | None:
    """Say which format without records a file is in, by its first bytes; None if in none."""
    if head.startswith(_LEGACY_MAGIC):
        return "not a zip archive (torch.save before 1.6, or the old serialization)"
    magic = head[_TAR_MAGIC_OFFSET : _TAR_MAGIC_OFFSET + len(_TAR_MAGIC)]
    if magic == _TAR_MAGIC:
        return "not a zip archive (a tar file of torch 0.1)"
    return None


def _verify_meta(path: str, nbytes: int) -> FileReport:
    """Check that a meta file is JSON as Python's json reads it: with NaN and Infinity."""
    try:
        json.loads(read_small_file(path, "a meta file", META_NBYTES_MAX).decode("utf-8"))
    except FormatError as error:
        return _damaged(path, "meta", nbytes, str(error))
    except RecursionError:
        return _damaged(path, "meta", nbytes, "not JSON that Python reads: nested too deeply")
    except ValueError as error:
        return _damaged(path, "meta", nbytes, f"not JSON: {error}")
    # JSON holds no checksum. The manifest of the step does, and is compared with the step as a whole.
    return FileReport(path, "meta", Status.GOOD, nbytes=nbytes)


def _verify_manifest(path: str, nbytes: int) -> FileReport:
    try:
        read_manifest(path)
    except FormatError as error:
        return _damaged(path, "manifest", nbytes, str(error))
    return FileReport(path, "manifest", Status.GOOD, nbytes=nbytes)


def _damaged(path: str, role: Role, nbytes: int, detail: str) -> FileReport:
    damage = Damage(path, None, (), 0, nbytes, None, None, detail)
    return FileReport(path, role, Status.DAMAGED, nbytes=nbytes, damages=(damage,))


def _unreadable(path: str, role: Role, error: OSError) -> FileReport:
    message = error.strerror or str(error)
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return FileReport(path, role, Status.NOT_FOUND, message=message)
    return FileReport(
        path, role, Status.IO_ERROR, nbytes=_size(path), message=message, errno=error.errno
    )
