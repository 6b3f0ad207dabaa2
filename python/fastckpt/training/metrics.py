"""Metrics as plain floats, and the better of two."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from fastckpt.errors import MissingMetricError

#: The best value so far, by the mode, while there is none.
WORST = {"min": math.inf, "max": -math.inf}


def plain_metrics(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Return metrics as Python floats.

    Args:
        metrics: Ints, floats, 0-dimensional tensors and numpy scalars, by name.

    Raises:
        TypeError: A name is not a string, or a value is not a real number.
    """
    plain: dict[str, float] = {}
    for name, value in (metrics or {}).items():
        if not isinstance(name, str):
            raise TypeError(f"metric names must be strings, not {name!r}")
        plain[name] = _plain(name, value)
    return plain


def as_float(value: Any) -> float | None:
    """Return an int, a float, a 0-dimensional tensor or a numpy scalar as a float; None for anything else."""
    # Tensors and numpy scalars, without importing either library.
    number = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
    return float(number) if isinstance(number, (int, float)) else None


def _plain(name: str, value: Any) -> float:
    number = as_float(value)
    if number is None:
        shape = getattr(value, "shape", None)
        what = type(value).__name__ if shape is None else f"{type(value).__name__} of {shape}"
        raise TypeError(
            f"metrics[{name!r}] must be one real number (int, float, 0-dimensional tensor or numpy scalar), "
            f"not {what}"
        )
    return number


def metric_of(metrics: Mapping[str, float], name: str) -> float:
    """Return the metric of this name.

    Raises:
        MissingMetricError: It is missing; the message names those that are there.
    """
    if name not in metrics:
        there = f"it has {', '.join(sorted(metrics))}" if metrics else "it is empty"
        raise MissingMetricError(
            f"metrics has no {name!r}, which chooses the best checkpoint; {there}. Pass it (float('nan') "
            "if it has no value yet), or set metric_name to another metric or to None"
        )
    return metrics[name]


def is_better(value: float | None, best: float | None, mode: Literal["min", "max"]) -> bool:
    """Whether a value is better than the best so far. NaN and None (no value) never are."""
    if value is None or math.isnan(value):
        return False
    if best is None or math.isnan(best):
        return True
    return value < best if mode == "min" else value > best
