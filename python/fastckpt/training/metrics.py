"""Metrics as plain floats, and which of two is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

#: The best value so far, by the mode, while there is none.
WORST = {"min": math.inf, "max": -math.inf}


class MissingMetricError(KeyError, ValueError):
    """The metric that decides which checkpoint is the best was not given.

    A KeyError, since a key is missing, and a ValueError, since that is what many expect of a wrong
    argument.
    """

    def __str__(self) -> str:
        # KeyError would show the message as a quoted key.
        return str(self.args[0])


def plain_metrics(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Return metrics as Python floats.

    Args:
        metrics: Ints, floats, tensors of no dimension, numpy scalars, by name.

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
    """Return a real number as a float: an int, a float, a tensor of no dimension, a numpy scalar; else None."""
    # Tensors and numpy scalars, without importing either library.
    number = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
    return float(number) if isinstance(number, (int, float)) else None


def _plain(name: str, value: Any) -> float:
    number = as_float(value)
    if number is None:
        shape = getattr(value, "shape", None)
        what = type(value).__name__ if shape is None else f"{type(value).__name__} of {shape}"
        raise TypeError(
            f"metrics[{name!r}] must be one real number (int, float, a tensor of no dimension or a "
            f"numpy scalar), not {what}"
        )
    return number


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
