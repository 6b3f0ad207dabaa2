"""Hints for commands that are not recursive: which directories below have checkpoints."""

from __future__ import annotations

import os

from fastckpt._named_step import split_step
from fastckpt._steps.survey import walk_directories
from fastckpt.cli.output import printable

# Directories that a hint names.
_NAMED = 3
# Directories that are looked into for a hint.
_VISITED_MAX = 1000


def not_found_hint(path: str) -> str:
    """Say what to do if a directory has no checkpoints: name those below it that have some."""
    step = split_step(path)
    if step is not None:
        return f"this command takes a directory, not a step: {printable(step[0])}"
    found = _with_checkpoints(path) if os.path.isdir(path) else []
    if not found:
        return "give the directory that holds model_*.pt or checkpoint_epoch*.pt"
    names = ", ".join(map(printable, found[:_NAMED]))
    more = len(found) - _NAMED
    return f"not recursive: give the directory itself: {names}" + (
        f" and {more} more" if more > 0 else ""
    )


def _with_checkpoints(root: str) -> list[str]:
    found = []
    for number, directory in enumerate(walk_directories(root, set())):
        if number == _VISITED_MAX:
            break
        if directory is None or isinstance(directory, OSError) or directory.path == root:
            continue
        if directory.steps or directory.others:
            found.append(directory.path)
    return found
