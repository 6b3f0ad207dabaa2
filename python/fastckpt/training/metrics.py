"""Metrics as plain floats, and which of two is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from fastckpt.errors import MissingMetricError

# What an entry of the history has beside the metrics.
RESERVED = ("epoch", "step")


def plain_metrics(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Return metrics as Python floats.

    Args:
        metrics: Ints, floats, tensors of no dimension, numpy scalars, by name.

    Raises:
        TypeError: A name is no string, or a value no real number.
        ValueError: A name is one that the history needs for itself.
    """
    plain: dict[str, float] = {}
    for name, value in (metrics or {}).items():
        if not isinstance(name, str):
            raise TypeError(f"names of metrics are strings, and {name!r} is none")
        if name in RESERVED:
            raise ValueError(
                f"no metric may be called {name!r}: save takes it as an argument, and the history "
                "has it under that name"
            )
        plain[name] = _plain(name, value)
    return plain


def _plain(name: str, value: Any) -> float:
    # Tensors and numpy scalars, without importing either library.
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    if not isinstance(number, (int, float)):
        shape = getattr(value, "shape", None)
        what = type(value).__name__ if shape is None else f"{type(value).__name__} of {shape}"
        raise TypeError(
            f"metrics[{name!r}] must be one real number (int, float, a tensor of no dimension or a "
            f"numpy scalar), not {what}"
        )
    return float(number)


def metric_of(metrics: Mapping[str, float], name: str) -> float:
    """Return the metric of this name.

    Raises:
        MissingMetricError: There is none; names those that there are.
    """
    if name not in metrics:
        there = ", ".join(sorted(metrics)) or "none at all"
        raise MissingMetricError(
            f"metrics has no {name!r}, by which the best checkpoint is chosen; it has: {there}. Pass it, "
            "float('nan') where there is none yet, or set metric_name to another one or to None"
        )
    return metrics[name]


def is_better(value: float | None, best: float | None, mode: Literal["min", "max"]) -> bool:
    """Whether a value beats the best so far. NaN never does, and None is no value."""
    if value is None or math.isnan(value):
        return False
    if best is None or math.isnan(best):
        return True
    return value < best if mode == "min" else value > best
