"""Columns of text, and numbers as people read them."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from typing import Literal

from fastckpt._contents.plain_values import Value
from fastckpt.cli.output import printable
from fastckpt.cli.width import stream_width

Align = Literal["<", ">"]

_GAP = "  "
# How far what stands below a name is indented.
_BELOW = "    "
# If stdout is not a terminal and COLUMNS is not set.
_WIDTH = 120
_TEXT_MAX = 160
_DIGITS = re.compile(r"([0-9]+)")


def terminal_width() -> int:
    """Return how many characters a line should have."""
    return stream_width(sys.stdout) or _WIDTH


def fit_table(
    rows: Sequence[Sequence[str]], aligns: Sequence[Align], indent: str = "", *, name: int = 0
) -> list[str]:
    """Put rows into columns or, where these are too wide for the terminal, the name of each above the rest.

    Args:
        rows: The cells, the heads first.
        aligns: How each column is aligned.
        indent: What each line begins with.
        name: The column with long names.
    """
    width = stream_width(sys.stdout)
    if width is None or not rows or len(indent) + table_width(rows) <= width:
        return format_table(rows, aligns, indent)
    rest = [[*row[:name], *row[name + 1 :]] for row in rows]
    rest_aligns = [*aligns[:name], *aligns[name + 1 :]]
    lines = format_table(rest, rest_aligns, indent + _BELOW)
    return [
        line
        for row, below in zip(rows, lines, strict=True)
        for line in (indent + row[name], below)
        if line.strip()
    ]


def format_table(
    rows: Sequence[Sequence[str]], aligns: Sequence[Align], indent: str = ""
) -> list[str]:
    """Put rows of cells into columns, each as wide as its longest cell."""
    widths = (
        [max(len(row[column]) for row in rows) for column in range(len(aligns))] if rows else []
    )
    return [
        (indent + _GAP.join(_pad(*cell) for cell in zip(row, aligns, widths, strict=True))).rstrip()
        for row in rows
    ]


def _pad(text: str, align: Align, width: int) -> str:
    return text.ljust(width) if align == "<" else text.rjust(width)


def table_width(rows: Sequence[Sequence[str]]) -> int:
    """Return the width that `format_table` needs."""
    columns = list(zip(*rows, strict=True))
    return sum(max(map(len, column)) for column in columns) + len(_GAP) * (len(columns) - 1)


def format_number(value: float) -> str:
    """Format a measured number: whole ones with separators, others with six digits."""
    if isinstance(value, int):
        # Beyond the digits that Python prints; see sys.set_int_max_str_digits.
        return f"{value:,}" if value.bit_length() <= 1024 else f"{value:#x}"
    return f"{value:.6g}"


def format_shape(shape: Sequence[int] | None) -> str:
    """Format lengths as Python does; "?" where they are not known."""
    if shape is None:
        return "?"
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def format_value(value: Value) -> str:
    """Format a plain value on one line; long text is cut."""
    if isinstance(value, list):
        text = f"[{', '.join(map(format_value, value))}]"
    elif isinstance(value, str):
        text = printable(value[: _TEXT_MAX + 1])
    else:
        text = str(value)
    return text if len(text) <= _TEXT_MAX else text[:_TEXT_MAX] + "..."


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return what names are sorted by: "h.2" before "h.10"."""
    parts = _DIGITS.split(name)
    # Digits stand at the odd places; of many, the length and then the text decide.
    return [
        (len(part.lstrip("0")), 0, part.lstrip("0")) if place % 2 else (0, 1, part)
        for place, part in enumerate(parts)
    ]


def json_number(value: object) -> object:
    """Return a value as strict JSON has it: NaN and the infinities, which it lacks, as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list):
        return [json_number(item) for item in value]
    return value
