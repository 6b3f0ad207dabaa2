"""Checkpoints of a run that grows elsewhere: copied onto the disk step by step, and pruned there."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import torch
from tests.faults.power.copy_plan import (
    BEST,
    METRIC,
    OPERATIONS,
    RANKS,
    Copy,
    CopyPlan,
    Holding,
    Operation,
    checkpoint_name,
)
from tests.faults.power.recording import Clock
from tests.faults.power.verdicts import DAMAGED, LEFT_BEHIND, LOST, NOT_ALIVE, Moment, Violation
from tests.specimens import assert_same

import fastckpt

# After so many of the crash states the same is done again, or the next; it costs more than the look.
_GOING_ON = 0.25
_STALE = re.compile(r"\.fastckpt-\d+-\d+\.tmp")
_MODEL = re.compile(r"model_(\d{6})\.pt")
_CHECKPOINT = re.compile(r"checkpoint_epoch0001_step(\d{8})\.pt")

# Some of what was to be copied or deleted is there or gone, and the rest is not.
IN_PART = "in part"

# As copy_checkpoint: source, destination, steps; none for all.
Copier = Callable[[Path, Path, tuple[int, ...]], None]
# As prune: directory, how many of the newest stay.
Pruner = Callable[[Path, int], None]


def copy(source: Path, to: Path, steps: tuple[int, ...]) -> None:
    """Copy as fastckpt does; whatever is not copied is an error."""
    report = fastckpt.copy_checkpoint(source, to, steps=steps, threads=1)
    assert report.ok, report


def prune(directory: Path, keep: int) -> None:
    """Prune as fastckpt does; whatever is not deleted is an error."""
    report = fastckpt.prune(directory, keep=keep, metric=METRIC)
    assert report.ok, report


class CopySaves:
    """A row of copies and prunes, drawn at random."""

    def __init__(
        self, generator: random.Random, copier: Copier = copy, pruner: Pruner = prune
    ) -> None:
        self._generator = generator
        self._copier = copier
        self._pruner = pruner
        self._plan = CopyPlan(generator)

    def work(self, directory: Path, clock: Clock) -> None:
        sources = _sources(directory)
        self._plan.make_sources(sources)
        for number in range(1, OPERATIONS + 1):
            clock.begin()
            self._do(self._plan.operations[number], directory, self._copier, self._pruner)
            clock.acknowledge()

    def _do(
        self,
        operation: Operation,
        directory: Path,
        copier: Copier = copy,
        pruner: Pruner = prune,
    ) -> None:
        if isinstance(operation, Copy):
            copier(_sources(directory) / str(operation.last), directory, operation.steps)
        else:
            pruner(directory, operation.keep)

    # Looking at what a power cut left.

    def check(self, directory: Path, moment: Moment) -> str:
        before, after = (
            self._plan.after_all(number) for number in (moment.acknowledged, moment.begun)
        )
        self._check_names(directory, moment)
        found = self._check_files(directory, before, after)
        self._check_found(found, before, after)
        self._check_readers(directory, found)
        if self._generator.random() < _GOING_ON:
            self._check_going_on(directory, found, moment)
        if moment.acknowledged == moment.begun:
            return "acknowledged"
        if found == after:
            return "new"
        return moment.name(0) if found == before else IN_PART

    def _check_names(self, directory: Path, moment: Moment) -> None:
        ever = [self._plan.after_all(number).names() for number in range(1, moment.begun + 1)]
        # ext4 makes the first one, for its own repairs.
        expected = {"lost+found"}.union(*ever)
        for name in os.listdir(directory):
            if name not in expected and not _STALE.fullmatch(name):
                raise Violation(LEFT_BEHIND, name)

    def _check_files(self, directory: Path, before: Holding, after: Holding) -> Holding:
        """Each file is that of the source, to the bit; returns of which checkpoints they are."""
        names = {*os.listdir(directory)} - {"lost+found"}
        visible = {name for name in names if not _STALE.fullmatch(name)}
        for name in visible - {BEST}:
            self._check_file(directory, name, name)
        best = 0
        if BEST in visible:
            bests = {held.best for held in (before, after) if held.best}
            best = next((step for step in bests if self._is_best(directory, step)), 0)
            if not best:
                raise Violation(DAMAGED, f"{BEST} is none of the checkpoints of steps {bests}")
        steps = {int(found[1]) for name in visible if (found := _MODEL.fullmatch(name))}
        checkpoints = {int(found[1]) for name in visible if (found := _CHECKPOINT.fullmatch(name))}
        held = Holding(frozenset(steps), frozenset(checkpoints), best)
        if held.names() - visible:
            raise Violation(DAMAGED, f"parts are missing: {sorted(held.names() - visible)}")
        return held

    def _check_file(self, directory: Path, name: str, source: str) -> None:
        path, original = directory / name, self._newest_source(directory) / source
        if path.read_bytes() != original.read_bytes():
            nbytes = (path.stat().st_size, original.stat().st_size)
            raise Violation(DAMAGED, f"{name} has other bytes than its source, sizes {nbytes}")
        if path.stat().st_mtime_ns != original.stat().st_mtime_ns:
            raise Violation(DAMAGED, f"{name} has not the time of its source")

    def _is_best(self, directory: Path, step: int) -> bool:
        try:
            self._check_file(directory, BEST, checkpoint_name(step))
        except Violation:
            return False
        return True

    def _newest_source(self, directory: Path) -> Path:
        """Return the run as it was last: no step was ever saved again."""
        copies = [each for each in self._plan.operations.values() if isinstance(each, Copy)]
        return _sources(directory) / str(copies[-1].last)

    def _check_found(self, found: Holding, before: Holding, after: Holding) -> None:
        """What was there and is to stay is there, and nothing that was deleted."""
        for kind in ("steps", "checkpoints"):
            here, had, will_have = (getattr(held, kind) for held in (found, before, after))
            if lost := (had & will_have) - here:
                raise Violation(LOST, f"{kind} {sorted(lost)}: {found}")
            if stayed := here - (had | will_have):
                raise Violation(LEFT_BEHIND, f"{kind} {sorted(stayed)} are there again: {found}")
        if found.best not in {before.best, after.best}:
            raise Violation(LOST, f"{BEST} is of {found.best}: {before} to {after}")

    def _check_readers(self, directory: Path, found: Holding) -> None:
        """Whoever looks for a checkpoint finds the newest one, whole."""
        try:
            if found.steps:
                step = fastckpt.find_last_good_step(directory, world_size=len(RANKS), verify="full")
                assert step == fastckpt.find_last_step(directory) == max(found.steps)
                for rank in RANKS:
                    self._check_step(directory, step, rank)
            if found.checkpoints:
                newest = directory / checkpoint_name(max(found.checkpoints))
                config = fastckpt.CheckpointConfig(directory, metric_name=METRIC)
                manager = fastckpt.CheckpointManager(config, None, None, None)
                assert manager.get_latest_checkpoint() == newest
                state = torch.load(newest, weights_only=True)["model_state_dict"]
                assert_same(state, self._plan.model(max(found.checkpoints)))
        except Exception as error:
            raise Violation(DAMAGED, f"{found}: {error!r}") from error

    def _check_step(self, directory: Path, step: int, rank: int) -> None:
        model, optimizer, meta = fastckpt.load_checkpoint(
            directory, step, "cpu", load_optimizer=True, rank=rank, world_size=len(RANKS)
        )
        assert_same(model, self._plan.model(step))
        assert (optimizer["rank"], meta["step"]) == (rank, step)

    def _check_going_on(self, directory: Path, found: Holding, moment: Moment) -> None:
        """The same again does the rest; after what was done, the next works."""
        is_done = moment.acknowledged == moment.begun
        number = moment.begun + is_done
        try:
            self._do(self._plan.operations[number], directory)
            assert fastckpt.collect_garbage(directory, incomplete=True).ok
        except Exception as error:
            raise Violation(NOT_ALIVE, f"{self._plan.operations[number]}: {error!r}") from error
        held = self._plan.after(found, number)
        self._check_found(self._check_files(directory, held, held), held, held)
        hidden = [name for name in os.listdir(directory) if name.startswith(".")]
        if hidden:
            raise Violation(LEFT_BEHIND, f"after {self._plan.operations[number]}: {hidden}")


def _sources(directory: Path) -> Path:
    """Return where the run lies: on another disk, which keeps its power."""
    return directory.parent / "sources"
