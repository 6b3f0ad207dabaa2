"""Which second names of replaced files are no longer needed.

A save that replaces files of a step gives each a second, hidden name first; see `_steps.saves`. Imports no
torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from fastckpt._contents.identity import standing

from .saves import read_save
from .survey import Listing, StepFiles, own_name

#: A hidden name, and device and inode of the file that had it when it was judged; see `Commit.discard`.
Judged = tuple[str, int, int]


def superseded_names(
    directory: str, files: StepFiles, listing: Listing | None = None
) -> list[Judged]:
    """Return the second names in a step that a newer, whole save has made superfluous.

    Args:
        directory: Where they are.
        files: The files of the step.
        listing: As for `read_save`.

    Raises:
        CheckpointError, OSError: No save of the step is whole, or its files cannot be read.
    """
    before = judged_names(directory, files.kept_names())
    # Read after the names were listed, and until two looks agree: a save that is under way must not make
    # a whole one look torn.
    save = read_save(directory, files.step, optimizer=True, listing=listing)
    visible = {os.path.basename(path) for path in save.paths()}
    # All ranks save in the same order, so a save of which the whole one has replaced one file is older on
    # every rank. Nothing is known of the others: a rank may be ahead, and its save may be newer.
    older = [
        kept
        for save_id, kept in sorted(files.kept.items())
        if save_id != save.save_id and any(own_name(name) in visible for name in kept.names())
    ]
    names = {name for kept in older for name in kept.names()}
    return [judged for judged in before if judged[0] in names]


def judged_names(directory: str, names: Iterable[str]) -> list[Judged]:
    """Return which file has each of these names now, for comparison before removal; missing ones are left out.

    Raises:
        OSError: A name cannot be looked at.
    """
    found = [(name, standing(os.path.join(directory, name))) for name in names]
    return [
        (name, there.name.device, there.name.inode) for name, there in found if there is not None
    ]
