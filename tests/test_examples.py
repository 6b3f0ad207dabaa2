"""The examples run, and say what they have to say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def example(name: str, *arguments: str | Path) -> str:
    """Run an example as its docstring says; returns what it prints."""
    command = [sys.executable, "-m", f"examples.{name}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
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
