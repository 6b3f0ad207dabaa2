"""How `fastckpt repair` says what it salvaged: as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastckpt._repair.report import LostRecord, LostTensor, Outcome, RepairReport
from fastckpt.cli.output import Line, format_nbytes, plural, printable

_LABELS = {
    Outcome.WHOLE: ("SALVAGED", "green"),
    Outcome.PARTIAL: ("SALVAGED IN PART", "yellow"),
    Outcome.RECORDS: ("RAW RECORDS ONLY", "yellow"),
    Outcome.NOTHING: ("NOTHING SALVAGED", "bold red"),
}


def report_lines(report: RepairReport) -> Iterator[Line]:
    """Yield the text: the verdict, every tensor that is lost, every record that is."""
    yield _verdict_line(report)
    for tensor in report.tensors:
        yield _tensor_line(tensor)
    for record in report.lost:
        yield _record_line(record)


def _verdict_line(report: RepairReport) -> Line:
    label, style = _LABELS[report.outcome]
    if report.outcome is Outcome.NOTHING:
        return Line(f"{label}: no new file", label, style)
    size = f"{printable(report.to)}, {format_nbytes(report.nbytes)}"
    missing = {
        Outcome.WHOLE: "nothing is missing",
        Outcome.PARTIAL: f"{plural(len(report.tensors), 'tensor')} missing",
        Outcome.RECORDS: "names, shapes and dtypes are missing",
    }[report.outcome]
    return Line(f"{label}: {size}, {missing}", label, style)


def _tensor_line(tensor: LostTensor) -> Line:
    what = "left out" if tensor.is_left_out else "None instead"
    name = printable(tensor.name)
    return Line(f"  lost tensor  {name} ({printable(tensor.record)}): {what}", "lost tensor", "red")


def _record_line(record: LostRecord) -> Line:
    name = printable(record.record) or "a record without a name"
    where = "" if record.offset is None else f", at byte {record.offset}"
    size = "" if record.nbytes is None else f", {format_nbytes(record.nbytes)}"
    text = f"  lost record  {name}{size}{where}: {printable(record.reason)}"
    return Line(text, "lost record", "red")


def messages(report: RepairReport) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of what belongs on stderr."""
    for note in report.notes:
        yield "note", printable(note)
    if report.outcome is Outcome.PARTIAL:
        yield "hint", "load_state_dict(..., strict=False) takes a state dict with missing keys"


def report_document(report: RepairReport) -> dict[str, Any]:
    """Return the report as JSON values. Paths that are not UTF-8 have lone surrogates."""
    return {
        "path": report.path,
        "to": report.to,
        "outcome": report.outcome.value,
        "nbytes": report.nbytes,
        "records": list(report.records),
        "lost": [_record_document(record) for record in report.lost],
        "tensors": [_tensor_document(tensor) for tensor in report.tensors],
        "notes": list(report.notes),
    }


def _record_document(record: LostRecord) -> dict[str, Any]:
    return {
        "record": record.record,
        "reason": record.reason,
        "offset": record.offset,
        "nbytes": record.nbytes,
        "expected": record.expected,
        "found": record.found,
    }


def _tensor_document(tensor: LostTensor) -> dict[str, Any]:
    return {"name": tensor.name, "record": tensor.record, "left_out": tensor.is_left_out}
