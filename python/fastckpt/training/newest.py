"""The newest good checkpoint of a directory, read; of those that are damaged, the log says so."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from fastckpt._steps.checkpoint_names import BEST_NAME
from fastckpt.errors import ChecksumError, FormatError, TorchScriptError

from .contents import as_managers, read_any
from .directory import CheckpointDirectory
from .log import logger


def read_newest(
    directory: CheckpointDirectory, keys: Mapping[str, str] | None = None
) -> tuple[str, dict[str, Any]]:
    """Read the newest checkpoint that is good as a whole.

    Only damage is passed over. A file that is refused for another reason (it holds an object that
    weights_only=True does not allow, or another program wrote it) may be the one that training has to go
    on from: an older one in its place would throw work away.

    Args:
        directory: Where to look.
        keys: What a key_map says; see `checked_key_map`.

    Returns:
        Its path and what it holds, in host memory.

    Raises:
        FileNotFoundError: There is no checkpoint.
        FormatError: All are damaged, or the newest that is not damaged is not a checkpoint of a manager.
        UnsafePickleError: The newest that is not damaged holds an object that is not allowed.
        OSError: The disk answers with errors. That is not damage, so nothing older is taken.
    """
    names = directory.checkpoint_names()
    paths = [directory.path_of(name) for name in names]
    best = os.path.join(directory.path, BEST_NAME)
    if os.path.lexists(best):
        # The last resort: it may be the only good one that is left.
        paths.append(best)
    for path in paths:
        try:
            contents = read_any(path)
        except TorchScriptError:
            raise
        except (ChecksumError, FormatError, FileNotFoundError) as error:
            logger.warning("Cannot be loaded, so an older one is tried: %s", error)
            continue
        if path != paths[0]:
            logger.warning("Fell back to %s: what is newer is damaged", path)
        return path, as_managers(contents, path, keys)
    if not paths:
        raise FileNotFoundError(
            errno.ENOENT, "there is no checkpoint in this directory", directory.path
        )
    raise FormatError(
        f"none of the {len(paths)} checkpoints in {directory.path} is good: the newest is "
        f"{paths[0]}. `fastckpt verify` says what is wrong, `fastckpt repair` saves what is left",
        path=directory.path,
    )
