"""How `fastckpt copy` says what it copied: as text and as JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from fastckpt._copy.report import CopiedCheckpoint, CopiedFile, CopyReport, Outcome
from fastckpt.cli.damages import (
    DAMAGED,
    INCOMPLETE,
    IO_ERROR,
    NOT_FOUND,
    damage_document,
    damage_lines,
)
from fastckpt.cli.nearby import not_found_hint
from fastckpt.cli.output import Line, format_nbytes, plural, printable

_LABELS = {
    Outcome.COPIED: ("copied", ""),
    Outcome.PRESENT: ("there", ""),
    Outcome.LINKED: ("linked", ""),
    Outcome.DAMAGED: DAMAGED,
    Outcome.CONFLICT: ("IN THE WAY", "bold red"),
    Outcome.INCOMPLETE: INCOMPLETE,
    Outcome.SKIPPED: ("skipped", "yellow"),
    Outcome.NOT_FOUND: NOT_FOUND,
    Outcome.IO_ERROR: IO_ERROR,
    Outcome.NOT_REACHED: ("not copied", "yellow"),
}
_LABEL_WIDTH = max(len(label) for label, _ in _LABELS.values())
_AT_DESTINATION = {Outcome.COPIED, Outcome.PRESENT, Outcome.LINKED}
_NAMES_SHOWN = 3


def report_lines(report: CopyReport) -> Iterator[Line]:
    """Yield the text: the verdict, a line for each checkpoint, what stood in the way."""
    if not report.checkpoints:
        yield Line(f"NOT FOUND: no checkpoint in {printable(report.source)}", "NOT FOUND", "red")
        return
    yield _verdict_line(report)
    yield Line(printable(report.to))
    width = max(len(printable(each.name)) for each in report.checkpoints)
    for each in report.checkpoints:
        label, style = _LABELS[each.outcome]
        columns = (
            f"  {printable(each.name):<{width}}",
            f"{label:<{_LABEL_WIDTH}}",
            f"{plural(len(each.files), 'file'):>8}" if each.files else " " * 8,
            f"{format_nbytes(each.nbytes):>9}" if each.files else " " * 9,
            printable(each.message or _what_was_there(each)),
        )
        yield Line("  ".join(columns).rstrip(), label if style else "", style)
    for file in report.files:
        yield from _file_lines(file)


def _what_was_there(each: CopiedCheckpoint) -> str:
    there = sum(file.outcome is Outcome.PRESENT for file in each.files)
    return f"{there} of them already there" if there and each.outcome is Outcome.COPIED else ""


def _verdict_line(report: CopyReport) -> Line:
    done = [each for each in report.checkpoints if each.outcome in _AT_DESTINATION]
    copied = report.copied_nbytes
    rate = f", {format_nbytes(copied / report.seconds)}/s" if copied >= 1_000_000 else ""
    size = f"{format_nbytes(copied)} copied and verified ({report.seconds:.1f} s{rate})"
    if report.ok:
        label = "COPIED" if copied else "ALL THERE"
        return Line(f"{label}: {plural(len(done), 'checkpoint')}, {size}", label, "green")
    label, style = _LABELS[Outcome(report.status)]
    count = plural(len(report.checkpoints), "checkpoint")
    return Line(f"{label}: {len(done)} of {count} at the destination, {size}", label, style)


def _file_lines(file: CopiedFile) -> Iterator[Line]:
    if file.outcome is Outcome.CONFLICT:
        yield Line("")
        yield Line(f"in the way: {printable(file.path)}", "in the way", "bold red")
        yield Line(f"  what      {printable(file.message or '')}")
    for damage in file.damages:
        yield from damage_lines(file.source, damage)


def messages(report: CopyReport) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of what belongs on stderr."""
    source = printable(report.directory)
    if not report.checkpoints:
        yield "hint", not_found_hint(report.directory)
    for file in report.files:
        if file.message and file.outcome in _AT_DESTINATION:
            yield "warning", f"{printable(os.path.basename(file.path))}: {printable(file.message)}"
    outcomes = {each.outcome for each in report.checkpoints}
    if Outcome.DAMAGED in outcomes:
        yield "hint", f"`fastckpt verify {source}` lists what is damaged; copy another step"
    if Outcome.CONFLICT in outcomes:
        yield "hint", "copy to another place, or remove what is in the way if nobody needs it"
    if report.status == "incomplete":
        yield "hint", f"`fastckpt verify --quick {source}` says which steps are whole"
    if Outcome.IO_ERROR in outcomes:
        yield "hint", "run the same command again to resume"
    if report.others:
        count = len(report.others)
        what = (
            "1 entry that is not a checkpoint"
            if count == 1
            else f"{count} entries that are not checkpoints"
        )
        names = ", ".join(report.others[:_NAMES_SHOWN])
        more = ", ..." if count > _NAMES_SHOWN else ""
        yield "note", f"skipped {what}: {printable(names)}{more}"


def report_document(report: CopyReport) -> dict[str, Any]:
    """Return the report as JSON values. Paths that are not UTF-8 have lone surrogates."""
    return {
        "source": report.source,
        "directory": report.directory,
        "to": report.to,
        "copied_nbytes": report.copied_nbytes,
        "seconds": round(report.seconds, 6),
        "checkpoints": [
            {
                "name": each.name,
                "step": each.step,
                "outcome": each.outcome.value,
                "nbytes": each.nbytes,
                "message": each.message,
                "files": [_file_document(file) for file in each.files],
            }
            for each in report.checkpoints
        ],
        "others": list(report.others),
    }


def _file_document(file: CopiedFile) -> dict[str, Any]:
    return {
        "source": file.source,
        "path": file.path,
        "nbytes": file.nbytes,
        "outcome": file.outcome.value,
        "message": file.message,
        "damages": [damage_document(damage) for damage in file.damages],
    }
