"""How `fastckpt top` lists the best checkpoints: as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastckpt.cli.output import Line, plural, printable
from fastckpt.cli.tables import Align, fit_table, format_number, json_number
from fastckpt.selection import RankedCheckpoint


def report_lines(
    ranked: Sequence[RankedCheckpoint], *, metric: str, mode: str, k: int
) -> Iterator[Line]:
    """Yield the text: how many there are, and the best of them."""
    readable = [each for each in ranked if each.problem is None]
    best = _with_metric(readable)[:k]
    without = sum(each.metric is None for each in readable)
    note = f" ({without} without it)" if without else ""
    words = "lowest" if mode == "min" else "highest"
    of = plural(len(readable), "checkpoint")
    yield Line(f"{words} {printable(metric)}: {len(best)} of {of}{note}")
    has_epoch = any(each.epoch is not None for each in best)
    cells = [["", "value", "step", *["epoch"] * has_epoch, "checkpoint"]]
    for place, each in enumerate(best, start=1):
        value = format_number(each.metric) if each.metric is not None else "-"
        epoch = [_text(each.epoch)] * has_epoch
        cells.append([str(place), value, _text(each.step), *epoch, printable(str(each.path))])
    numbers: list[Align] = [">" for _ in cells[0][:-1]]
    for text in fit_table(cells, [*numbers, "<"], "  ", name=len(cells[0]) - 1):
        yield Line(text)


def _with_metric(ranked: Sequence[RankedCheckpoint]) -> list[RankedCheckpoint]:
    return [each for each in ranked if each.metric is not None]


def _text(value: int | None) -> str:
    return "-" if value is None else str(value)


def report_document(
    ranked: Sequence[RankedCheckpoint], *, metric: str, mode: str, k: int
) -> dict[str, Any]:
    """Return the ranking as JSON values; `checkpoints` counts those without the metric too."""
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
            for place, each in enumerate(_with_metric(readable)[:k], start=1)
        ],
        "left_out": [
            {"path": str(each.path), "problem": each.problem}
            for each in ranked
            if each.problem is not None
        ],
    }
