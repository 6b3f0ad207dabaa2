"""The checkpoints in the directory of a CheckpointManager, by name. Imports no torch.

A checkpoint is `checkpoint_epoch0003_step00001200.pt`. Beside it are the RNG states of the other ranks,
`checkpoint_epoch0003_step00001200_rank1.pt`, and `best_model.pt`, a second name (or a copy) of the best one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from .checkpoint_names import BEST_NAME, CheckpointName, parse_checkpoint_name


@dataclass
class ManagerFiles:
    """The file names of one checkpoint.

    Attributes:
        step: The step in the name.
        epoch: The epoch in the name.
        name: The checkpoint; None if only files of ranks are left.
        ranks: The files of the other ranks, by rank.
    """

    step: int
    epoch: int
    name: str | None = None
    ranks: dict[int, str] = field(default_factory=dict)

    def rank_names(self) -> list[str]:
        """Return the names of the other ranks' files, by rank."""
        return [self.ranks[rank] for rank in sorted(self.ranks)]

    def names(self) -> list[str]:
        """Return all names, the checkpoint first."""
        return [*([] if self.name is None else [self.name]), *self.rank_names()]


def part_of_checkpoint(step: int, epoch: int) -> str:
    """Return what the names of a checkpoint and of its ranks' files have in common."""
    return str(CheckpointName(step, epoch)).removesuffix(".pt")


def is_of_checkpoint(name: str, step: int, epoch: int) -> bool:
    """Whether a name belongs to a checkpoint, or to a file of one of its ranks."""
    parsed = parse_checkpoint_name(name)
    return parsed is not None and (parsed.step, parsed.epoch) == (step, epoch)


def survey_manager(directory: str) -> tuple[list[ManagerFiles], str | None]:
    """List the checkpoints of one directory by step and epoch, and the name of the best one if it is there.

    Raises:
        OSError: The directory cannot be listed.
    """
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        error.strerror = f"{error.strerror}, while listing the directory"
        raise
    best = BEST_NAME if BEST_NAME in names else None
    return group_by_checkpoint(names), best


def group_by_checkpoint(names: Iterable[str]) -> list[ManagerFiles]:
    """Group names by checkpoint, in order of step and epoch; other names are left out."""
    found: dict[tuple[int, int], ManagerFiles] = {}
    for name in names:
        parsed = parse_checkpoint_name(name)
        if parsed is None:
            continue
        key = (parsed.step, parsed.epoch)
        files = found.setdefault(key, ManagerFiles(*key))
        if parsed.rank == 0:
            files.name = name
        else:
            files.ranks[parsed.rank] = name
    return [found[key] for key in sorted(found)]
