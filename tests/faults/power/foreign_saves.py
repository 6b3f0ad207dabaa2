"""Checkpoints that another tool put there and never synced: a copy or a prune then answers for them."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from tests.faults.power.copy_plan import (
    RANKS,
    CopyPlan,
    checkpoint_name,
    model_name,
    parts_of_step,
)
from tests.faults.power.copy_saves import Copier, Pruner, copy, prune
from tests.faults.power.recording import Clock
from tests.faults.power.verdicts import LOST, Moment, Violation
from tests.specimens import assert_same

import fastckpt

_ROUNDS = 8
_PRUNES = 0.5


class ForeignSaves:
    """Step after step that comes by cp; each is then copied once more, or is what a prune leaves."""

    def __init__(
        self, generator: random.Random, copier: Copier = copy, pruner: Pruner = prune
    ) -> None:
        self._copier = copier
        self._pruner = pruner
        self._plan = CopyPlan(generator)
        self._steps = self._plan.steps[:_ROUNDS]
        self._prunes = [generator.random() < _PRUNES for _ in self._steps]

    def work(self, directory: Path, clock: Clock) -> None:
        sources = directory.parent / "sources"
        self._plan.make_sources(sources)
        source = sources / str(self._plan.steps[-1])
        for step, prunes in zip(self._steps, self._prunes, strict=True):
            for name in _names(step):
                shutil.copy2(source / name, directory / name)
            clock.begin()
            if prunes:
                self._pruner(directory, 1)
            else:
                self._copier(source, directory, (step,))
            clock.acknowledge()

    def check(self, directory: Path, moment: Moment) -> str:
        """What was copied is there, until something newer is that a prune has read and left."""
        copied = [
            step
            for step, prunes in zip(self._steps[: moment.acknowledged], self._prunes, strict=False)
            if not prunes
        ]
        if not copied:
            return "nothing yet"
        for is_good in (self._is_good_step, self._is_good_checkpoint):
            good = [step for step in self._steps if is_good(directory, step)]
            if max(good, default=0) < copied[-1]:
                raise Violation(LOST, f"step {copied[-1]}, {is_good.__name__}: {good}")
        return moment.name(moment.begun if self._steps[moment.begun - 1] in good else 0)

    def _is_good_step(self, directory: Path, step: int) -> bool:
        try:
            for rank in RANKS:
                model, _, _ = fastckpt.load_checkpoint(
                    directory, step, "cpu", load_optimizer=True, rank=rank, world_size=len(RANKS)
                )
                assert_same(model, self._plan.model(step))
        except Exception:
            # Whatever the system has made of what was not synced.
            return False
        return True

    def _is_good_checkpoint(self, directory: Path, step: int) -> bool:
        try:
            found = fastckpt.load(directory / checkpoint_name(step))
            assert_same(found["model_state_dict"], self._plan.model(step))
        except Exception:
            return False
        return True


def _names(step: int) -> list[str]:
    ranks = [checkpoint_name(step, 1), checkpoint_name(step)]
    return [*parts_of_step(step), model_name(step), *ranks]
