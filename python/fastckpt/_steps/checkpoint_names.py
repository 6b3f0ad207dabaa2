"""What the files of a `CheckpointManager` are called. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: The second name of the best checkpoint.
BEST_NAME = "best_model.pt"

# Zeros up to the width, as `str(CheckpointName(...))` writes them; more digits where it takes more, but
# not more than any run has steps.
_NAME = re.compile(
    r"checkpoint_epoch(?P<epoch>[0-9]{4}|[1-9][0-9]{4,17})"
    r"_step(?P<step>[0-9]{8}|[1-9][0-9]{8,17})"
    r"(?:_rank(?P<rank>[1-9][0-9]{0,17}))?\.pt"
)


@dataclass(frozen=True, order=True)
class CheckpointName:
    """What a file name says; sorts by step, then by epoch.

    Attributes:
        step: How many optimizer steps were done.
        epoch: The epoch.
        rank: Which rank the file is of; 0 for the checkpoint itself.
    """

    step: int
    epoch: int
    rank: int = 0

    def __str__(self) -> str:
        rank = f"_rank{self.rank}" if self.rank else ""
        return f"checkpoint_epoch{self.epoch:04d}_step{self.step:08d}{rank}.pt"


def parse_checkpoint_name(name: str) -> CheckpointName | None:
    """Return what a file name says; None if a manager does not name files so."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return CheckpointName(int(match["step"]), int(match["epoch"]), int(match["rank"] or 0))


def step_name(step: int, epoch: int | None) -> str:
    """Return what a checkpoint is called in messages; a nanochat step has no epoch."""
    return f"step {step}" if epoch is None else f"epoch {epoch}, step {step}"
