"""What the tests of the manager share: a small model, and directories of checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import fastckpt


class Weights:
    """A model of one tensor, all of one value."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"w": torch.full((1000,), float(self.value))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        (self.value,) = set(state["w"].tolist())


def manager_of(
    directory: Path, model: Weights | None = None, **fields: Any
) -> fastckpt.CheckpointManager:
    """Make a manager without an optimizer."""
    config = fastckpt.CheckpointConfig(directory, **fields)
    return fastckpt.CheckpointManager(config, model or Weights(), None, None)


def save_all(
    manager: fastckpt.CheckpointManager, losses: dict[int, float], epoch: int = 0
) -> list[Path | None]:
    """Save each step with its loss."""
    return [manager.save(epoch, step, {"val_loss": loss}) for step, loss in losses.items()]


def steps_in(directory: Path) -> list[int]:
    """List the steps of the checkpoints in a directory, by their names."""
    names = directory.glob("checkpoint_epoch*_step*[0-9].pt")
    return sorted(int(path.stem.split("_step")[1]) for path in names if "_rank" not in path.stem)


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """Return what was logged at this level."""
    return [one.getMessage() for one in caplog.records if one.levelno == level]


def damage(path: Path, needle: bytes | None = None) -> None:
    """Flip a bit in the tensor data, or where some bytes stand, in a copy under the same name."""
    data = bytearray(path.read_bytes())
    place = data.find(needle) if needle else data.find(torch.full((4,), 0.5).numpy().tobytes())
    assert place > 0
    data[place] ^= 1
    path.unlink()
    path.write_bytes(data)


def loaded_step(manager: fastckpt.CheckpointManager, **options: Any) -> int:
    """Load the newest; return its step."""
    return int(manager.load(**options)["global_step"])


def names(directory: Path) -> Sequence[str]:
    """List a directory."""
    return sorted(path.name for path in directory.iterdir())


def first_name(step: int, epoch: int = 0) -> str:
    """Return the file name of a checkpoint."""
    return f"checkpoint_epoch{epoch:04d}_step{step:08d}.pt"
