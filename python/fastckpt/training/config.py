"""The configuration of a `CheckpointManager`."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, SupportsIndex

Condition = tuple[Literal["<", "<=", ">", ">="], float]

_OPERATORS = ("<", "<=", ">", ">=")


@dataclass
class CheckpointConfig:
    """What a `CheckpointManager` saves, when, and what it keeps.

    Args:
        checkpoint_dir: Directory of the checkpoints; the manager makes it.
        save_total_limit: Number of newest checkpoints to keep, by step. The best one is kept too. None keeps
            all.
        save_best_only: Save only a checkpoint that is better than all before it.
        metric_name: The metric that chooses the best checkpoint; every save needs it. None: no checkpoint is
            the best.
        metric_mode: "min" if the smallest value is the best, "max" if the largest is.
        save_optimizer: Whether to save the optimizer's state. Training cannot resume exactly without it.
        save_rng_state: Whether to save the states of the random number generators.
        keep_every: Checkpoints whose step is a multiple of this are never deleted.
        save_every_steps: `should_save` returns True at multiples of this.
        save_every_secs: `should_save` returns True when the last save is this many seconds old.
        save_when: `should_save` returns True each time a metric begins to meet its condition:
            ``{"accuracy": (">=", 0.9), "val_loss": ("<", 2.5)}``.
        cycle_steps: Length of the first cycle of a cyclical learning rate, in steps. `should_save` returns
            True at the end of each cycle. These checkpoints, the members of a snapshot ensemble, are never
            deleted.
        cycle_mult: Each cycle is this many times as long as the one before it (`T_mult` of
            CosineAnnealingWarmRestarts).
        verify_before_delete: Read a new checkpoint back from the disk and compare it, before anything older
            is deleted or replaced. About doubles the I/O of a save that deletes or replaces something.

    Raises:
        ValueError: A value is out of range, or two values contradict each other.
        TypeError: A value is of the wrong type.

    Example:
        >>> from fastckpt import CheckpointConfig
        >>> CheckpointConfig("runs/a", save_total_limit=3, keep_every=1000).metric_name
        'val_loss'
    """

    checkpoint_dir: str | os.PathLike[str] = "checkpoints"
    save_total_limit: int | None = 5
    save_best_only: bool = False
    metric_name: str | None = "val_loss"
    metric_mode: Literal["min", "max"] = "min"
    save_optimizer: bool = True
    save_rng_state: bool = True
    keep_every: int | None = None
    save_every_steps: int | None = None
    save_every_secs: float | None = None
    save_when: Mapping[str, Condition] | None = None
    cycle_steps: int | None = None
    cycle_mult: int = 1
    verify_before_delete: bool = True

    def __post_init__(self) -> None:
        """Check each value, then those that depend on each other."""
        if not isinstance(self.checkpoint_dir, (str, os.PathLike)):
            raise TypeError(f"checkpoint_dir must be a path, not {self.checkpoint_dir!r}")
        for name in ("save_total_limit", "keep_every", "save_every_steps", "cycle_steps"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, _positive(name, value, ", or None"))
        self.cycle_mult = _positive("cycle_mult", self.cycle_mult, "")
        for name in ("save_best_only", "save_optimizer", "save_rng_state", "verify_before_delete"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if self.metric_name is not None and not isinstance(self.metric_name, str):
            raise TypeError(f"metric_name must be a string or None, not {self.metric_name!r}")
        if self.metric_mode not in ("min", "max"):
            raise ValueError(f"metric_mode must be 'min' or 'max', not {self.metric_mode!r}")
        if self.save_every_secs is not None:
            self.save_every_secs = _seconds(self.save_every_secs)
        if self.save_when is not None:
            self.save_when = _conditions(self.save_when)
        self._check_together()

    def _check_together(self) -> None:
        if self.save_best_only and self.metric_name is None:
            raise ValueError("save_best_only needs a metric_name, which chooses the best")
        if self.save_best_only and self.cycle_steps is not None:
            raise ValueError(
                "save_best_only and cycle_steps exclude each other: an ensemble needs the end of every "
                "cycle, which is seldom the best checkpoint"
            )
        if self.cycle_mult != 1 and self.cycle_steps is None:
            raise ValueError("cycle_mult needs cycle_steps, the length of the first cycle")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for a checkpoint."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["checkpoint_dir"] = os.fsdecode(self.checkpoint_dir)
        if self.save_when is not None:
            values["save_when"] = dict(self.save_when)
        return values

    @property
    def directory(self) -> str:
        """The directory as a string."""
        return os.fsdecode(self.checkpoint_dir)

    def ends_cycle(self, step: int) -> bool:
        """Whether a cycle of the learning rate ends with this step."""
        if self.cycle_steps is None or step < 1:
            return False
        if self.cycle_mult == 1:
            return step % self.cycle_steps == 0
        end, length = 0, self.cycle_steps
        while end < step:
            end += length
            length *= self.cycle_mult
        return end == step


def _positive(name: str, value: SupportsIndex, alternative: str) -> int:
    message = f"{name} must be a whole number of at least 1{alternative}, not {value!r}"
    if isinstance(value, bool):
        raise TypeError(message)
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(message) from None
    if number < 1:
        raise ValueError(message)
    return number


def _seconds(value: Any) -> float:
    message = f"save_every_secs must be a number of seconds above 0, or None, not {value!r}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(message)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(message)
    return float(value)


def _conditions(conditions: Any) -> dict[str, Condition]:
    if not isinstance(conditions, Mapping):
        raise TypeError(f"save_when must map metric names to conditions, not {conditions!r}")
    checked: dict[str, Condition] = {}
    for name, condition in conditions.items():
        if not isinstance(name, str):
            raise TypeError(f"save_when must map metric names to conditions, not {name!r}")
        message = (
            f"save_when[{name!r}] must be a comparison and a number, such as ('<', 2.5), "
            f"not {condition!r}"
        )
        if not isinstance(condition, (tuple, list)) or len(condition) != 2:
            raise TypeError(message)
        comparison, threshold = condition
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
            raise TypeError(message)
        if comparison not in _OPERATORS or math.isnan(threshold):
            raise ValueError(message)
        checked[name] = (comparison, float(threshold))
    return checked
