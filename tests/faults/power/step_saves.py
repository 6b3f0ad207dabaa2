"""Whole steps of four ranks: new ones, and one step over and over again."""

from __future__ import annotations

import functools
import itertools
import os
import random
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tests.faults.power.recording import Clock
from tests.faults.power.verdicts import (
    DAMAGED,
    LEFT_BEHIND,
    LOST,
    MIXED,
    NOT_ALIVE,
    Moment,
    Violation,
)
from tests.specimens import assert_same, fill

import fastckpt
from fastckpt._steps import save_id

RANKS = range(4)
_NBYTES_MIN, _NBYTES_MAX = 1_000, 200_000
# After so many of the crash states the next save is tried; it costs more than the look.
_NEXT_SAVES = 0.15
# Save ids are 14 digits; this one makes them long enough to need all of them.
_FIRST_SAVE_ID = 10**13

_HIDDEN = re.compile(r"\.fastckpt-.*\.(tmp|kept)")
_STALE = re.compile(r"\.fastckpt-.*\.tmp")
_ARCHIVE = re.compile(r"(?:model|optim)_(?P<step>\d{6})(?:_rank(?P<rank>\d))?\.pt")
_NAMED_STEP = re.compile(r"newest good step here: (\d+)")

# Outcomes where the old save is the newest whole one, and parts of the new one are in sight: the step
# that was begun is refused, or the save of the same step before is loaded from its hidden names.
STEP_REFUSED = "old, new step refused"
SAVE_KEPT = "old, kept"

# As save_checkpoint: directory, step, model, optimizer, meta, rank.
Writer = Callable[[Path, int, Any, Any, Any, int], None]


class _Way(NamedTuple):
    """How a step is saved."""

    overwrites: bool
    in_threads: bool
    model_first: bool


_WAYS = [_Way(*way) for way in itertools.product([False, True], repeat=3)]
SAVES = 1 + len(_WAYS)


@dataclass(frozen=True)
class _Save:
    """One save of one step: what each rank hands over, and in which order they come."""

    number: int
    step: int
    model: dict[str, Any]
    optimizers: list[dict[str, Any]]
    order: list[int]
    in_threads: bool

    @property
    def meta(self) -> dict[str, Any]:
        return {"step": self.step, "number": self.number, "loss": 1 / self.number}


