"""The newest good checkpoint of a directory, read; of those that are damaged, the log says so."""

from __future__ import annotations

import errno
import os
from typing import Any

from fastckpt._steps.checkpoint_names import BEST_NAME
from fastckpt.errors import CheckpointError, FormatError

from .contents import read_contents
from .directory import CheckpointDirectory
from .log import logger


def read_newest(directory: CheckpointDirectory) -> tuple[str, dict[str, Any]]:
    """Read the newest checkpoint that is good as a whole.

    Returns:
        Its path and what it holds, in host memory.

    Raises:
        FileNotFoundError: There is no checkpoint.
        FormatError: None is good.
        OSError: The disk answers with errors: that is no damage, and is not got around.
    """
    names = directory.checkpoint_names()
    paths = [directory.path_of(name) for name in names]
    best = os.path.join(directory.path, BEST_NAME)
    if os.path.lexists(best):
        # The last resort: it may be the only good one that is left.
        paths.append(best)
    for path in paths:
        try:
            contents = read_contents(path)
        except (CheckpointError, FileNotFoundError) as error:
            logger.warning("Cannot be loaded, so an older one is tried: %s", error)
            continue
        if path != paths[0]:
            logger.warning("Fell back to %s: what is newer is damaged", path)
        return path, contents
    if not paths:
        raise FileNotFoundError(
            errno.ENOENT, "there is no checkpoint in this directory", directory.path
        )
    raise FormatError(
        f"none of the {len(paths)} checkpoints in {directory.path} is good: the newest is "
        f"{paths[0]}. `fastckpt verify` says what is wrong, `fastckpt repair` saves what is left",
        path=directory.path,
    )
