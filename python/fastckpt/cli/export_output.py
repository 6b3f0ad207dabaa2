"""How `fastckpt export` says what it wrote: as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastckpt.cli.output import Line, format_nbytes, plural, printable

if TYPE_CHECKING:
    from fastckpt.export import ExportReport


def report_lines(report: ExportReport) -> Iterator[Line]:
    """Yield the text: what was written, and how much smaller it is."""
    tensors = plural(report.tensors, "tensor")
    keys = ", ".join(report.config_keys)
    config = f"with configuration ({keys})" if keys else "without configuration"
    size = format_nbytes(report.nbytes)
    before = format_nbytes(report.source_nbytes or 0)
    text = f"EXPORTED: {tensors}, {size} of {before}, {config}"
    yield Line(text, "EXPORTED", "green")
    for path in report.outputs:
        yield Line(f"  {printable(path)}")


def messages(report: ExportReport) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of what belongs on stderr."""
    for note in report.notes:
        yield "note", printable(note)


def report_document(report: ExportReport) -> dict[str, Any]:
    """Return the report as JSON values. Paths that are not UTF-8 have lone surrogates."""
    return {
        "source": report.source,
        "outputs": list(report.outputs),
        "source_nbytes": report.source_nbytes,
        "nbytes": report.nbytes,
        "tensors": report.tensors,
        "has_config": report.has_config,
        "config_keys": list(report.config_keys),
        "notes": list(report.notes),
    }
