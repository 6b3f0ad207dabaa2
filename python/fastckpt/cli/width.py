"""How wide a line may be, and lines that are too long."""

from __future__ import annotations

import os
from typing import TextIO

# How far the rest of a line is indented below its beginning.
_HANGING = 4


def stream_width(stream: TextIO) -> int | None:
    """Return how many characters fit into a line: as COLUMNS or the terminal says; None for a file or a pipe."""
    try:
        columns = int(os.environ.get("COLUMNS", ""))
    except ValueError:
        columns = 0
    if columns > 0:
        return columns
    if not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except OSError:
        return None


def fold(text: str, width: int | None) -> list[str]:
    """Break a line between words; a word that is too long, a path say, stays whole: it may be copied.

    Example:
        >>> fold("  step 1200  left out  the shard of rank 1 is missing", 32)
        ['  step 1200  left out  the shard', '      of rank 1 is missing']
    """
    if width is None or len(text) <= width:
        return [text]
    begin = len(text) - len(text.lstrip(" "))
    hanging = " " * (begin + _HANGING)
    lines: list[str] = []
    prefix, rest = text[:begin], text[begin:]
    while len(prefix) + len(rest) > width:
        cut = rest.rfind(" ", 0, max(width - len(prefix) + 1, 0))
        if cut <= 0:
            cut = rest.find(" ")
        if cut < 0:
            break
        lines.append(prefix + rest[:cut].rstrip())
        prefix, rest = hanging, rest[cut:].lstrip(" ")
    return [*lines, prefix + rest] if rest or not lines else lines