class StepSaves:
    """A row of saves, drawn at random."""

    def __init__(self, generator: random.Random, writer: Writer = fastckpt.save_checkpoint) -> None:
        self._generator = generator
        self._writer = writer
        # Each way once; the first step is new in any case.
        ways = [_Way(False, False, False), *generator.sample(_WAYS, len(_WAYS))]
        # One more than will be recorded: the next save after the last.
        ways.append(generator.choice(_WAYS))
        self._saves: dict[int, _Save] = {}
        step = 0
        for number, way in enumerate(ways, 1):
            step = step if way.overwrites else step + 10
            self._saves[number] = self._draw(number, step, way)

    def _draw(self, number: int, step: int, way: _Way) -> _Save:
        order = self._generator.sample(RANKS, len(RANKS))
        return _Save(
            number=number,
            step=step,
            model={
                "number": number,
                "wte.weight": self._weight(),
                "lm_head.weight": self._weight(),
            },
            optimizers=[
                {"number": number, "rank": rank, "state": {0: {"exp_avg": self._weight()}}}
                for rank in RANKS
            ],
            # With the model first the step can be found long before it is whole.
            order=sorted(order, key=bool) if way.model_first else order,
            in_threads=way.in_threads,
        )

    def _weight(self) -> torch.Tensor:
        numel = int(_NBYTES_MIN * (_NBYTES_MAX / _NBYTES_MIN) ** self._generator.random())
        return fill(torch.uint8, numel, seed=self._generator.getrandbits(32))

    # Saving.

    def work(self, directory: Path, clock: Clock) -> None:
        for number in range(1, SAVES + 1):
            clock.begin()
            self._save(directory, self._saves[number], clock)
            clock.acknowledge()

    def _save(self, directory: Path, save: _Save, clock: Clock | None = None) -> None:
        """Let all ranks save; returns when all of them have returned."""

        def save_rank(rank: int) -> None:
            optimizer = save.optimizers[rank]
            self._writer(directory, save.step, save.model, optimizer, save.meta, rank)
            if clock is not None:
                clock.finish_part()

        with save_id.agreed(_FIRST_SAVE_ID + save.number, len(RANKS)):
            if not save.in_threads:
                for rank in save.order:
                    save_rank(rank)
                return
            _run_together(functools.partial(save_rank, rank) for rank in save.order)

    # Looking at what a power cut left.

    def check(self, directory: Path, moment: Moment) -> str:
        names = os.listdir(directory)
        self._check_names(names, moment)
        visible = self._check_archives(directory, names, moment)
        found = self._check_newest_good(directory, moment)
        is_last = self._check_last(directory, found, moment)
        self._check_report(directory, moment)
        if self._generator.random() < _NEXT_SAVES:
            self._check_next_save(directory, moment)
        outcome = moment.name(found)
        if outcome == "old" and not is_last:
            return STEP_REFUSED
        return SAVE_KEPT if outcome == "old" and moment.begun in visible else outcome

    def _begun(self, moment: Moment, step: int | None = None) -> list[int]:
        """Return the saves that have begun, of one step or of all."""
        numbers = range(1, moment.begun + 1)
        return [n for n in numbers if step is None or self._saves[n].step == step]

    def _check_names(self, names: list[str], moment: Moment) -> None:
        steps = {self._saves[n].step for n in self._begun(moment)}
        # ext4 makes the first one, for its own repairs.
        expected = {"lost+found", *(name for step in steps for name in _names_of(step))}
        for name in names:
            if name not in expected and not _HIDDEN.fullmatch(name):
                raise Violation(LEFT_BEHIND, name)

    def _check_archives(self, directory: Path, names: list[str], moment: Moment) -> set[int]:
        """Each file by itself is one that was saved; returns of which saves there are any."""
        visible = set()
        for name in names:
            named = _ARCHIVE.fullmatch(name)
            if named is None:
                continue
            try:
                found = torch.load(directory / name)
                number = int(found["number"])
                save = self._saves[number]
                expected = save.optimizers[int(named["rank"])] if named["rank"] else save.model
                assert_same(found, expected)
            except Exception as error:
                raise Violation(DAMAGED, f"{name}: {error!r}") from error
            if number not in self._begun(moment, int(named["step"])):
                raise Violation(MIXED, f"{name} holds save {number}")
            visible.add(number)
        return visible

    def _check_newest_good(self, directory: Path, moment: Moment) -> int:
        """Return which save the newest whole step is of; 0 where there is none."""
        allowed = moment.may_hold(self._begun(moment))
        try:
            step = fastckpt.find_last_good_step(directory, world_size=len(RANKS), verify="full")
        except FileNotFoundError as error:
            if 0 not in allowed:
                raise Violation(LOST, f"no good step, may be {allowed}: {error}") from error
            return 0
        number = self._load(directory, step)
        if number not in allowed:
            raise Violation(LOST, f"the newest good step {step} is save {number}, may be {allowed}")
        return number

    def _load(self, directory: Path, step: int) -> int:
        """Load a step as every rank; returns which save all of it is of."""
        numbers = {self._load_rank(directory, step, rank) for rank in RANKS}
        if len(numbers) != 1:
            raise Violation(MIXED, f"the ranks have loaded step {step} of the saves {numbers}")
        return numbers.pop()

    def _load_rank(self, directory: Path, step: int, rank: int | None) -> int:
        model, optimizer, meta = fastckpt.load_checkpoint(
            directory,
            step,
            "cpu",
            load_optimizer=rank is not None,
            rank=rank or 0,
            world_size=len(RANKS),
        )
        parts = [model, meta, *([] if optimizer is None else [optimizer])]
        numbers = [int(part["number"]) for part in parts]
        if len(set(numbers)) != 1:
            raise Violation(MIXED, f"step {step} for rank {rank} is of the saves {numbers}")
        save = self._saves[numbers[0]]
        expected = (save.model, None if rank is None else save.optimizers[rank], save.meta)
        try:
            assert_same((model, optimizer, meta), expected)
            assert save.step == step
        except Exception as error:
            raise Violation(DAMAGED, f"step {step} for rank {rank}: {error!r}") from error
        return save.number

    def _check_last(self, directory: Path, good: int, moment: Moment) -> bool:
        """The step that nanochat would take is the newest good one, or that is named instead."""
        try:
            step = fastckpt.find_last_step(directory)
        except FileNotFoundError as error:
            if good:
                raise Violation(LOST, "a good step, and no last one") from error
            return True
        allowed = moment.may_hold(self._begun(moment, step))
        # The model is visible last, so it never is without its meta.
        model = self._load_rank(directory, step, None)
        if model not in allowed:
            raise Violation(LOST, f"the model of step {step} is of save {model}, may be {allowed}")
        good_step = self._saves[good].step if good else None
        if step == good_step:
            return True
        for rank in RANKS:
            try:
                self._load_rank(directory, step, rank)
            except fastckpt.IncompleteCheckpointError as error:
                named = _NAMED_STEP.search(str(error))
                if (None if named is None else int(named[1])) != good_step:
                    raise Violation(LOST, f"step {good_step} is not named: {error}") from error
            else:
                raise Violation(MIXED, f"step {step} is loaded, but not the newest good one")
        return False

    def _check_report(self, directory: Path, moment: Moment) -> None:
        report = fastckpt.verify(directory)
        unfinished = self._saves[moment.begun].step
        for step in report.steps:
            good = {file.status.value for file in step.files} == {"good"}
            whole = step.status.value == "good" or (
                step.status.value == "incomplete"
                and step.step == unfinished
                and moment.begun > moment.acknowledged
            )
            if not (good and whole):
                raise Violation(DAMAGED, f"verify says {step}")

    def _check_next_save(self, directory: Path, moment: Moment) -> None:
        """The run goes on from here: it saves this step again, or the next one."""
        save = self._saves[moment.begun + 1]
        self._save(directory, save)
        step = fastckpt.find_last_good_step(directory, world_size=len(RANKS))
        if step != save.step or self._load(directory, step) != save.number:
            raise Violation(NOT_ALIVE, f"after save {save.number}, step {step} is the newest good")
        stale = [name for name in os.listdir(directory) if _STALE.fullmatch(name)]
        if stale:
            raise Violation(LEFT_BEHIND, f"after the next save: {stale}")


def _names_of(step: int) -> list[str]:
    shards = [f"optim_{step:06d}_rank{rank}.pt" for rank in RANKS]
    return [f"model_{step:06d}.pt", f"meta_{step:06d}.json", f"manifest_{step:06d}.json", *shards]


def _run_together(works: Iterable[Callable[[], None]]) -> None:
    """Run each in a thread; raises the first error, when all are done."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
