"""The history of metrics: one entry for each save, "epoch" and "step" in front."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastckpt._contents.outline import read_outline
from fastckpt._steps.checkpoint_names import CheckpointName

from .directory import Entry

History = list[dict[str, Any]]


def read_history(entries: Iterable[Entry]) -> History:
    """Return the history of metrics that the newest of these checkpoints holds."""
    newest = max(entries, key=lambda entry: entry.name, default=None)
    if newest is None:
        return []
    history = read_outline(newest.path).root.get("metrics_history")
    return plain_history(history)


def plain_history(history: Any) -> History:
    """Return the entries of a history that was read, a new list."""
    return [dict(one) for one in history or () if isinstance(one, dict)]


def with_entry(history: History, name: CheckpointName, metrics: Mapping[str, float]) -> History:
    """Return a history with one more entry; a step that is saved again has one."""
    own = {"epoch": name.epoch, "step": name.step}
    others = [one for one in history if {**one, **own} != one]
    return [*others, {**own, **metrics}]
