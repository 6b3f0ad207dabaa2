"""What a manager is made to save, and what its directory has to hold then: by the rules of the docs alone.

Nothing of the manager's own code is asked: this is what it is judged by.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from tests.specimens import fill

import fastckpt

SAVES = 14
BEST = "best_model.pt"
METRIC = "val_loss"
# Checkpoints that no limit touches: multiples of this step, in some runs.
_KEEP_EVERY = 40
_STEPS_BETWEEN = 10
# The same step once more, or after a restart with a new manager.
_AGAIN, _RESTARTS = 0.2, 0.2
_NBYTES_MIN, _NBYTES_MAX = 1_000, 200_000
# How a metric compares with the best so far, and how often.
_VALUES = {"better": 0.3, "worse": 0.5, "equal": 0.1, "nan": 0.1}


@dataclass(frozen=True)
class Save:
    """One save of a manager.

    Attributes:
        number: Which one, from 1 on.
        step: Its step; some are saved twice.
        metric: Its value of the metric; NaN where there is none yet.
        restarts: Whether a new manager makes it.
        rank_first: Whether another rank saves before rank 0.
        seed: Of its tensors.
        numels: How large they are.
    """

    number: int
    step: int
    metric: float
    restarts: bool
    rank_first: bool
    seed: int
    numels: tuple[int, int]

    @property
    def epoch(self) -> int:
        return self.step // 50

    @property
    def entry(self) -> dict[str, Any]:
        """Its entry in the history."""
        return {"epoch": self.epoch, "step": self.step, METRIC: self.metric}

    @functools.cached_property
    def parts(self) -> dict[str, dict[str, Any]]:
        """The states of the objects of the run."""
        model, moment = (fill(torch.uint8, n, self.seed + n) for n in self.numels)
        return {
            "model": {"number": self.number, "wte.weight": model},
            "optimizer": {"number": self.number, "state": {0: {"exp_avg": moment}}},
            "scheduler": {"last_epoch": self.number},
        }

    @property
    def extra_state(self) -> dict[str, Any]:
        """The place in the data."""
        return {"shard": self.number, "permutation": torch.arange(self.number)}

    def name(self, rank: int = 0) -> str:
        """Return what a rank's file is called."""
        of_rank = f"_rank{rank}" if rank else ""
        return f"checkpoint_epoch{self.epoch:04d}_step{self.step:08d}{of_rank}.pt"

    def random_seed(self, rank: int) -> int:
        """Return what the random number generators of a rank begin with."""
        return 10 * self.number + rank


@dataclass(frozen=True)
class Held:
    """What a directory holds.

    Attributes:
        steps: The number of the save of each step that is there.
        best: Of which save `best_model.pt` is; 0 where it is not there.
    """

    steps: dict[int, int] = field(default_factory=dict)
    best: int = 0

    @property
    def newest(self) -> int:
        """The save of the newest step; 0 for none."""
        return self.steps[max(self.steps)] if self.steps else 0


