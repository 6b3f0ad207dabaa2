"""The files of a CheckpointManager's directory: which checkpoints there are, by name. Imports no torch.

`checkpoint_epoch0003_step00001200.pt`, beside it the random numbers of the other ranks in
`checkpoint_epoch0003_step00001200_rank1.pt`, and `best_model.pt`, a second name of the best one (or a copy).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

BEST_NAME = "best_model.pt"

# Four and eight digits, more where the number has more; a name with other zeros is not the manager's.
_CHECKPOINT = re.compile(
    r"checkpoint_epoch(?P<epoch>[0-9]{4}|[1-9][0-9]{4,17})"
    r"_step(?P<step>[0-9]{8}|[1-9][0-9]{8,17})"
    r"(?:_rank(?P<rank>[1-9][0-9]{0,17}))?\.pt",
    re.ASCII,
)


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
    found: dict[tuple[int, int], ManagerFiles] = {}
    for name in names:
        match = _CHECKPOINT.fullmatch(name)
        if match is None:
            continue
        key = (int(match["step"]), int(match["epoch"]))
        files = found.setdefault(key, ManagerFiles(*key))
        if match["rank"] is None:
            files.name = name
        else:
            files.ranks[int(match["rank"])] = name
    best = BEST_NAME if BEST_NAME in names else None
    return [found[key] for key in sorted(found)], best
