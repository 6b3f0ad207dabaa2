"""Verify one file after the other, by what each is: an archive, a meta, a manifest, an older format."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import stat
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastckpt._contents.small_file import META_NBYTES_MAX, read_small_file
from fastckpt._steps.manifest import read_manifest
from fastckpt._steps.role import Role
from fastckpt._steps.survey import kind_of, parse_kept_name, parse_name
from fastckpt.errors import CheckpointError, FormatError

from .report import Damage, FileReport, Status

if TYPE_CHECKING:
    from fastckpt import _native

_Progress = Callable[[int, int], None]

# The first pickle of torch.save before 1.6 is the number 0x1950a86a20f9469cfc6c, after PROTO 2.
_LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
# POSIX ustar: the magic of a tar archive and its offset, as torch.save wrote before 0.2.
_TAR_MAGIC, _TAR_MAGIC_OFFSET = b"ustar", 257
_HEAD_NBYTES = 512
# The unit of `st_blocks`.
_BLOCK_NBYTES = 512
# A file this many times larger than what it holds is not searched for remains: reading its holes has no end.
_HOLES_RATIO = 16


class FileCheck:
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
            verdict = unreadable(path, role, error)
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
            # The core could not open it; TorchScript has compressed records, and is not damaged.
            script = self._verify_torchscript(path, role)
            if script is not None:
                return script
        report = archive_report(path, role, found)
        if not report.damages:
            return report
        return dataclasses.replace(report, repairable=self._is_repairable(report))

    def _is_repairable(self, report: FileReport) -> bool:
        """Whether `repair` would find tensors, without reading what has been read already."""
        from fastckpt import _native

        try:
            if report.records:
                names = _native.Archive.open(report.path).names()
            elif self._quick or _is_mostly_holes(report.path):
                return False
            else:
                # Its directory is lost: the file has not been read yet.
                names = _native.salvage(report.path, threads=self._threads).archive.names()
        except (CheckpointError, OSError):
            return False
        lost = {damage.record for damage in report.damages}
        storages = [name for name in names if name.startswith("data/")]
        is_torchs = "constants.pkl" not in names and ("data.pkl" in names or bool(storages))
        return is_torchs and (not storages or not lost.issuperset(storages))

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
            nbytes=size_of(path),
            records=records,
            checksums="all",
            damages=damages,
            message="TorchScript: bytes between records are not checked",
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
        message = "it was written without checksums: only the structure was checked"
    elif found.checksums == "metadata":
        status = Status.UNCHECKED
        message = "it was written without checksums of the tensors (skip_data)"
    elif not found.headers_covered:
        message = "another program than torch wrote it: bytes between records are not checked"
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
    """Say which format without records a file has, by its first bytes; None for all other files."""
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


def unreadable(path: str, role: Role, error: OSError) -> FileReport:
    """Return the report of what the operating system could not read."""
    message = error.strerror or str(error)
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return FileReport(path, role, Status.NOT_FOUND, message=message)
    return FileReport(
        path, role, Status.IO_ERROR, nbytes=size_of(path), message=message, errno=error.errno
    )


def size_of(path: str) -> int:
    """Return the size of a file, 0 where the system does not tell."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # said when the file is verified


def _is_mostly_holes(path: str) -> bool:
    """Whether a file has next to nothing of the bytes that it claims, which may be 2**63."""
    status = os.stat(path)
    return status.st_size > _HOLES_RATIO * (status.st_blocks * _BLOCK_NBYTES + (1 << 20))
