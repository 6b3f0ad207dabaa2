"""What the name of a checkpoint file says: nanochat's names, and those of `CheckpointManager`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal

from ._survey import parse_name

#: The second name of the best checkpoint of a `CheckpointManager`.
BEST_NAME = "best_model.pt"
# Numbers are padded, and longer where they need to be; 18 digits are no step of any run.
_MANAGED = re.compile(
    r"checkpoint_epoch(?P<epoch>[0-9]{4,18})_step(?P<step>[0-9]{8,18})(?:_rank(?P<rank>[0-9]{1,18}))?\.pt",
    re.ASCII,
)


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
    """Return what the name of a file says; None if it is none of these."""
    name = os.path.basename(path)
    if match := _MANAGED.fullmatch(name):
        rank = None if match["rank"] is None else int(match["rank"])
        role: Literal["managed", "rank"] = "managed" if rank is None else "rank"
        return FileName(role, int(match["step"]), int(match["epoch"]), rank)
    named = parse_name(name)
    if named is None or named.role not in {"model", "optimizer"}:
        return None
    return FileName("model" if named.role == "model" else "optimizer", named.step, rank=named.rank)
