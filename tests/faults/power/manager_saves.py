"""A manager that saves and deletes: the newest good checkpoint and the best one, whatever is cut short."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tests.faults.power.manager_plan import BEST, METRIC, SAVES, Held, ManagerPlan, Save, as_lists
from tests.faults.power.recording import Clock
from tests.faults.power.verdicts import DAMAGED, LEFT_BEHIND, LOST, NOT_ALIVE, Moment, Violation
from tests.specimens import assert_same

import fastckpt
from fastckpt._steps import save_id
from fastckpt.training import manager as manager_module
from fastckpt.training.restoring import rank_states

_FIRST_SAVE_ID = 10**13
# After so many of the crash states the next save is tried; it costs more than the look.
_NEXT_SAVES = 0.3
_STALE = re.compile(r"\.fastckpt-\d+-\d+\.tmp")
# What follows from when and where a checkpoint was made.
_UNKNOWN = {"timestamp", "config", "rng_states", "class_names", "optimizer_param_names"}

# The new checkpoint is there, and `best_model.pt` is not of it yet although it is the best.
BEST_UNNAMED = "new, best not named"
# What the save before has deleted is still there, or again.
NOT_DELETED = "acknowledged, not deleted"

# As CheckpointManager: the configuration, then model, optimizer and scheduler.
Maker = Callable[..., fastckpt.CheckpointManager]


class _Part:
    """An object of a training run: it has a state."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


class _Run:
    """One rank of a training run."""

    def __init__(self, plan: ManagerPlan, directory: Path, rank: int, make: Maker) -> None:
        self.rank = rank
        self._plan = plan
        self.parts = {name: _Part() for name in ("model", "optimizer", "scheduler")}
        with self._as_rank():
            self.manager = make(plan.config(directory), *self.parts.values())

    @contextmanager
    def _as_rank(self) -> Iterator[None]:
        """Be this rank of so many, without the processes of the others."""

        def rank_and_world_size() -> tuple[int, int]:
            return self.rank, self._plan.world_size

        with (
            mock.patch.object(manager_module, "rank_and_world_size", rank_and_world_size),
            mock.patch.object(rank_states, "rank_and_world_size", rank_and_world_size),
        ):
            yield

    def save(self, save: Save) -> None:
        for name, state in save.parts.items():
            self.parts[name].state = state
        random.seed(save.random_seed(self.rank))
        torch.manual_seed(save.random_seed(self.rank))
        with self._as_rank(), save_id.agreed(_FIRST_SAVE_ID + save.number, self._plan.world_size):
            self.manager.save(
                save.epoch,
                save.step,
                {METRIC: save.metric},
                model_config={"width": save.number},
                extra_state=save.extra_state,
            )

    def load(self, path: Path | None = None) -> Any:
        with self._as_rank():
            return self.manager.load(path)


