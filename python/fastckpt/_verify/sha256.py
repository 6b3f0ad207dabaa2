"""SHA-256 of the files of whole steps, in the format of sha256sum, for somebody to sign.

A CRC-32 finds accidents. Who can write a file can write its CRCs: against intent, the sums of files
that were verified are signed, and compared before the files are used. Imports no torch.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fastckpt._steps.role import Role
from fastckpt._steps.survey import walk_directories

from .report import FileReport, Status, VerifyReport

_Progress = Callable[[int, int], None]
_Identity = tuple[int, int, int, int]

# Large enough that hashing it costs more than the calls, and small enough for the caches.
_CHUNK_NBYTES = 1 << 20

# What sha256sum writes for these in a name, behind a backslash in front of the line.
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r"})

# The order of a step's files.
_ROLES: tuple[Role, ...] = ("model", "meta", "manifest", "optimizer")


@dataclass(frozen=True)
class Sum:
    """The SHA-256 of one file.

    Attributes:
        name: Its path, relative to the directory that was given.
        sha256: In hexadecimal.
    """

    name: str
    sha256: str

    @property
    def line(self) -> str:
        """The line that sha256sum writes, and that `sha256sum -c` reads."""
        escaped = self.name.translate(_ESCAPES)
        return f"{chr(92) if escaped != self.name else ''}{self.sha256}  {escaped}\n"


class Snapshot:
    """Which files there were before they were verified, so that no other is taken for one of them.

    Args:
        path: A file, or a directory.
    """

    def __init__(self, path: str) -> None:
        self._root = path if os.path.isdir(path) else os.path.dirname(path)
        self._identities: dict[str, _Identity] = {}
        for file in _files_below(path):
            try:
                self._identities[file] = _identity(os.stat(file))
            except OSError:
                continue  # verify says why

    def sums(self, files: list[FileReport], progress: _Progress | None = None) -> list[Sum]:
        """Read files that were verified as good since this was taken.

        Raises:
            OSError: One cannot be read, or has changed meanwhile.
        """
        meter = _Meter(sum(file.nbytes for file in files), progress)
        return [
            Sum(os.path.relpath(file.path, self._root or "."), self._read(file.path, meter))
            for file in files
        ]

    def _read(self, path: str, meter: _Meter) -> str:
        digest = hashlib.sha256()
        # Without blocking, should a named pipe have taken its place since.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._compare(fd, path)
            while chunk := os.read(fd, _CHUNK_NBYTES):
                digest.update(chunk)
                meter.advance(len(chunk))
            self._compare(fd, path)
        except OSError as error:
            error.filename = path
            raise
        finally:
            os.close(fd)
        return digest.hexdigest()

    def _compare(self, fd: int, path: str) -> None:
        if self._identities.get(path) != _identity(os.fstat(fd)):
            raise OSError(errno.ESTALE, "it has changed since it was verified", path)


class _Meter:
    """Adds up what was read of several files."""

    def __init__(self, nbytes: int, progress: _Progress | None) -> None:
        self._nbytes = nbytes
        self._progress = progress
        self._done = 0

    def advance(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(min(self._done, self._nbytes), self._nbytes)


def files_to_sum(report: VerifyReport, path: str) -> tuple[list[FileReport], list[str]]:
    """Choose what was verified as good: the file itself, or of a directory the whole steps.

    Args:
        report: Of verifying `path` alone.
        path: A file, or a directory.

    Returns:
        The files, by directory and step, in each the model, the meta, the manifest, and the shards by
        rank; and of what is left out, why.
    """
    if not os.path.isdir(path):
        good = [file for file in report.files if file.status is Status.GOOD]
        return good, [f"{file.path} is not good" for file in report.files if file not in good]
    files: list[FileReport] = []
    omitted: list[str] = []
    for step in report.steps:
        if step.status is Status.GOOD:
            extra = set(step.extra)
            loaded = [file for file in step.files if os.path.basename(file.path) not in extra]
            files += sorted(loaded, key=lambda file: (_ROLES.index(file.role), file.rank or 0))
        else:
            omitted.append(f"step {step.step} in {step.directory} is not good")
    in_steps = {id(file) for step in report.steps for file in step.files}
    others = [file for file in report.files if id(file) not in in_steps]
    omitted += [
        f"{file.path} does not belong to a step" for file in others if file.role != "directory"
    ]
    return files, omitted


def _files_below(path: str) -> Iterator[str]:
    if not os.path.isdir(path):
        yield path
        return
    for directory in walk_directories(path, set()):
        if directory is None or isinstance(directory, OSError):
            continue
        for step in directory.steps:
            for name in (*step.names(), *step.kept_names()):
                yield os.path.join(directory.path, name)


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
