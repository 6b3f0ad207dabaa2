"""How `fastckpt top` lists the best checkpoints: as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastckpt.cli.output import Line, plural, printable
from fastckpt.cli.tables import Align, format_number, format_table, json_number
from fastckpt.selection import RankedCheckpoint


def report_lines(
    ranked: Sequence[RankedCheckpoint], *, metric: str, mode: str, k: int
) -> Iterator[Line]:
    """Yield the text: how many there are, and the best of them."""
    readable = [each for each in ranked if each.problem is None]
    best = readable[:k]
    without = sum(each.metric is None for each in readable)
    note = f" ({without} without it)" if without else ""
    words = "lowest" if mode == "min" else "highest"
    of = plural(len(readable), "checkpoint")
    yield Line(f"{words} {printable(metric)}: {len(best)} of {of}{note}")
    has_epoch = any(each.epoch is not None for each in best)
    cells = [["", "value", "step", *["epoch"] * has_epoch, "checkpoint"]]
    for place, each in enumerate(best, start=1):
        value = "-" if each.metric is None else format_number(each.metric)
        epoch = [_text(each.epoch)] * has_epoch
        cells.append([str(place), value, _text(each.step), *epoch, printable(str(each.path))])
    numbers: list[Align] = [">" for _ in cells[0][:-1]]
    for text in format_table(cells, [*numbers, "<"], "  "):
        yield Line(text)


def _text(value: int | None) -> str:
    return "-" if value is None else str(value)


def report_document(
    ranked: Sequence[RankedCheckpoint], *, metric: str, mode: str, k: int
) -> dict[str, Any]:
    """Return the ranking as JSON values; `metric` is null where a checkpoint has none."""
    readable = [each for each in ranked if each.problem is None]
    return {
        "metric": metric,
        "mode": mode,
        "k": k,
        "checkpoints": len(readable),
        "best": [
            {
                "rank": place,
                "path": str(each.path),
                "step": each.step,
                "epoch": each.epoch,
                "metric": json_number(each.metric),
                "metrics": {name: json_number(value) for name, value in each.metrics.items()},
            }
            for place, each in enumerate(readable[:k], start=1)
        ],
        "left_out": [
            {"path": str(each.path), "problem": each.problem}
            for each in ranked
            if each.problem is not None
        ],
    }
