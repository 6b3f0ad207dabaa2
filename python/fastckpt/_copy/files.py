"""Copy one file of a checkpoint, or see that the same is there already. Imports no torch."""

from __future__ import annotations

import filecmp
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from fastckpt import _native
from fastckpt._contents.small_file import read_small_file
from fastckpt._verify.files import archive_report, old_format, read_head
from fastckpt._verify.report import Damage, FileReport, Status
from fastckpt._verify.torchscript import verify_torchscript
from fastckpt.errors import CheckpointError

from .report import CopiedFile, Outcome
from .sources import Piece


class Progress:
    """Counts the bytes of all files together.

    Attributes:
        nbytes: How many there are to read.
    """

    def __init__(self, report: Callable[[int, int], None] | None, nbytes: int) -> None:
        self._report = report
        self._done = 0
        self.nbytes = nbytes

    def in_file(self, done_nbytes: int, _total_nbytes: int = 0) -> None:
        """Report how far the file has got that is being read."""
        if self._report is not None:
            # A file that grew since it was listed must not pass the end.
            self._report(min(self._done + done_nbytes, self.nbytes), self.nbytes)

    def end_file(self, nbytes: int) -> None:
        """Count a file as done."""
        self._done += nbytes
        self.in_file(0)


@dataclass(frozen=True)
class FileCopier:
    """Copies files to one directory.

    Attributes:
        to: The directory.
        threads: Number of threads for each file; None chooses.
        progress: Is told how far it has got.
    """

    to: str
    threads: int | None
    progress: Progress

    def target(self, piece: Piece) -> str:
        """Return where a file goes."""
        return os.path.join(self.to, piece.name)

    def copy(self, commit: _native.Commit, piece: Piece) -> CopiedFile:
        """Copy a file under a temporary name; with any damage, nothing is there to be published.

        Raises:
            OSError: It cannot be read or written.
        """
        target = self.target(piece)
        if piece.data is not None:
            unkept = commit.write_bytes_like(target, piece.data, piece.source)
            copied = CopiedFile(piece.source, target, piece.nbytes, Outcome.COPIED)
        else:
            report, unkept = self._copy_archive(commit, piece, target)
            damaged = report.status is Status.DAMAGED
            copied = CopiedFile(
                source=piece.source,
                path=target,
                nbytes=report.nbytes,
                outcome=Outcome.DAMAGED if damaged else Outcome.COPIED,
                damages=report.damages,
                message=report.message,
            )
        self.progress.end_file(piece.nbytes)
        return _with_message(copied, unkept and f"mode or time could not be kept: {unkept}")

    def _copy_archive(
        self, commit: _native.Commit, piece: Piece, target: str
    ) -> tuple[FileReport, str | None]:
        head, nbytes, mode = read_head(piece.source)
        if not stat.S_ISREG(mode) or nbytes == 0:
            words = "the file is empty" if stat.S_ISREG(mode) else "not a regular file"
            return _damaged(piece, words), None
        old = old_format(head)
        if old is not None:
            message = f"{old}: no checksums in this format, copied as it is"
            return self._copy_plain(commit, piece, target, Status.UNCHECKED, message)
        copied = commit.copy_file(
            target, piece.source, threads=self.threads, progress=self.progress.in_file
        )
        report = archive_report(piece.source, piece.role, copied.report)
        if report.damages and report.records == 0:
            # The core could not open it; TorchScript has compressed records, and is not damaged.
            script = verify_torchscript(piece.source, quick=False, progress=self.progress.in_file)
            if script is not None and not script[1]:
                message = "TorchScript: read twice, bytes between records are not covered"
                return self._copy_plain(commit, piece, target, Status.GOOD, message)
        return report, copied.unkept

    def _copy_plain(
        self, commit: _native.Commit, piece: Piece, target: str, status: Status, message: str
    ) -> tuple[FileReport, str | None]:
        copied = commit.copy_file(
            target,
            piece.source,
            verify=False,
            threads=self.threads,
            progress=self.progress.in_file,
        )
        nbytes = copied.report.nbytes
        report = FileReport(piece.source, piece.role, status, nbytes=nbytes, message=message)
        return report, copied.unkept

    def compare(self, piece: Piece) -> CopiedFile | None:
        """Say what is at the destination already: the same, verified there, or something else.

        Returns:
            PRESENT or CONFLICT; None where there is nothing.

        Raises:
            OSError: It cannot be read.
        """
        target = self.target(piece)
        if not os.path.lexists(target):
            return None
        difference = self._difference(piece, target)
        outcome = Outcome.PRESENT if difference is None else Outcome.CONFLICT
        self.progress.end_file(piece.nbytes)
        return CopiedFile(piece.source, target, piece.nbytes, outcome, message=difference)

    def _difference(self, piece: Piece, target: str) -> str | None:
        """Say how a file differs from the one at its destination; None if it does not."""
        if not os.path.isfile(target):
            return "not a file"
        if os.path.samefile(piece.source, target):
            return "it is the same file, under two names"
        nbytes = os.stat(target).st_size
        if nbytes != piece.nbytes:
            return f"a file of {nbytes} bytes, and this one has {piece.nbytes}"
        if piece.data is not None:
            same = read_small_file(target, "a copy", piece.nbytes) == piece.data
            return None if same else "a file with other contents"
        identity = _identity(target)
        if identity is None or identity != _identity(piece.source):
            same = identity is None and filecmp.cmp(piece.source, target, shallow=False)
            return None if same else "a file with other contents"
        found = _native.verify_file(target, threads=self.threads, progress=self.progress.in_file)
        if found.damages:
            return f"a damaged copy of it ({found.damages[0].detail})"
        if found.headers_covered and found.checksums == "all":
            return None
        same = filecmp.cmp(piece.source, target, shallow=False)
        return None if same else "a file with other contents"


def _identity(path: str) -> object:
    """Return what tells archives with other contents apart; None where a file does not say."""
    try:
        archive = _native.Archive.open(path)
    except CheckpointError:
        return None
    content_hash = archive.content_hash
    if content_hash is None:
        return None
    return archive.names(), archive.read_record(".data/serialization_id"), content_hash


def _damaged(piece: Piece, words: str) -> FileReport:
    damage = Damage(piece.source, None, (), 0, 0, None, None, words)
    return FileReport(piece.source, piece.role, Status.DAMAGED, damages=(damage,))


def _with_message(copied: CopiedFile, more: str | None) -> CopiedFile:
    if not more:
        return copied
    message = more if copied.message is None else f"{copied.message}; {more}"
    return CopiedFile(
        copied.source, copied.path, copied.nbytes, copied.outcome, copied.damages, message
    )
