"""Which second names of replaced files nobody needs any more.

A save that replaces files of a step gives each a second, hidden name first; see `_step_saves`. Imports no
torch.
"""

from __future__ import annotations

import os

from .parts import own_name
from .saves import read_save
from .survey import Listing, StepFiles


def superseded_names(directory: str, files: StepFiles, listing: Listing | None = None) -> list[str]:
    """Return the second names in a step that a newer, whole save has made useless.

    Args:
        directory: Where they are.
        files: The files of the step.
        listing: As for `read_save`.

    Raises:
        CheckpointError, OSError: No save of the step is whole, or that cannot be seen.
    """
    # Looked for after the names were listed, and until two looks agree: a save that is under way must
    # not make a whole one seem torn.
    save = read_save(directory, files.step, optimizer=True, listing=listing)
    visible = {os.path.basename(path) for path in save.paths()}
    # Every rank saves in the same order, so a save that the whole one has replaced in one place is
    # older everywhere. Of any other nothing is known: a rank may be ahead, and it be newer.
    older = [
        kept
        for save_id, kept in sorted(files.kept.items())
        if save_id != save.save_id and any(own_name(name) in visible for name in kept.names())
    ]
    return [name for kept in older for name in kept.names()]
