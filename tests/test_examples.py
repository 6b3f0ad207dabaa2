"""The examples run, and say what they have to say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def environment() -> dict[str, str]:
    """Return this process's, with one thread for torch: threads of several tests would wait for cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def example(name: str, *arguments: str | Path) -> str:
    """Run an example as its docstring says; returns what it prints."""
    command = [sys.executable, "-m", f"examples.{name}", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tutorial_makes_a_checkpoint_and_goes_on_from_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tutorial.pt"
    first = example("tutorial", path)
    assert "no checkpoint at" in first
    assert "resumed to step 50" in first
    assert "def __init__(self" in first
    # Any reader of torch's files opens it.
    checkpoint = torch.load(path, weights_only=True)
    assert sorted(checkpoint) == ["gpt_cfg", "model_state", "step", "val_loss"]
    assert checkpoint["step"] == 50

    second = example("tutorial", path)
    assert "no checkpoint at" not in second
    assert f"step 50, validation loss {checkpoint['val_loss']:.3f}" in second
    assert f"{path.stat().st_size:,} bytes on the disk" in second


def test_ranks_save_a_step_together_and_miss_a_lost_shard(tmp_path: Path) -> None:
    first = example("ranks", tmp_path, "--ranks", "2")
    assert "last whole step: 20, of 2 ranks" in first
    assert "optim_000020_rank1.pt is missing: step 20 has 2 optimizer shards" in first
    assert "last whole step then: 10" in first
    assert "last whole step: 40, of 2 ranks" in example("ranks", tmp_path, "--ranks", "2")


def test_manager_loop_goes_on_exactly_after_a_kill(tmp_path: Path) -> None:
    whole = losses_of(example("manager_loop", tmp_path / "undisturbed", "--steps", "30"))
    directory = tmp_path / "killed"
    command = [sys.executable, "-m", "examples.manager_loop", str(directory), "--steps", "30"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 17 "):
                process.send_signal(signal.SIGKILL)
                break
    said = example("manager_loop", directory, "--steps", "30")
    assert "resumed at step 10" in said
    assert losses_of(said) == whole[10:]


def losses_of(said: str) -> list[str]:
    """Return the lines with losses, which are exact."""
    return [line for line in said.splitlines() if line.startswith("step ")]


def test_average_of_the_top_is_compared_with_the_best_one(tmp_path: Path) -> None:
    said = example("average_top", tmp_path)
    assert "by val_loss: checkpoint_epoch0000_step000000" in said
    assert said.count("checkpoint_epoch0000_step") == 5
    assert "test loss of the best one: " in said
    assert "test loss of the average:  " in said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_demo_states_nothing_that_does_not_hold(tmp_path: Path) -> None:
    """It trains, kills, resumes, verifies and measures: `train.py` and `speed.py` run in it."""
    assert "All of it holds" in example("demo", "--directory", tmp_path, "--seed", "7")
