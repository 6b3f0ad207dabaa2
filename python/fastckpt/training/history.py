"""The history of metrics: for each metric one value a save, and the epoch and step of each save."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastckpt._contents.outline import read_outline
from fastckpt._contents.scalar_tensors import with_numbers
from fastckpt._steps.checkpoint_names import CheckpointName

from .directory import Entry
from .metrics import as_float

#: Keys of a checkpoint.
METRICS_KEY, EPOCHS_KEY, STEPS_KEY = "metrics_history", "history_epochs", "history_steps"


@dataclass
class History:
    """What was measured at each save, oldest first.

    Attributes:
        metrics: For each metric one float a save, NaN where a save has none.
        epochs: The epoch of each save; None where the file does not tell.
        steps: The step of each save; None where the file does not tell.
    """

    metrics: dict[str, list[float]] = field(default_factory=dict)
    epochs: list[int | None] = field(default_factory=list)
    steps: list[int | None] = field(default_factory=list)

    def last(self) -> dict[str, float]:
        """Return the metrics of the last save."""
        return {name: values[-1] for name, values in self.metrics.items() if values}

    def to_contents(self) -> dict[str, Any]:
        """Return the history as it stands in a checkpoint."""
        return {METRICS_KEY: self.metrics, EPOCHS_KEY: self.epochs, STEPS_KEY: self.steps}

    def with_save(self, name: CheckpointName, metrics: Mapping[str, float]) -> History:
        """Return a new history with one more save; a step that is saved again has one."""
        own = (name.epoch, name.step)
        saves = zip(self.epochs, self.steps, strict=True)
        places = [place for place, save in enumerate(saves) if save != own]
        names = [*self.metrics, *(one for one in metrics if one not in self.metrics)]
        return History(
            {
                one: [self.metrics[one][place] for place in places]
                if one in self.metrics
                else [math.nan] * len(places)
                for one in names
            },
            [self.epochs[place] for place in places],
            [self.steps[place] for place in places],
        )._append(name, metrics)

    def _append(self, name: CheckpointName, metrics: Mapping[str, float]) -> History:
        for one, values in self.metrics.items():
            values.append(metrics.get(one, math.nan))
        self.epochs.append(name.epoch)
        self.steps.append(name.step)
        return self


def history_in(contents: Mapping[str, Any]) -> History:
    """Return the history that a checkpoint holds, in any of the forms that there have been.

    A dict of lists, as it is written; lists of unequal length, as scripts write them that append to the
    list of each metric, are filled up with NaN in front. A list with one dict a save, as earlier versions
    wrote it, each with its "epoch" and "step".
    """
    history = contents.get(METRICS_KEY)
    if isinstance(history, Mapping):
        return _of_lists(history, contents)
    if isinstance(history, (list, tuple)):
        return _of_dicts([one for one in history if isinstance(one, Mapping)])
    return History()


def read_history(entries: Iterable[Entry]) -> History:
    """Return the history that the newest of these checkpoints holds."""
    newest = max(entries, key=lambda entry: entry.name, default=None)
    return History() if newest is None else history_in(with_numbers(read_outline(newest.path)))


def _of_lists(history: Mapping[Any, Any], contents: Mapping[str, Any]) -> History:
    lists = {
        name: [_value(one) for one in values]
        for name, values in history.items()
        if isinstance(name, str) and isinstance(values, (list, tuple))
    }
    epochs, steps = _numbers(contents.get(EPOCHS_KEY)), _numbers(contents.get(STEPS_KEY))
    length = max([*map(len, lists.values()), len(epochs), len(steps)], default=0)
    if not epochs and not steps and length:
        # Another script's: of the last save alone it is known which it was.
        epochs, steps = _numbers([contents.get("epoch")]), _numbers([contents.get("global_step")])
    return History(
        {name: [math.nan] * (length - len(values)) + values for name, values in lists.items()},
        _filled(epochs, length),
        _filled(steps, length),
    )


def _of_dicts(history: list[Mapping[Any, Any]]) -> History:
    names = dict.fromkeys(name for one in history for name in one if name not in ("epoch", "step"))
    return History(
        {str(name): [_value(one.get(name)) for one in history] for name in names},
        _numbers([one.get("epoch") for one in history]),
        _numbers([one.get("step") for one in history]),
    )


def _value(value: Any) -> float:
    number = as_float(value)
    return math.nan if number is None else number


def _filled(numbers: list[int | None], length: int) -> list[int | None]:
    return [*[None] * (length - len(numbers)), *numbers]


def _numbers(values: Any) -> list[int | None]:
    if not isinstance(values, (list, tuple)):
        return []
    return [one if type(one) is int else None for one in values]
