"""Training runs that are killed, cut off or left without space, and then resumed.

All of it forks children that train. Autograd refuses to work in a process whose parent has used it, so
the caller must be one that has not: a process of its own, not the one that runs the other tests.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

from tests.faults.children import exit_code, in_child, run_in_child
from tests.faults.disks import loop_disk, memory_disk, run
from tests.faults.harness import Tally
from tests.faults.power.recording import Clock
from tests.faults.power.runs import run_files
from tests.faults.power.verdicts import LOST, Moment, Violation

import fastckpt

# The examples are scripts, which find each other beside them.
sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
from gpt import GPTConfig
from train import Run, last_save, train

CONFIG = GPTConfig(sequence_len=16, n_layer=1, n_head=2, n_kv_head=2, n_embd=16, dropout=0.1)
STEPS = 18
SAVE_EVERY = 3
MAX_RUNS = 100
# Space for three checkpoints of this model and a bit, and for all of them.
SMALL_DISK, LARGE_DISK = "size=600k", "size=8m"

Losses = list[tuple[int, str]]


def go_on(directory: Path, losses: Path) -> None:
    """Train to the end from whatever is there."""
    directory.mkdir(exist_ok=True)
    train(Run(directory, CONFIG), STEPS, SAVE_EVERY, losses, resume=True)


def read_losses(path: Path) -> Losses:
    """Return (step, loss) of every step that was trained, in order; a half line is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return [(record["step"], record["loss"]) for record in records]


def last_acknowledged(losses: Losses) -> int:
    """Return the last step whose save is known to have returned: the one after it was trained."""
    trained = max((step for step, _ in losses), default=1)
    return (trained - 1) // SAVE_EVERY * SAVE_EVERY


def train_undisturbed(place: Path) -> Losses:
    """Train once without any trouble; returns the losses."""
    # What the first step of an optimizer imports, for seconds: the children, forked, have it then.
    importlib.import_module("torch._dynamo")
    outcome = run_in_child(lambda: go_on(place / "run", place / "losses"))
    assert outcome.ok, outcome
    losses = read_losses(place / "losses")
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))
    return losses


def assert_resumes(directory: Path, losses: Path, expected: Losses) -> None:
    """Check that no save that returned is lost, and that training goes on exactly."""
    before = read_losses(losses)
    found = last_save(directory)
    assert found >= last_acknowledged(before)
    outcome = run_in_child(partial(go_on, directory, losses))
    assert outcome.ok, outcome
    resumed = read_losses(losses)[len(before) :]
    assert [step for step, _ in resumed] == list(range(found + 1, STEPS + 1))
    assert set(before + resumed) == set(expected)
    assert fastckpt.find_last_good_step(directory, verify="full") == STEPS


def kill(seed: int, cases: int, place: Path, expected: Losses) -> int:
    """Kill runs again and again until they have come to their end; returns how often."""
    generator = random.Random(seed)
    kills = 0
    for number in range(MAX_RUNS):
        directory, losses = place / f"run-{number}", place / f"losses-{number}"
        while last_save(directory) < STEPS:
            child = in_child(partial(go_on, directory, losses))
            time.sleep(generator.uniform(0.0, 0.5))
            os.kill(child, signal.SIGKILL)
            kills += exit_code(child) == -signal.SIGKILL
            assert last_save(directory) >= last_acknowledged(read_losses(losses))
        assert_resumes(directory, losses, expected)
        if kills >= cases:
            break
    return kills


def fill_disk(place: Path, expected: Losses) -> int:
    """Train on a disk that is too small, and go on when it has grown; returns the last step saved."""
    with memory_disk(place, "tmpfs", SMALL_DISK) as disk:
        directory, losses = disk / "run", place / "losses"
        outcome = run_in_child(partial(go_on, directory, losses))
        assert outcome.raised is not None
        assert outcome.raised.is_a(OSError)
        assert "bytes are needed and" in outcome.raised.words
        saved = last_save(directory)
        # All but the save that found no space.
        assert saved == read_losses(losses)[-1][0] - SAVE_EVERY > 0
        assert not [name for name in os.listdir(directory) if name.startswith(".")]
        run("mount", "-o", f"remount,{LARGE_DISK}", disk)
        assert_resumes(directory, losses, expected)
    return saved


def shut_down(seed: int, cases: int, place: Path, file_system: str, expected: Losses) -> list[int]:
    """Shut the file system down under runs, mount it again, and go on; returns the savers' exit codes."""
    generator = random.Random(seed)
    codes = []
    with loop_disk(place, file_system) as disk:
        for number in range(cases):
            directory, losses = disk.path / f"run-{number}", place / f"losses-{number}"
            child = in_child(partial(go_on, directory, losses))
            time.sleep(generator.uniform(0.3, 1.0))
            run("xfs_io", "-x", "-c", "shutdown", disk.path)
            code = exit_code(child)
            disk.remount()
            # It ended by the error of its next save, if it had one to do.
            assert code == 1 or last_save(directory) == STEPS
            directory.mkdir(exist_ok=True)
            assert_resumes(directory, losses, expected)
            codes.append(code)
    return codes


class TrainingSaves:
    """The saves of a training run, to be cut off anywhere."""

    def __init__(self, expected: Losses, generator: random.Random) -> None:
        self._expected = expected
        self._generator = generator

    def work(self, directory: Path, clock: Clock) -> None:
        class Watched(Run):
            def save(self, step: int) -> None:
                clock.begin()
                super().save(step)
                clock.acknowledge()

        train(Watched(directory, CONFIG), STEPS, SAVE_EVERY, Path(os.devnull), resume=False)

    def check(self, directory: Path, moment: Moment) -> str:
        found = last_save(directory)
        if found not in {moment.acknowledged * SAVE_EVERY, moment.begun * SAVE_EVERY}:
            raise Violation(LOST, f"the last whole step is {found} at {moment}")
        if found and self._generator.random() < 0.3:
            self._check_resumed(directory, found)
        return moment.name(found // SAVE_EVERY)

    def _check_resumed(self, directory: Path, found: int) -> None:
        losses = directory / "losses"
        outcome = run_in_child(partial(go_on, directory, losses))
        if not outcome.ok or read_losses(losses) != self._expected[found:]:
            raise Violation(LOST, f"training does not go on from {found}: {outcome}")


def cut_power(seed: int, cases: int, place: Path, file_system: str, expected: Losses) -> Tally:
    """Cut the power at any moment of a run, and go on from some of what is left."""
    return run_files(seed, cases, place, file_system, partial(TrainingSaves, expected))
