"""How `fastckpt diff` says what differs: as text, as Markdown and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from fastckpt._diff.report import (
    DiffReport,
    FileDiff,
    LayerDiff,
    TensorDiff,
    TensorLayout,
    ValueDiff,
)
from fastckpt.cli.output import Line, plural, printable
from fastckpt.cli.tables import Align, fit_table

# As many lines of a kind as fit a screen; --all and --json have them all.
_LINES_MAX = 20
# A value may be as long as the file.
_VALUE_WIDTH_MAX = 60
_TITLES = ("differ", "max change", "mean change", "relative norm")


def report_lines(report: DiffReport, *, every: bool) -> Iterator[Line]:
    """Yield the text: the verdict, then what differs, file by file."""
    yield _verdict_line(report)
    for label, paths in (("only in A", report.only_a), ("only in B", report.only_b)):
        for path in paths:
            yield Line(f"  {label}  {printable(path)}", label, "yellow")
    for file in report.files:
        if not file.is_same:
            yield from _file_lines(file, every=every)


def _verdict_line(report: DiffReport) -> Line:
    tensors = sum(len(file.tensors) for file in report.files)
    if report.is_same:
        return Line(f"SAME: {plural(tensors, 'tensor')}", "SAME", "green")
    files = report.files
    counts = (
        (sum(len(file.differing) for file in files), f"{{}} of {tensors} tensors differ"),
        (sum(len(file.added) for file in files), "{} added"),
        (sum(len(file.removed) for file in files), "{} removed"),
        (sum(len(file.reshaped) for file in files), "{} of another shape or dtype"),
        (sum(len(file.values) for file in files), "other values: {}"),
        (len(report.only_a) + len(report.only_b), "files on one side only: {}"),
    )
    words = ", ".join(what.format(count) for count, what in counts if count)
    return Line(f"DIFFERENT: {words}", "DIFFERENT", "yellow")


def _file_lines(file: FileDiff, *, every: bool) -> Iterator[Line]:
    yield Line(f"{printable(file.a)} -> {printable(file.b)}")
    lines = [Line(f"  added    {printable(name)}  {layout}") for name, layout in file.added]
    lines += [Line(f"  removed  {printable(name)}  {layout}") for name, layout in file.removed]
    lines += [
        Line(f"  changed  {printable(name)}  {one} -> {other}{figures and f'  ({figures})'}")
        for name, one, other, figures in _changes(file)
    ]
    lines += [Line(f"  value    {_value_text(value)}") for value in file.values]
    yield from _first(lines, every=every)
    if not file.differing:
        return
    layers = file.layers
    if len(layers) < len(file.differing):
        yield from _first_rows("layer", [_layer_row(layer) for layer in layers], every=every)
    yield from _first_rows("tensor", [_tensor_row(each) for each in file.differing], every=every)


def _changes(file: FileDiff) -> Iterator[tuple[str, TensorLayout, TensorLayout, str]]:
    """Yield the tensors of another dtype or shape, with how far their numbers are apart where they have any."""
    converted = {tensor.name: tensor for tensor in file.converted}
    for name, one, other in file.reshaped:
        tensor = converted.get(name)
        yield name, one, other, "" if tensor is None else _figures_text(tensor)


def _figures_text(tensor: TensorDiff) -> str:
    if not tensor.differing:
        return "the same numbers"
    titled = zip(_TITLES[1:], _figures(tensor), strict=True)
    return ", ".join(f"{title} {figure}" for title, figure in titled)


def _first(lines: list[Line], *, every: bool) -> Iterator[Line]:
    """Yield as many lines as are shown, and how many are not."""
    yield from lines if every else lines[:_LINES_MAX]
    yield from _more(len(lines), every=every)


def _first_rows(what: str, rows: list[tuple[str, ...]], *, every: bool) -> Iterator[Line]:
    """Yield a table of as many rows as are shown, and how many are not."""
    yield from _table((what, *_TITLES), rows if every else rows[:_LINES_MAX])
    yield from _more(len(rows), every=every)


def _more(count: int, *, every: bool) -> Iterator[Line]:
    if count > _LINES_MAX and not every:
        yield Line(f"  ... and {count - _LINES_MAX} more (--all lists them)")


def _layer_row(layer: LayerDiff) -> tuple[str, ...]:
    count = f"{len(layer.differing)} of {layer.tensors}"
    return printable(layer.name), count, *_figures(layer)


def _tensor_row(tensor: TensorDiff) -> tuple[str, ...]:
    return printable(tensor.name), f"{tensor.differing} of {tensor.numel}", *_figures(tensor)


def _figures(found: LayerDiff | TensorDiff) -> tuple[str, ...]:
    return tuple(map(_number, (found.max_abs, found.mean_abs, found.relative_norm)))


def _number(number: float) -> str:
    return "-" if math.isnan(number) else f"{number:.3g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Line]:
    numbers: list[Align] = [">" for _ in head[1:]]
    return [Line(text) for text in fit_table([head, *rows], ["<", *numbers], "  ")]


def _value_text(value: ValueDiff) -> str:
    name = printable(value.name)
    if value.a is None:
        return f"{name}  added: {_clipped(value.b)}"
    if value.b is None:
        return f"{name}  removed: {_clipped(value.a)}"
    return f"{name}  {_clipped(value.a)} -> {_clipped(value.b)}"


def _clipped(text: str | None) -> str:
    text = printable((text or "")[: _VALUE_WIDTH_MAX + 1])
    return text if len(text) <= _VALUE_WIDTH_MAX else text[: _VALUE_WIDTH_MAX - 3] + "..."


def markdown_lines(report: DiffReport, *, every: bool) -> Iterator[Line]:
    """Yield the report as Markdown: a table for each kind of difference."""
    yield Line(f"## {_escaped(_verdict_line(report).text)}")
    yield Line("")
    yield Line(f"A is {_escaped(report.a)}, B is {_escaped(report.b)}.")
    for label, paths in (("Only in A", report.only_a), ("Only in B", report.only_b)):
        if paths:
            yield Line("")
            yield Line(f"{label}: {', '.join(map(_escaped, paths))}")
    for file in report.files:
        if not file.is_same:
            yield from _markdown_file(file, every=every)


def _markdown_file(file: FileDiff, *, every: bool) -> Iterator[Line]:
    yield Line("")
    yield Line(f"### {_escaped(file.a)} and {_escaped(file.b)}")
    changes = [(name, "added", "", str(layout)) for name, layout in file.added]
    changes += [(name, "removed", str(layout), "") for name, layout in file.removed]
    changes += [
        (name, f"changed: {figures}" if figures else "changed", str(one), str(other))
        for name, one, other, figures in _changes(file)
    ]
    values = [
        (value.name, _clipped(value.a) if value.a else "", _clipped(value.b) if value.b else "")
        for value in file.values
    ]
    layers = [_layer_row(layer) for layer in file.layers]
    tensors = [_tensor_row(tensor) for tensor in file.differing]
    yield from _markdown_table(("tensor", "change", "A", "B"), changes, 4, every=every)
    yield from _markdown_table(("value", "A", "B"), values, 3, every=every)
    if len(layers) < len(tensors):
        yield from _markdown_table(("layer", *_TITLES), layers, 1, every=every)
    yield from _markdown_table(("tensor", *_TITLES), tensors, 1, every=every)


def _markdown_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], texts: int, *, every: bool
) -> Iterator[Line]:
    """Yield a table whose first columns are texts, and all others numbers."""
    if not rows:
        return
    yield Line("")
    yield Line(f"| {' | '.join(head)} |")
    yield Line("|" + "---|" * texts + "---:|" * (len(head) - texts))
    shown = rows if every else rows[:_LINES_MAX]
    for row in shown:
        yield Line(f"| {' | '.join(map(_escaped, row))} |")
    if len(rows) > len(shown):
        yield Line("")
        yield Line(f"... and {len(rows) - len(shown)} more (--all lists them)")


def _escaped(text: str) -> str:
    """Keep a name from being taken for markup."""
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>#|" else char for char in printable(text))


def messages(report: DiffReport) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of what belongs on stderr."""
    for file in report.files:
        for note in file.notes:
            yield "note", printable(note)
        measured = (*file.differing, *file.converted)
        left_out = [tensor for tensor in measured if tensor.non_finite]
        if left_out:
            count = sum(tensor.non_finite for tensor in left_out)
            where = printable(left_out[0].name) + (", ..." if len(left_out) > 1 else "")
            elements = plural(count, "differing element")
            verb = "is" if count == 1 else "are"
            yield "note", f"{elements} ({where}) {verb} NaN or infinite: counted, not measured"
        if file.unchecked:
            tensors = plural(len(file.unchecked), "tensor")
            first = printable(file.unchecked[0]) + (", ..." if len(file.unchecked) > 1 else "")
            yield (
                "note",
                f"{tensors} could not be checked against checksums on both sides ({first})",
            )