class ManagerPlan:
    """A run, drawn at random: how it is configured, and what it saves.

    Attributes:
        world_size: How many ranks save.
        saves: By number, with one more than is recorded: the next save after the last.
    """

    def __init__(self, generator: random.Random) -> None:
        self.world_size = generator.choice([1, 2])
        self._mode: Literal["min", "max"] = generator.choice(["min", "max"])
        self._limit = generator.choice([1, 1, 2, 3])
        self._keep_every = generator.choice([None, None, _KEEP_EVERY])
        self._proves = generator.random() < 0.7
        self.saves: dict[int, Save] = {}
        for number in range(1, SAVES + 2):
            self.saves[number] = self._draw(number, generator)

    def config(self, directory: Any) -> fastckpt.CheckpointConfig:
        """Return the configuration of a manager in a directory."""
        return fastckpt.CheckpointConfig(
            directory,
            save_total_limit=self._limit,
            metric_name=METRIC,
            metric_mode=self._mode,
            keep_every=self._keep_every,
            verify_before_delete=self._proves,
        )

    def _draw(self, number: int, generator: random.Random) -> Save:
        step = 0 if number == 1 else self.saves[number - 1].step
        if number == 1 or generator.random() > _AGAIN:
            step += _STEPS_BETWEEN
        ratio = _NBYTES_MAX / _NBYTES_MIN
        return Save(
            number=number,
            step=step,
            metric=self._draw_metric(number, generator),
            restarts=generator.random() < _RESTARTS,
            rank_first=generator.random() < 0.5,
            seed=generator.getrandbits(32),
            numels=(
                int(_NBYTES_MIN * ratio ** generator.random()),
                int(_NBYTES_MIN * ratio ** generator.random()),
            ),
        )

    def _draw_metric(self, number: int, generator: random.Random) -> float:
        best = self._best_metric(range(1, number))
        kind = generator.choices(list(_VALUES), list(_VALUES.values()))[0]
        if kind == "nan":
            return math.nan
        better = -1 if self._mode == "min" else 1
        change = {"better": better, "worse": -better, "equal": 0}[kind]
        return (5.0 if best is None else best) + change * generator.uniform(0.1, 1.0)

    def _best_metric(self, numbers: Iterable[int]) -> float | None:
        best = self.best_of(numbers)
        return self.saves[best].metric if best else None

    def metric_of_best(self, best: int) -> float:
        """Return the metric of the best save: infinite where there is none."""
        if best:
            return self.saves[best].metric
        return math.inf if self._mode == "min" else -math.inf

    # What has to be there.

    def best_of(self, numbers: Iterable[int]) -> int:
        """Return the save with the best metric: of equals the first one given; 0 for none."""
        best = 0
        sign = 1 if self._mode == "min" else -1
        for number in numbers:
            value = self.saves[number].metric
            if math.isnan(value):
                continue
            if not best or sign * value < sign * self.saves[best].metric:
                best = number
        return best

    def best_in(self, held: Held) -> int:
        """Return the best save of a directory; of equals the one that has the name already."""
        named = [held.best] if held.best else []
        return self.best_of([*named, *(held.steps[step] for step in sorted(held.steps))])

    def after(self, held: Held, number: int) -> Held:
        """Return what is there once a save has returned.

        The newest `save_total_limit` steps stay, the one that was saved, the multiples of
        `keep_every`, and the step of the best one, even where that was saved again and worse since.
        """
        step = self.saves[number].step
        steps = {**held.steps, step: number}
        best = self.best_in(Held(steps, held.best))
        kept = {step, *sorted(steps)[-self._limit :]}
        if best:
            kept.add(self.saves[best].step)
        if self._keep_every:
            kept |= {each for each in steps if each % self._keep_every == 0}
        return Held({each: saved for each, saved in steps.items() if each in kept}, best)

    def after_all(self, last: int) -> Held:
        """Return what is there after the saves up to one of them."""
        held = Held()
        for number in range(1, last + 1):
            held = self.after(held, number)
        return held

    def history(self, number: int, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the history that a save has: a step that is saved again has one entry."""
        own = self.saves[number]
        others = [one for one in before if (one["epoch"], one["step"]) != (own.epoch, own.step)]
        return [*others, own.entry]

    def history_of(self, number: int) -> list[dict[str, Any]]:
        """Return the history of a save that followed upon all those before it."""
        history: list[dict[str, Any]] = []
        for each in range(1, number + 1):
            history = self.history(each, history)
        return history

    def contents(
        self, number: int, history: list[dict[str, Any]], best_metric: float
    ) -> dict[str, Any]:
        """Return what a checkpoint has to hold, but for what follows from when and where it was made."""
        save = self.saves[number]
        return {
            "epoch": save.epoch,
            "global_step": save.step,
            "model_state_dict": save.parts["model"],
            "optimizer_state_dict": save.parts["optimizer"],
            "scheduler_state_dict": save.parts["scheduler"],
            "best_metric": best_metric,
            "metrics": {METRIC: save.metric},
            **as_lists(history),
            "model_config": {"width": number},
            "extra_state": save.extra_state,
        }

    def contents_of(self, number: int) -> dict[str, Any]:
        """Return what a save holds that followed upon all those before it."""
        best = self.metric_of_best(self.best_of(range(1, number + 1)))
        return self.contents(number, self.history_of(number), best)


def as_lists(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a history as it stands in a checkpoint: a list for each metric, and the epochs and steps."""
    metrics = {METRIC: [one[METRIC] for one in history]} if history else {}
    return {
        "metrics_history": metrics,
        "history_epochs": [one["epoch"] for one in history],
        "history_steps": [one["step"] for one in history],
    }
