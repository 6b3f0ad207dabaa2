"""The files of a CheckpointManager's directory: which checkpoints there are, by name. Imports no torch.

`checkpoint_epoch0003_step00001200.pt`, beside it the random numbers of the other ranks in
`checkpoint_epoch0003_step00001200_rank1.pt`, and `best_model.pt`, a second name of the best one (or a copy).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from .checkpoint_names import BEST_NAME, CheckpointName, parse_checkpoint_name


@dataclass
class ManagerFiles:
    """Names of the files of one checkpoint that are there.

    Attributes:
        step: The step in the name.
        epoch: The epoch in the name.
        name: The checkpoint; None where only files of ranks are left.
        ranks: The files of the other ranks, by rank.
    """

    step: int
    epoch: int
    name: str | None = None
    ranks: dict[int, str] = field(default_factory=dict)

    def rank_names(self) -> list[str]:
        """Names of the other ranks' files, by rank."""
        return [self.ranks[rank] for rank in sorted(self.ranks)]

    def names(self) -> list[str]:
        """All names, the checkpoint first."""
        return [*([] if self.name is None else [self.name]), *self.rank_names()]


def part_of_checkpoint(step: int, epoch: int) -> str:
    """Return what the names of a checkpoint, and of its ranks' files, have in them."""
    return str(CheckpointName(step, epoch)).removesuffix(".pt")


def is_of_checkpoint(name: str, step: int, epoch: int) -> bool:
    """Whether a name is that of a checkpoint, or of a file of one of its ranks."""
    parsed = parse_checkpoint_name(name)
    return parsed is not None and (parsed.step, parsed.epoch) == (step, epoch)


def survey_manager(directory: str) -> tuple[list[ManagerFiles], str | None]:
    """List the checkpoints of one directory by step and epoch, and the name of the best, if it is there.

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
    """Return the checkpoints that these names are of, by step and epoch; other names are left out."""
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
