"""How `fastckpt average` says what it wrote: as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastckpt._average.report import AverageReport
from fastckpt.cli.output import Line, format_nbytes, plural, printable


def report_lines(report: AverageReport) -> Iterator[Line]:
    """Yield the text: the new file, and the share of each checkpoint."""
    size = f"{printable(report.path)}, {format_nbytes(report.nbytes)}"
    count = plural(len(report.checkpoints), "checkpoint")
    yield Line(f"AVERAGED: {count} into {size}", "AVERAGED", "green")
    for path, weight in zip(report.checkpoints, report.weights, strict=True):
        yield Line(f"  {weight:8.4f}  {printable(path)}")


def messages(report: AverageReport) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of what belongs on stderr."""
    kept = report.tensors - report.averaged
    if kept:
        last = printable(report.checkpoints[-1])
        verb = "is" if kept == 1 else "are"
        yield "note", f"{plural(kept, 'integer tensor')} {verb} taken from the last file, {last}"
    for path in report.unchecked:
        yield "warning", f"{printable(path)} has no checksums: it was averaged unchecked"


def report_document(report: AverageReport) -> dict[str, Any]:
    """Return the report as JSON values. Paths that are not UTF-8 have lone surrogates."""
    return {
        "path": report.path,
        "nbytes": report.nbytes,
        "checkpoints": [
            {"path": path, "weight": weight}
            for path, weight in zip(report.checkpoints, report.weights, strict=True)
        ],
        "tensors": report.tensors,
        "averaged": report.averaged,
        "unchecked": list(report.unchecked),
    }
