"""What the name of a checkpoint file says: nanochat's names, and those of `CheckpointManager`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from fastckpt._steps.checkpoint_names import parse_checkpoint_name
from fastckpt._steps.survey import parse_name


@dataclass(frozen=True)
class FileName:
    """What a file name says.

    Attributes:
        role: "managed" for a checkpoint of the manager's, "rank" for another rank's part of one,
            else what nanochat's names say.
        step: The step.
        epoch: The epoch, where the name has one.
        rank: The rank, where the name has one.
    """

    role: Literal["managed", "rank", "model", "optimizer"]
    step: int
    epoch: int | None = None
    rank: int | None = None


def name_of_file(path: str) -> FileName | None:
    """Return what the name of a file says; None for all other names."""
    name = os.path.basename(path)
    if managed := parse_checkpoint_name(name):
        role: Literal["managed", "rank"] = "rank" if managed.rank else "managed"
        return FileName(role, managed.step, managed.epoch, managed.rank or None)
    named = parse_name(name)
    if named is None or named.role not in {"model", "optimizer"}:
        return None
    return FileName("model" if named.role == "model" else "optimizer", named.step, rank=named.rank)
