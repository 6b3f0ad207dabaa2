"""The policies of a configuration that say when to save."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping
from typing import Any

from .config import CheckpointConfig

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Triggers:
    """Says whether a save is due.

    Args:
        config: The policies.
        metrics: Those of the last checkpoint: a condition that they meet does not ask for another save.
    """

    def __init__(self, config: CheckpointConfig, metrics: Mapping[str, Any]) -> None:
        self._config = config
        self._saved_at = time.monotonic()
        self._fulfilled = {
            name: name in metrics and _holds(condition, metrics[name])
            for name, condition in (config.save_when or {}).items()
        }
        # The step at which each condition was first met, so that asking twice gives the same answer.
        self._crossed: dict[str, int] = {}

    @property
    def is_any_set(self) -> bool:
        """Whether the configuration has any policy."""
        config = self._config
        policies = (config.save_every_steps, config.save_every_secs, config.cycle_steps)
        return any(policy is not None for policy in policies) or bool(config.save_when)

    @property
    def need_agreement(self) -> bool:
        """Whether ranks may answer differently, because each has its own clock."""
        return self._config.save_every_secs is not None

    def due(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether any policy asks for a save after this step."""
        config = self._config
        # Every condition is evaluated: each has to see its metric.
        crossed = [self._crosses(name, step, metrics) for name in self._fulfilled]
        every = config.save_every_steps
        return (
            any(crossed)
            or (every is not None and step > 0 and step % every == 0)
            or config.ends_cycle(step)
            or self._is_time()
        )

    def saved(self) -> None:
        """Restart the timer of `save_every_secs`."""
        self._saved_at = time.monotonic()

    def _is_time(self) -> bool:
        secs = self._config.save_every_secs
        return secs is not None and time.monotonic() - self._saved_at >= secs

    def _crosses(self, name: str, step: int, metrics: Mapping[str, float]) -> bool:
        if name in metrics:
            holds = _holds((self._config.save_when or {})[name], metrics[name])
            if holds and not self._fulfilled[name]:
                self._crossed[name] = step
            self._fulfilled[name] = holds
        return self._crossed.get(name) == step


def _holds(condition: tuple[str, float], value: float) -> bool:
    comparison, threshold = condition
    # NaN meets no condition.
    return _COMPARE[comparison](value, threshold)