def report_document(report: DiffReport) -> dict[str, Any]:
    """Return the report as JSON values. Paths that are not UTF-8 have lone surrogates."""
    return {
        "a": report.a,
        "b": report.b,
        "only_a": list(report.only_a),
        "only_b": list(report.only_b),
        "files": [_file_document(file) for file in report.files],
    }


def _file_document(file: FileDiff) -> dict[str, Any]:
    return {
        "a": file.a,
        "b": file.b,
        "same": file.is_same,
        "tensors": len(file.tensors),
        "added": [_layout_document(name, b=layout) for name, layout in file.added],
        "removed": [_layout_document(name, a=layout) for name, layout in file.removed],
        "changed": _changed_documents(file),
        "differing": [_tensor_document(tensor) for tensor in file.differing],
        "layers": [_layer_document(layer) for layer in file.layers],
        "values": [{"name": value.name, "a": value.a, "b": value.b} for value in file.values],
        "unread": list(file.unread),
        "unchecked": list(file.unchecked),
        "notes": list(file.notes),
    }


def _layout_document(name: str, **sides: Any) -> dict[str, Any]:
    layouts = {
        side: {"dtype": layout.dtype, "shape": list(layout.shape)} for side, layout in sides.items()
    }
    return {"name": name, **layouts}


def _changed_documents(file: FileDiff) -> list[dict[str, Any]]:
    converted = {tensor.name: _count_document(tensor) for tensor in file.converted}
    return [
        {**_layout_document(name, a=one, b=other), "numbers": converted.get(name)}
        for name, one, other in file.reshaped
    ]


def _tensor_document(tensor: TensorDiff) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "dtype": tensor.layout.dtype,
        "shape": list(tensor.layout.shape),
        **_count_document(tensor),
    }


def _count_document(tensor: TensorDiff) -> dict[str, Any]:
    return {
        "elements": tensor.numel,
        "differing": tensor.differing,
        "non_finite": tensor.non_finite,
        **_figure_document(tensor),
    }


def _layer_document(layer: LayerDiff) -> dict[str, Any]:
    return {
        "name": layer.name,
        "tensors": layer.tensors,
        "differing": len(layer.differing),
        **_figure_document(layer),
    }


def _figure_document(found: TensorDiff | LayerDiff) -> dict[str, float | None]:
    figures = {
        "max_abs": found.max_abs,
        "mean_abs": found.mean_abs,
        "relative_norm": found.relative_norm,
    }
    # JSON has neither NaN nor infinity.
    return {name: number if math.isfinite(number) else None for name, number in figures.items()}
