"""A run that grows elsewhere, and what is copied of it and pruned: what has to be there after each.

By the rules of the docs alone; nothing of the code is asked that is judged by it.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tests.specimens import fill

import fastckpt
from fastckpt._steps import save_id

RANKS = range(3)
METRIC = "val_loss"
BEST = "best_model.pt"
OPERATIONS = 10
_STEPS_BETWEEN = 10
_PRUNES = 0.35
# Of the copies, those of all that there is; the others are of one step.
_OF_ALL = 0.6
_NBYTES_MIN, _NBYTES_MAX = 1_000, 100_000
_FIRST_SAVE_ID = 10**13


@dataclass(frozen=True)
class Copy:
    """A copy of a run as it was when it had come to step `last`: all of it, or some steps."""

    last: int
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Prune:
    """All but the newest `keep` and the best are deleted."""

    keep: int


Operation = Copy | Prune


@dataclass(frozen=True)
class Holding:
    """What a directory holds.

    Attributes:
        steps: Steps of nanochat's.
        checkpoints: Steps of a manager's checkpoints.
        best: The step that `best_model.pt` is of; 0 where it is not there.
    """

    steps: frozenset[int] = field(default_factory=frozenset)
    checkpoints: frozenset[int] = field(default_factory=frozenset)
    best: int = 0

    def names(self) -> set[str]:
        """Return the names of all its files."""
        names = {name for step in self.steps for name in [*parts_of_step(step), model_name(step)]}
        for step in self.checkpoints:
            names |= {checkpoint_name(step, 1), checkpoint_name(step)}
        return names | ({BEST} if self.best else set())


def model_name(step: int) -> str:
    """Return the name of the file that makes the others a step."""
    return f"model_{step:06d}.pt"


def parts_of_step(step: int) -> list[str]:
    """Return the names of the other files of a step."""
    shards = [f"optim_{step:06d}_rank{rank}.pt" for rank in RANKS]
    return [*shards, f"meta_{step:06d}.json", f"manifest_{step:06d}.json"]


def checkpoint_name(step: int, rank: int = 0) -> str:
    """Return the name of a manager's checkpoint, or of the file of another rank."""
    of_rank = f"_rank{rank}" if rank else ""
    return f"checkpoint_epoch0001_step{step:08d}{of_rank}.pt"


class CopyPlan:
    """Copies and prunes, drawn at random.

    Attributes:
        operations: By number from 1 on, with one more than is recorded.
        steps: All steps of the run.
    """

    def __init__(self, generator: random.Random) -> None:
        self.operations: dict[int, Operation] = {}
        last, held = 0, Holding()
        self._metrics: dict[int, float] = {}
        for number in range(1, OPERATIONS + 2):
            if len(held.steps) > 2 and generator.random() < _PRUNES:
                operation: Operation = Prune(generator.choice([1, 1, 2]))
            else:
                for _ in range(generator.choice([1, 1, 2])):
                    last += _STEPS_BETWEEN
                    self._metrics[last] = generator.random()
                one = generator.randrange(_STEPS_BETWEEN, last + 1, _STEPS_BETWEEN)
                steps = () if number == 1 or generator.random() < _OF_ALL else (one,)
                operation = Copy(last, steps)
            self.operations[number] = operation
            held = self.after(held, number)
        self.steps = list(self._metrics)
        self._seeds = {step: generator.getrandbits(32) for step in self.steps}

    def _best_of(self, steps: Collection[int]) -> int:
        return min(steps, key=self._metrics.__getitem__)

    def after(self, held: Holding, number: int) -> Holding:
        """Return what is there once an operation has returned."""
        operation = self.operations[number]
        if isinstance(operation, Copy):
            every = range(_STEPS_BETWEEN, operation.last + 1, _STEPS_BETWEEN)
            new = operation.steps or every
            best = held.best if operation.steps else self._best_of(every)
            return Holding(held.steps.union(new), held.checkpoints.union(new), best)
        steps, checkpoints = (
            frozenset([*sorted(all_steps)[-operation.keep :], self._best_of(all_steps)])
            for all_steps in (held.steps, held.checkpoints)
        )
        named = {held.best} if held.best else set()
        return Holding(steps, checkpoints | named, held.best)

    def after_all(self, last: int) -> Holding:
        """Return what is there after the operations up to one of them."""
        held = Holding()
        for number in range(1, last + 1):
            held = self.after(held, number)
        return held

    # The run.

    def make_sources(self, directory: Path) -> None:
        """Make the run as it was at each of its steps: directories by step."""
        growing = directory / "growing"
        config = fastckpt.CheckpointConfig(growing, save_total_limit=None, metric_name=METRIC)
        model = _Model()
        manager = fastckpt.CheckpointManager(config, model, None, None)
        for step, metric in self._metrics.items():
            self._save(growing, step)
            model.state = self.model(step)
            fastckpt.save({"rank": 1, "step": step}, growing / checkpoint_name(step, 1))
            manager.save(1, step, {METRIC: metric})
            # The same files by other names, so that the best stays a second name of one.
            shutil.copytree(growing, directory / str(step), copy_function=os.link)

    def _save(self, directory: Path, step: int) -> None:
        with save_id.agreed(_FIRST_SAVE_ID + step, len(RANKS)):
            for rank in reversed(RANKS):
                fastckpt.save_checkpoint(
                    directory,
                    step,
                    self.model(step),
                    {"rank": rank, "exp_avg": self._weight(step, rank + 1)},
                    {"step": step, METRIC: self._metrics[step]},
                    rank,
                )

    def model(self, step: int) -> dict[str, Any]:
        """Return the model of a step."""
        return {"step": step, "wte.weight": self._weight(step, 0)}

    def _weight(self, step: int, place: int) -> Any:
        generator = random.Random(self._seeds[step] + place)
        numel = int(_NBYTES_MIN * (_NBYTES_MAX / _NBYTES_MIN) ** generator.random())
        return fill(torch.uint8, numel, seed=self._seeds[step] + place)


class _Model:
    """A model that has the state that it was given."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state
