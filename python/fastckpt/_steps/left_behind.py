"""Which files no rank will complete to a checkpoint: one rule for steps and for files of ranks. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from fastckpt import _native
from fastckpt._contents.identity import standing

# The names that the core gives to temporary files; similar ones belong to other programs.
_TEMPORARY = re.compile(r"\.fastckpt-[0-9]+-[0-9]+\.tmp", re.ASCII)


def is_left_behind(changed_ns: int, later_ns: Collection[int]) -> bool:
    """Whether every rank has gone past files that are not a whole checkpoint.

    They have if a checkpoint of a later step is whole and no file is newer than that one. Steps alone
    do not tell: a run that was started again from an early step writes steps below those of the first
    run. While `divide_temporaries` finds temporary files of running saves, files may still be written.

    Args:
        changed_ns: When the last of the files was written, in nanoseconds.
        later_ns: When the whole checkpoints of later steps were written.
    """
    return bool(later_ns) and changed_ns <= max(later_ns)


def newest_change(paths: Iterable[str]) -> int:
    """Return when the last of these files was written, in nanoseconds; 0 if none is there."""
    found = map(standing, paths)
    return max((there.changed_ns for there in found if there is not None), default=0)


def divide_temporaries(directory: str, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Divide the temporary files among these names by their locks: those of running saves, and of dead ones.

    Raises:
        OSError: The directory cannot be listed.
    """
    stale = _native.remove_stale(directory, dry_run=True)
    ours = [name for name in names if _TEMPORARY.fullmatch(name)]
    return [name for name in ours if name not in stale], stale
