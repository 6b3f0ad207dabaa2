"""How `fastckpt inspect` says what a file holds: as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastckpt._contents.plain_values import METRICS
from fastckpt._inspect.report import GROUPS, FileContents, TensorRow, Total
from fastckpt.cli.inspect import Sort
from fastckpt.cli.inspect_tree import tree_lines
from fastckpt.cli.output import Line, format_nbytes, plural, printable
from fastckpt.cli.tables import (
    fit_table,
    format_shape,
    format_value,
    json_number,
    natural_key,
)

# A configuration has more; --json has all.
_VALUES_SHOWN = 60
_MODULES_SHOWN = 40
# What stands last among the values, by parts of its key.
_LAST = ("optim", "scheduler", "scaler", "rng", "dataloader")


def sorted_tensors(contents: FileContents, sort: Sort | None) -> list[TensorRow]:
    """Return the tensors, the largest first or by name; else in the order saved."""
    if sort is Sort.SIZE:
        return sorted(contents.tensors, key=lambda row: -row.nbytes)
    if sort is Sort.NAME:
        return sorted(contents.tensors, key=lambda row: natural_key(row.name))
    return list(contents.tensors)


def file_lines(contents: FileContents, *, tree: bool, sort: Sort | None) -> Iterator[Line]:
    """Yield the text: the tensors, the plain values, and the totals last, where they stay in sight."""
    yield Line(_heading(contents), "", "")
    rows = sorted_tensors(contents, sort)
    if rows:
        yield Line("")
        listed = tree_lines(rows, by_size=sort is Sort.SIZE) if tree else _tensor_lines(rows)
        yield from map(Line, listed)
    values = _value_lines(contents)
    if values:
        yield Line("")
        yield from map(Line, values)
    if rows:
        yield Line("")
        yield from map(Line, _total_lines(contents))


def _heading(contents: FileContents) -> str:
    parts = [f"{format_nbytes(contents.nbytes)}", contents.format]
    parts.append(plural_of(len(contents.tensors), "tensor"))
    if contents.epoch is not None:
        parts.append(f"epoch {contents.epoch}")
    if contents.step is not None:
        parts.append(f"step {contents.step}")
    return f"{printable(contents.path)}: {', '.join(parts)}"


def plural_of(count: int, noun: str) -> str:
    """Format a count with separators, and its noun."""
    return plural(count, noun).replace(str(count), f"{count:,}", 1)


def _tensor_lines(rows: list[TensorRow]) -> list[str]:
    cells = [("tensor", "dtype", "shape", "elements", "size", "")]
    cells += [
        (
            printable(row.name),
            row.dtype or "?",
            format_shape(row.shape),
            f"{row.numel:,}",
            format_nbytes(row.nbytes),
            _note(row),
        )
        for row in rows
    ]
    return fit_table(cells, ("<", "<", "<", ">", ">", "<"))


def _note(row: TensorRow) -> str:
    notes = []
    if row.kind not in {"tensor", "parameter"}:
        notes.append(printable(row.kind))
    if row.shares_with is not None:
        notes.append(f"shares memory with {printable(row.shares_with)}")
    return ", ".join(notes)


def _value_lines(contents: FileContents) -> list[str]:
    shown = {name: format_value(value) for name, value in contents.values.items()}
    shown |= {name: f"(not shown, of length {count:,})" for name, count in contents.omitted.items()}
    cells = [(printable(name), shown[name]) for name in sorted(shown, key=_distance)]
    lines = fit_table(cells[:_VALUES_SHOWN], ("<", "<"))
    if len(cells) > _VALUES_SHOWN:
        lines.append(f"and {len(cells) - _VALUES_SHOWN:,} more values (see --json)")
    if contents.meta is not None and contents.problem is None:
        lines.insert(0, f"from {printable(contents.meta)}:")
    return lines


def _distance(name: str) -> int:
    """Return how far down a value stands: an optimizer's settings must not push the metrics out."""
    first, _, rest = name.lower().partition(".")
    if not rest or first == METRICS:
        return 0
    return 2 if any(word in first for word in _LAST) else 1


def _total_lines(contents: FileContents) -> list[str]:
    rows: list[Total] = []
    hidden = 0
    for group in GROUPS:
        modules = contents.modules(group)
        rows += [total for total in contents.groups() if total.name == group]
        # Of a group with one part, the group says it all.
        if len(modules) > 1:
            rows += [_indented(total) for total in modules[:_MODULES_SHOWN]]
            hidden += max(len(modules) - _MODULES_SHOWN, 0)
    if len(contents.groups()) > 1:
        rows.append(contents.total)
    shared = any(total.nbytes != total.storage_nbytes for total in rows)
    cells = [("", "tensors", "elements", "size", "in the file" if shared else "")]
    cells += [
        (
            printable(total.name),
            f"{total.tensors:,}",
            f"{total.numel:,}",
            format_nbytes(total.nbytes),
            format_nbytes(total.storage_nbytes) if shared else "",
        )
        for total in rows
    ]
    lines = fit_table(cells, ("<", ">", ">", ">", ">"))
    return [*lines, f"and {hidden:,} more parts (see --json)"] if hidden else lines


def _indented(total: Total) -> Total:
    return Total(**{**vars(total), "name": f"  {total.name}"})


def file_messages(contents: FileContents) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of what belongs on stderr."""
    if contents.problem is not None:
        yield "warning", printable(contents.problem)


def file_document(contents: FileContents, *, sort: Sort | None) -> dict[str, Any]:
    """Return the contents as JSON values; sizes are in bytes."""
    return {
        "kind": "file",
        "path": contents.path,
        "format": contents.format,
        "nbytes": contents.nbytes,
        "step": contents.step,
        "epoch": contents.epoch,
        "metrics": {name: json_number(value) for name, value in contents.metrics.items()},
        "values": {name: json_number(value) for name, value in contents.values.items()},
        "omitted": dict(contents.omitted),
        "meta": contents.meta,
        "problem": contents.problem,
        "total": vars(contents.total),
        "groups": [
            {**vars(total), "modules": [vars(part) for part in contents.modules(group)]}
            for group in GROUPS
            for total in contents.groups()
            if total.name == group
        ],
        "tensors": [{**vars(row), "numel": row.numel} for row in sorted_tensors(contents, sort)],
    }
