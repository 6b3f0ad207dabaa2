"""The best checkpoints by a metric: what `fastckpt top` shows. Imports no torch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable

from ._arguments import one_or_several_paths
from ._metric_names import Mode, best_end
from ._named_step import model_file
from .selection import ModelSelector, RankedCheckpoint

_Path = str | os.PathLike[str]


def top(
    path: _Path | Iterable[_Path],
    metric_name: str,
    *,
    mode: Mode | None = None,
    k: int = 5,
) -> list[RankedCheckpoint]:
    """Return the best checkpoints by a metric, the best first, without reading their tensors.

    Those that lack the metric, or cannot be read, are not among them; of the latter a warning says why.
    `ModelSelector.rank_by_metric` returns all.

    Args:
        path: A file, a step (``"runs/d12@1200"``), a directory of checkpoints or a parent of such
            directories; one or several.
        metric_name: The metric, e.g. "val_loss".
        mode: "min" where lower is better, "max" where higher is. None means "min", and is refused where
            the metric's name says that higher is better, as "val_acc" does.
        k: How many at most.

    Returns:
        The checkpoints, each with `.path`, `.step`, `.metric` and `.metrics`.

    Raises:
        UnknownMetricError: (a ValueError) No checkpoint has the metric; it names those that there are.
        ValueError: `k` is less than 1, or `mode` is not one of the two, or is needed.
        FileNotFoundError: A path does not exist, or there is no checkpoint at all.
        OSError: A directory cannot be listed.

    Example:
        >>> import fastckpt
        >>> for step, loss in ((1, 2.5), (2, 2.25), (3, 2.75)):
        ...     fastckpt.save({"step": step, "metrics": {"val_loss": loss}}, f"{step}.pt")
        >>> [(each.path.name, each.metric) for each in fastckpt.top(".", "val_loss", k=2)]
        [('2.pt', 2.25), ('1.pt', 2.5)]
    """
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be a whole number, not {k!r}")
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    ranked = rank(one_or_several_paths("path", path), metric_name, mode)
    for checkpoint in ranked:
        if checkpoint.problem is not None:
            warnings.warn(f"left out: {checkpoint.problem}", stacklevel=2)
    return [checkpoint for checkpoint in ranked if checkpoint.metric is not None][:k]


def rank(paths: list[str], metric_name: str, mode: str | None) -> list[RankedCheckpoint]:
    """Return all checkpoints, those without the metric behind those with it, then what cannot be read."""
    if not isinstance(metric_name, str):
        raise TypeError(f"metric_name must be the name of a metric, not {metric_name!r}")
    end = best_end(metric_name, mode)
    return ModelSelector.rank_by_metric(map(model_file, paths), metric_name, end)
