"""Single files, saved back to back: over one path again and again, and under new names."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.faults.power.recording import Clock
from tests.faults.power.verdicts import DAMAGED, LEFT_BEHIND, LOST, NOT_ALIVE, Moment, Violation
from tests.specimens import assert_same, fill

import fastckpt
from fastckpt import _native
from fastckpt._archive import pickling

SAVES = 24
# From less than one block to several chunks of the writer.
_NBYTES_MIN, _NBYTES_MAX = 2_000, 3_000_000
_OVERWRITES = 0.7
_NAME = "weights.pt"
# After so many of the crash states the next save is tried; it costs more than the look.
_NEXT_SAVES = 0.25

Writer = Callable[[Any, Path, bool], None]


def durably(obj: Any, path: Path, direct: bool) -> None:
    """Save as fastckpt does, by direct I/O or through the page cache."""
    if direct:
        fastckpt.save(obj, path)
        return
    pickled = pickling.pickle_object(obj, pickling.DEFAULT_PROTOCOL)
    with _native.Commit(sync=True) as commit:
        commit.write_archive(path, pickled.data, pickled.storages, direct=False)
        commit.publish([path])


@dataclass(frozen=True)
class _Save:
    name: str
    direct: bool
    state: dict[str, Any]


class FileSaves:
    """A row of saves, drawn at random."""

    def __init__(self, generator: random.Random, writer: Writer = durably) -> None:
        self._generator = generator
        self._writer = writer
        # One more than will be recorded: the next save after the last.
        self._saves = {number: self._draw(number) for number in range(1, SAVES + 2)}

    def _draw(self, number: int) -> _Save:
        overwrites = self._generator.random() < _OVERWRITES
        numel = int(_NBYTES_MIN * (_NBYTES_MAX / _NBYTES_MIN) ** self._generator.random())
        state = {
            "number": number,
            "weight": fill(torch.uint8, numel, seed=self._generator.getrandbits(32)),
            "bias": torch.full((number,), number, dtype=torch.bfloat16),
        }
        name = _NAME if overwrites else f"weights-{number}.pt"
        return _Save(name, self._generator.random() < 0.5, state)

    def work(self, directory: Path, clock: Clock) -> None:
        for number in range(1, SAVES + 1):
            save = self._saves[number]
            clock.begin()
            self._writer(save.state, directory / save.name, save.direct)
            clock.acknowledge()

    def check(self, directory: Path, moment: Moment) -> str:
        self._check_names(directory, moment)
        found = {name: self._check_file(directory / name, moment) for name in self._names(moment)}
        if any(found.values()):
            report = fastckpt.verify(directory)
            if not report.ok:
                raise Violation(DAMAGED, f"verify says {report}")
        if self._generator.random() < _NEXT_SAVES:
            self._check_next_save(directory, moment)
        return moment.name(found[self._saves[moment.begun].name])

    def _names(self, moment: Moment) -> list[str]:
        """Return what the files are called that were begun."""
        begun = (self._saves[number].name for number in range(1, moment.begun + 1))
        return sorted(set(begun))

    def _check_names(self, directory: Path, moment: Moment) -> None:
        expected = self._names(moment)
        for name in os.listdir(directory):
            hidden = name.startswith(".fastckpt-") and name.endswith(".tmp")
            # ext4 makes it, for its own repairs.
            if not (name in expected or hidden or name == "lost+found"):
                raise Violation(LEFT_BEHIND, name)

    def _check_file(self, path: Path, moment: Moment) -> int:
        """Return which save a path holds, to the bit; 0 for none."""
        numbers = (number for number, save in self._saves.items() if save.name == path.name)
        allowed = moment.may_hold(numbers)
        if not path.exists():
            if 0 not in allowed:
                raise Violation(LOST, f"{path.name} is missing, may hold {allowed}")
            return 0
        try:
            found = fastckpt.load(path)
            number = int(found["number"])
            assert_same(found, self._saves[number].state)
            assert_same(torch.load(path), found)
        except Exception as error:
            raise Violation(
                DAMAGED, f"{path.name} ({path.stat().st_size} bytes): {error!r}"
            ) from error
        if number not in allowed:
            raise Violation(LOST, f"{path.name} holds {number}, may hold {allowed}")
        return number

    def _check_next_save(self, directory: Path, moment: Moment) -> None:
        save = self._saves[moment.begun + 1]
        durably(save.state, directory / save.name, save.direct)
        try:
            assert_same(fastckpt.load(directory / save.name), save.state)
        except Exception as error:
            raise Violation(NOT_ALIVE, f"the next save: {error!r}") from error
        stale = [name for name in os.listdir(directory) if name.startswith(".fastckpt-")]
        if stale:
            raise Violation(LEFT_BEHIND, f"after the next save: {stale}")