class ManagerSaves:
    """A row of saves, drawn at random."""

    def __init__(self, generator: random.Random, make: Maker = fastckpt.CheckpointManager) -> None:
        self._generator = generator
        self._make = make
        self._plan = ManagerPlan(generator)
        self._saves = self._plan.saves

    # Saving.

    def work(self, directory: Path, clock: Clock) -> None:
        runs = self._start(directory, self._make)
        for number in range(1, SAVES + 1):
            save = self._saves[number]
            if save.restarts:
                runs = self._start(directory, self._make)
            clock.begin()
            for run in self._in_turn(runs, save):
                run.save(save)
                clock.finish_part()
            clock.acknowledge()

    def _start(self, directory: Path, make: Maker = fastckpt.CheckpointManager) -> list[_Run]:
        return [_Run(self._plan, directory, rank, make) for rank in range(self._plan.world_size)]

    def _in_turn(self, runs: list[_Run], save: Save) -> list[_Run]:
        return runs[::-1] if save.rank_first else runs

    # Looking at what a power cut left.

    def check(self, directory: Path, moment: Moment) -> str:
        found = self._check_files(directory, moment)
        outcome = self._check_held(found, moment)
        self._check_ranks(directory, found, moment)
        if found.steps:
            report = fastckpt.verify(directory)
            if not report.ok:
                raise Violation(DAMAGED, f"verify says {report}")
        self._check_new_manager(directory, found)
        if self._generator.random() < _NEXT_SAVES:
            self._check_next_save(directory, found, moment)
        return outcome

    def _names(self, moment: Moment, rank: int = 0) -> dict[str, list[int]]:
        """Return which saves went to which name."""
        names: dict[str, list[int]] = {}
        for number in range(1, moment.begun + 1):
            names.setdefault(self._saves[number].name(rank), []).append(number)
        return names

    def _check_files(self, directory: Path, moment: Moment) -> Held:
        """Whatever has a name is a save, whole; returns which are there."""
        checkpoints = self._names(moment)
        of_ranks = self._names(moment, 1) if self._plan.world_size > 1 else {}
        steps, best = {}, 0
        for name in os.listdir(directory):
            if name == BEST:
                best = self._read(directory / name)
            elif name in checkpoints:
                number = self._read(directory / name)
                if number not in moment.may_hold(checkpoints[name]):
                    raise Violation(LOST, f"{name} holds save {number} at {moment}")
                steps[self._saves[number].step] = number
            # ext4 makes it, for its own repairs.
            elif not (name in of_ranks or _STALE.fullmatch(name) or name == "lost+found"):
                raise Violation(LEFT_BEHIND, name)
        return Held(steps, best)

    def _read(self, path: Path) -> int:
        """Return which save a file is, to the bit."""
        try:
            found = torch.load(path, weights_only=True)
            number = int(found["model_state_dict"]["number"])
            self._compare(found, self._plan.contents_of(number))
            assert_same(fastckpt.load(path), found)
        except Exception as error:
            nbytes = path.stat().st_size
            raise Violation(DAMAGED, f"{path.name} ({nbytes} bytes): {error!r}") from error
        return number

    def _compare(self, found: dict[str, Any], expected: dict[str, Any]) -> None:
        assert found.keys() == expected.keys() | _UNKNOWN, found.keys()
        assert_same({key: found[key] for key in expected}, expected)

    def _check_held(self, found: Held, moment: Moment) -> str:
        """Nothing that has to stay is gone, and nothing is there that went long ago."""
        before, after = (
            self._plan.after_all(number) for number in (moment.acknowledged, moment.begun)
        )
        is_new = found.steps.get(self._saves[moment.begun].step) == moment.begun
        expected = after if is_new else before
        lost = expected.steps.items() - found.steps.items()
        if lost:
            raise Violation(LOST, f"steps and saves {sorted(lost)} of {expected}: {found}")
        earlier = self._plan.after_all(max(0, moment.acknowledged - 1))
        # What the last save has deleted may be there again, and no more than that.
        may_stay = earlier.steps.items() | before.steps.items() | after.steps.items()
        stayed = found.steps.items() - may_stay
        if stayed:
            raise Violation(LEFT_BEHIND, f"steps and saves {sorted(stayed)} are there again")
        bests = {before.best, after.best} if moment.begun > moment.acknowledged else {after.best}
        if found.best not in (bests if is_new else {before.best}):
            raise Violation(LOST, f"{BEST} is of save {found.best}, may be {bests}: {found}")
        if moment.begun == moment.acknowledged:
            return "acknowledged" if found == after else NOT_DELETED
        if is_new and found.best != after.best:
            return BEST_UNNAMED
        return moment.name(moment.begun if is_new else 0)

    def _check_ranks(self, directory: Path, found: Held, moment: Moment) -> None:
        """What another rank has saved is whole, and there as long as its checkpoint is."""
        if self._plan.world_size == 1:
            return
        for name, numbers in self._names(moment, 1).items():
            allowed = moment.may_hold(numbers)
            number = self._read_rank(directory / name)
            # Of a checkpoint that is gone it may be gone too.
            is_needed = found.steps.get(self._saves[numbers[0]].step, 0) in numbers
            if number not in (allowed if is_needed else {0, *allowed}):
                raise Violation(LOST, f"{name} is of save {number}, may be {allowed}")

    def _read_rank(self, path: Path) -> int:
        if not path.exists():
            return 0
        try:
            found = torch.load(path, weights_only=True)
            assert_same(fastckpt.load(path), found)
            assert found["rank"] == 1
            # Torch keeps the seed in the first eight bytes of its generator's state.
            seed = int(found["rng_states"]["torch"][:8].view(torch.int64))
        except Exception as error:
            raise Violation(DAMAGED, f"{path.name}: {error!r}") from error
        return next((n for n, save in self._saves.items() if save.random_seed(1) == seed), -1)

    def _check_new_manager(self, directory: Path, found: Held) -> None:
        """A new manager takes up history, best and rotation, and loads the newest and the best."""
        run = self._start(directory)[0]
        manager, best = run.manager, self._plan.best_in(found)
        history = self._plan.history_of(found.newest)
        try:
            lists = as_lists(history)
            assert_same(manager.metrics_history, lists["metrics_history"])
            assert manager.history_steps == lists["history_steps"]
            assert_same(manager.best_metric, self._plan.metric_of_best(best))
            assert manager.get_latest_checkpoint() == self._path(directory, found.newest)
            best_path = directory / BEST if best == found.best else self._path(directory, best)
            assert manager.get_best_checkpoint() == (best_path if best else None)
            self._check_loaded(run, found.newest)
            self._check_loaded(run, best, directory / BEST if best == found.best else None)
        except Exception as error:
            raise Violation(NOT_ALIVE, f"a new manager: {error!r}") from error

    def _path(self, directory: Path, number: int) -> Path | None:
        return directory / self._saves[number].name() if number else None

    def _check_loaded(self, run: _Run, number: int, path: Path | None = None) -> None:
        """Load what a save has left."""
        if not number:
            return
        save = self._saves[number]
        resumed = run.load(path)
        assert resumed.skipped == {}, resumed.skipped
        for name, part in run.parts.items():
            assert_same(part.state, save.parts[name])
        assert random.random() == random.Random(save.random_seed(run.rank)).random()
        generator = torch.Generator().manual_seed(save.random_seed(run.rank))
        assert torch.rand(1) == torch.rand(1, generator=generator)
        expected = self._plan.contents_of(number)
        known = expected.keys() & resumed.keys()
        assert len(known) >= 10, resumed.keys()
        assert_same({key: resumed[key] for key in known}, {key: expected[key] for key in known})

    def _check_next_save(self, directory: Path, found: Held, moment: Moment) -> None:
        """The run goes on from here: everything is in order after one more save."""
        save = self._saves[moment.begun + 1]
        of_ranks = self._names(moment, 1)
        there = {name for name in os.listdir(directory) if name in of_ranks}
        for run in self._in_turn(self._start(directory), save):
            run.save(save)
        expected = self._plan.after(found, save.number)
        names = {self._saves[number].name() for number in expected.steps.values()}
        if self._plan.world_size > 1:
            kept = {self._saves[number].name(1) for number in expected.steps.values()}
            names |= kept & there | {save.name(1)}
        names |= {BEST} if expected.best else set()
        different = names ^ ({*os.listdir(directory)} - {"lost+found"})
        if different:
            raise Violation(LEFT_BEHIND, f"or lost after the next save: {sorted(different)}")
        history = self._plan.history(save.number, self._plan.history_of(found.newest))
        best = self._plan.best_of([*filter(None, [self._plan.best_in(found)]), save.number])
        best_metric = self._plan.metric_of_best(best)
        try:
            contents = torch.load(directory / save.name(), weights_only=True)
            self._compare(contents, self._plan.contents(save.number, history, best_metric))
            if expected.best:
                named = torch.load(directory / BEST, weights_only=True)
                assert named["model_state_dict"]["number"] == expected.best
        except Exception as error:
            raise Violation(NOT_ALIVE, f"the next save: {error!r}") from error
