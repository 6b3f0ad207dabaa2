"""How `fastckpt prune` says what it kept and deleted: as text and as JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from fastckpt._prune.report import Fate, PrunedCheckpoint, PrunedFile, PruneReport
from fastckpt.cli.nearby import not_found_hint
from fastckpt.cli.output import Line, format_nbytes, kept_notes, plural, printable

_FAILED = "NOT DELETED"
_WIDTH = len("would delete")


def report_lines(report: PruneReport) -> Iterator[Line]:
    """Yield the text: what was deleted, and a line for each checkpoint."""
    if not report.found and not report.errors:
        yield Line(
            f"NOT FOUND: no checkpoints in {printable(report.directory)}", "NOT FOUND", "red"
        )
        return
    yield _verdict_line(report)
    yield Line(printable(report.directory))
    width = max((len(each.name) for each in report.checkpoints), default=0)
    for each in report.checkpoints:
        yield _checkpoint_line(each, width, report)
    for file in report.leftovers:
        word = _done(report) if file.error is None else _FAILED
        yield Line(f"  {word:<{_WIDTH}}  {printable(os.path.basename(file.path))} (left over)")


def _verdict_line(report: PruneReport) -> Line:
    if report.blocked and not report.files:
        return Line(
            "NOTHING DELETED: no checkpoint that would stay can be verified", "NOTHING", "red"
        )
    going = [each for each in report.checkpoints if each.fate is Fate.REMOVED]
    gone = [each for each in going if all(file.error is None for file in each.files)]
    files = sum(file.error is None for file in report.files)
    if report.files and not files:
        return Line(f"{_FAILED}: {plural(len(report.files), 'file')}", _FAILED, "bold red")
    if not report.files:
        return Line("NOTHING TO DELETE", "NOTHING TO DELETE", "green")
    label = "WOULD DELETE" if report.dry_run else "DELETED"
    freed = format_nbytes(report.freed_nbytes)
    verb = "would be freed" if report.dry_run else "freed"
    count = plural(len(gone), "checkpoint")
    return Line(f"{label}: {count}, {plural(files, 'file')}, {freed} {verb}", label, "green")


def _done(report: PruneReport) -> str:
    return "would delete" if report.dry_run else "deleted"


def _checkpoint_line(each: PrunedCheckpoint, width: int, report: PruneReport) -> Line:
    word, style, note = {
        Fate.KEPT: ("kept", "", ", ".join(each.reasons)),
        Fate.REMOVED: (_done(report), "", plural(len(each.files), "file")),
        Fate.LEFT_ALONE: ("left alone", "yellow", "; ".join(each.reasons)),
        Fate.DAMAGED: ("DAMAGED", "bold red", "; ".join(each.reasons)),
    }[each.fate]
    if any(file.error is not None for file in each.files):
        word, style = _FAILED, "bold red"
    columns = (
        f"  {each.name:<{width}}",
        f"{word:<{_WIDTH}}",
        f"{format_nbytes(each.nbytes):>9}",
        printable(note),
    )
    return Line("  ".join(columns).rstrip(), word if style else "", style)


def messages(report: PruneReport) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of what belongs on stderr."""
    where = printable(report.directory)
    for path, words in report.errors:
        yield "error", f"{printable(path)}: {printable(words)}"
    yield from kept_notes(report.files, report.errors)
    for words in report.blocked:
        yield "error", printable(words)
        yield (
            "hint",
            f"`fastckpt verify {where}` says why; --quick deletes without reading what stays",
        )
    if not report.found and not report.errors:
        yield "hint", not_found_hint(report.directory)
    fates = [each.fate for each in report.checkpoints]
    if Fate.LEFT_ALONE in fates:
        count = plural(fates.count(Fate.LEFT_ALONE), "checkpoint")
        yield (
            "hint",
            f"{count} incomplete or under way: `fastckpt gc {where}` says what can be done",
        )
    if Fate.DAMAGED in fates:
        yield "hint", f"`fastckpt verify {where}` lists what is damaged"
    if report.quick and any(file.removed for file in report.files):
        yield "warning", "what stays was not read, only its structure was checked (--quick)"


def report_document(report: PruneReport) -> dict[str, Any]:
    """Return the report as JSON values: what a dry run would do is not said to be done."""
    going = [file.path for file in report.files if file.error is None]
    return {
        "directory": report.directory,
        "dry_run": report.dry_run,
        "quick": report.quick,
        "freed_nbytes": 0 if report.dry_run else report.freed_nbytes,
        "would_free_nbytes": report.freed_nbytes if report.dry_run else 0,
        "deleted": [] if report.dry_run else going,
        "would_delete": going if report.dry_run else [],
        "checkpoints": [
            _checkpoint_document(each, dry_run=report.dry_run) for each in report.checkpoints
        ],
        "leftovers": [_file_document(file) for file in report.leftovers],
        "blocked": list(report.blocked),
        "errors": [{"path": path, "message": words} for path, words in report.errors],
    }


def _checkpoint_document(each: PrunedCheckpoint, *, dry_run: bool) -> dict[str, Any]:
    return {
        "step": each.step,
        "epoch": each.epoch,
        "fate": "would_delete" if dry_run and each.fate is Fate.REMOVED else each.fate.value,
        "reasons": list(each.reasons),
        "nbytes": each.nbytes,
        "files": [_file_document(file) for file in each.files],
    }


def _file_document(file: PrunedFile) -> dict[str, Any]:
    return {
        "path": file.path,
        "nbytes": file.nbytes,
        "removed": file.removed,
        "error": file.error,
    }
