"""What is in a checkpoint: taken from the objects of a run, and read back."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from fastckpt._archive.load import load
from fastckpt.errors import FormatError

from .plain import refuse_unloadable
from .rng import Generator, capture_rng

# What every checkpoint of a manager has; the other keys may be missing in later versions.
_NEEDED = ("epoch", "global_step", "model_state_dict")


@dataclass
class Parts:
    """The objects of a training run whose state a checkpoint holds.

    Attributes:
        model: Has state_dict and load_state_dict, as all the others.
        optimizer: None where there is none.
        scheduler: The same.
        scaler: The same.
        ema: The same.
        generators: Random number generators beside the global ones, by name.
    """

    model: Any
    optimizer: Any = None
    scheduler: Any = None
    scaler: Any = None
    ema: Any = None
    generators: dict[str, Generator] = field(default_factory=dict)

    def capture(
        self, *, save_optimizer: bool, save_rng_state: bool, world_size: int
    ) -> dict[str, Any]:
        """Return the states of all parts, as they stand in a checkpoint; tensors are not copied."""
        return {
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": _state(self.optimizer) if save_optimizer else None,
            "scheduler_state_dict": _state(self.scheduler),
            "scaler_state_dict": _state(self.scaler),
            "rng_states": self.capture_rng(world_size) if save_rng_state else None,
            "ema_state_dict": _state(self.ema),
        }

    def capture_rng(self, world_size: int) -> dict[str, Any]:
        """Return the states of this rank's random number generators, and of how many ranks it is one."""
        return {**capture_rng(self.generators), "world_size": world_size}


def _state(part: Any) -> Any:
    return None if part is None else part.state_dict()


def check_contents(contents: dict[str, Any]) -> None:
    """Raise TypeError, naming the key, where plain torch.load would refuse what is to be saved."""
    for key, value in contents.items():
        refuse_unloadable(value, key)


def read_contents(path: str) -> dict[str, Any]:
    """Read a checkpoint of a manager into host memory, every byte checked.

    Raises:
        OSError: It cannot be read.
        CheckpointError: It is damaged, or no checkpoint of a manager.
    """
    contents = load(path, map_location="cpu", weights_only=True)
    check_is_managers(contents, path)
    assert isinstance(contents, dict)
    return contents


def check_is_managers(contents: Any, path: str | os.PathLike[str]) -> None:
    """Raise FormatError where an object is not what a manager saves."""
    path = os.fspath(path)
    if not isinstance(contents, dict):
        raise FormatError(
            f"{path} is not a checkpoint of a CheckpointManager: it holds a "
            f"{type(contents).__name__}, not a dict",
            path=path,
        )
    missing = [key for key in _NEEDED if key not in contents]
    if missing:
        there = ", ".join(map(repr, list(contents)[:20])) or "nothing"
        raise FormatError(
            f"{path} is not a checkpoint of a CheckpointManager: it has no "
            f"{' and no '.join(map(repr, missing))}; it has {there}",
            path=path,
        )
    if type(contents["epoch"]) is not int or type(contents["global_step"]) is not int:
        raise FormatError(
            f"{path} is not a checkpoint of a CheckpointManager: its epoch is "
            f"{contents['epoch']!r} and its step {contents['global_step']!r}",
            path=path,
        )
