"""Processes that save on and on, killed with SIGKILL at random times: nothing acknowledged is lost.

The core is the production build, nothing stands between it and the system. After each kill another process
goes on from what was found, so leftovers of one meet the next.
"""

from __future__ import annotations

import os
import random
import re
import signal
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from tests.faults.children import wait_for
from tests.faults.harness import Tally
from tests.faults.shim import workloads
from tests.faults.shim.workloads import FILE, file_state, step_of
from tests.faults.shim.zygote import shared
from tests.specimens import assert_same

import fastckpt

# A kill comes before as many saves could have been made: the first of a process, and those after it,
# are hit at every stage.
_LONGEST_DELAY_SAVES = 2.5
# So often a save comes to its end, and what is hidden has to be gone.
_KILLS_BETWEEN_WHOLE_SAVES = 10
_RANKS = 4
_WORKLOADS = "tests.faults.shim.workloads"
_HIDDEN = re.compile(r"\.fastckpt-(\d+-\d+\.tmp|\d{14}-.+\.kept)")


class Saver(ABC):
    """An endless row of numbered saves, and what there is of it after a kill."""

    work: str

    @property
    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """What the work gets beside the number of the first save."""

    @abstractmethod
    def judge(self, directory: Path, acknowledged: int) -> int:
        """Return the number of the save that is there now, the acknowledged or the next."""

    @abstractmethod
    def save(self, directory: Path, number: int) -> None:
        """Make one save that is not killed; afterwards nothing hidden is left."""


class FileSaver(Saver):
    """Saves one file."""

    def __init__(self, work: str = f"{_WORKLOADS}:save_files_on_and_on") -> None:
        self.work = work

    @property
    def arguments(self) -> dict[str, Any]:
        return {}

    def judge(self, directory: Path, acknowledged: int) -> int:
        names = set(os.listdir(directory))
        assert {name for name in names if not _HIDDEN.fullmatch(name)} == {FILE}, names
        path = directory / FILE
        found = fastckpt.load(path)
        number = int(found["n"])
        assert number in (acknowledged, acknowledged + 1), f"{number} after {acknowledged}"
        assert_same(found, file_state(number))
        assert_same(torch.load(path), found)
        assert fastckpt.verify(path).ok
        return number

    def save(self, directory: Path, number: int) -> None:
        fastckpt.save(file_state(number), directory / FILE)
        names = os.listdir(directory)
        assert names == [FILE], names


class StepSaver(Saver):
    """Saves steps, each three times, on four ranks at once."""

    work = f"{_WORKLOADS}:save_steps_on_and_on"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"ranks": _RANKS}

    def judge(self, directory: Path, acknowledged: int) -> int:
        good = fastckpt.find_last_good_step(directory)
        loaded = [
            fastckpt.load_checkpoint(
                directory, good, "cpu", load_optimizer=True, rank=rank, world_size=_RANKS
            )
            for rank in range(_RANKS)
        ]
        number = int(loaded[0][2]["number"])
        assert number in (acknowledged, acknowledged + 1), f"{number} after {acknowledged}"
        assert good == step_of(number), f"step {good} with save {number}"
        for rank, found in enumerate(loaded):
            workloads.assert_step(found, number, rank)
        self._judge_earlier(directory, good)
        self._judge_pick(directory, good)
        return number

    def _judge_earlier(self, directory: Path, good: int) -> None:
        """The step before is there as its last save left it. Older ones are removed, for the room."""
        earlier = [step for step in _steps(directory) if step < good]
        for step in earlier[:-1]:
            for path in directory.glob(f"*_{step:06d}*"):
                path.unlink()
        for step in earlier[-1:]:
            found = fastckpt.load_checkpoint(
                directory, step, "cpu", load_optimizer=True, world_size=_RANKS
            )
            workloads.assert_step(found, 3 * (step // 10) + 2, 0)

    @staticmethod
    def _judge_pick(directory: Path, good: int) -> None:
        step = fastckpt.find_last_step(directory)
        refusal = workloads.refusal_to_load(directory, step, rank=0, ranks=_RANKS)
        if refusal is None:
            assert step == good, f"step {step} loads, and {good} is called good"
        else:
            assert f"newest good step here: {good}" in refusal, refusal

    def save(self, directory: Path, number: int) -> None:
        workloads.save_at_once(directory, step_of(number), number, _RANKS)
        hidden = [name for name in os.listdir(directory) if name.startswith(".")]
        assert hidden == [], hidden
        assert fastckpt.verify(directory).ok


def _steps(directory: Path) -> list[int]:
    return sorted(int(path.stem.split("_")[1]) for path in directory.glob("model_*.pt"))


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Kill processes that save: one file in half of the cases, steps in the others."""
    generator = random.Random(seed)
    tally = Tally()
    for part, saver in enumerate((FileSaver(), StepSaver())):
        with tempfile.TemporaryDirectory(dir=directory) as own:
            tally.add(kill_again_and_again(saver, (cases + part) // 2, Path(own), generator))
    return tally


def kill_again_and_again(
    saver: Saver, cases: int, directory: Path, generator: random.Random
) -> Tally:
    """Start a process that saves, kill it, and look; go on from there."""
    tally = Tally()
    progress, directory = directory / "progress", directory / "run"
    directory.mkdir()
    number, case = 0, 0
    saver.save(directory, number)
    try:
        for case in range(cases):
            if case % _KILLS_BETWEEN_WHOLE_SAVES == 0:
                number += 1
                began = time.monotonic()
                saver.save(directory, number)
                save_secs = time.monotonic() - began
            delay_secs = save_secs * generator.uniform(0, _LONGEST_DELAY_SAVES)
            begun = _kill_once(saver, directory, progress, number + 1, delay_secs)
            number = saver.judge(directory, begun - 1)
            hidden = [name for name in os.listdir(directory) if _HIDDEN.fullmatch(name)]
            found = "new" if number == begun else "old"
            traces = "with traces" if hidden else "without traces"
            tally.count(f"{type(saver).__name__}: {found}, {traces}")
    except Exception as error:
        where = f"{type(saver).__name__}, kill {case}, save {number}"
        tally.fail(f"{where}: {type(error).__name__}: {error}")
    return tally


def _kill_once(saver: Saver, directory: Path, progress: Path, first: int, delay_secs: float) -> int:
    """Return the number of the last save that was begun."""
    progress.unlink(missing_ok=True)
    zygote = shared(shim=False)
    child = zygote.start(
        saver.work, directory, number=first, progress=str(progress), **saver.arguments
    )
    wait_for(lambda: progress.exists() and progress.read_bytes().endswith(b"\n"))
    time.sleep(delay_secs)
    assert zygote.kill(child) == -signal.SIGKILL
    return int(progress.read_bytes().split()[-1])
