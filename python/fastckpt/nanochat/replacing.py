"""Save a step again: what was whole stays loadable until the new save is whole.

A file that is about to be replaced gets a second, hidden name first: it is *kept*. Whoever saves the last
part of the new save removes the hidden names; so does every later save of the step.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from fastckpt import _native
from fastckpt._contents.identity import standing
from fastckpt._steps.opened import OpenedFiles
from fastckpt._steps.replaced import Judged, judged_names, superseded_names
from fastckpt._steps.survey import StepFiles, own_name, survey_step, survey_steps
from fastckpt.errors import CheckpointError

from .log import logger

# How many saves that never became whole, and may do so yet, have their files kept. More are traces of a run
# in which some ranks never save, and would fill the disk.
_UNFINISHED_MAX = 2


def keep_replaced(
    commit: _native.Commit, directory: str, step: int, names: Iterable[str], save_id: int
) -> None:
    """Give each of these files a second name, if it is there.

    The next `commit.publish` makes the second names durable before it renames anything. Damaged files
    are of no use, and are not kept.

    Raises:
        OSError: A file cannot be read or linked. Nothing has been replaced then.
    """
    try:
        _keep_replaced(commit, directory, step, names, save_id)
    except OSError as error:
        # An error of the core says so already.
        if error.strerror and ", while " not in error.strerror:
            error.strerror += ", while keeping the file that is replaced"
        raise


def _keep_replaced(
    commit: _native.Commit, directory: str, step: int, names: Iterable[str], save_id: int
) -> None:
    files = survey_steps(directory).get(step)
    if files is None:
        return
    if files.kept:
        # Without hard links, an interrupted save has moved files aside: the names that it left may be the
        # only ones, and not durable yet.
        commit.sync_directory(directory)
    opened = OpenedFiles(directory, files)
    there = {*files.names()}
    for name in names:
        if name not in there:
            continue
        try:
            replaced = opened.save_id_of(name)
        except (CheckpointError, FileNotFoundError):
            continue
        if replaced != save_id:
            # If it answers that there is no file, another process has deleted it since it was opened.
            commit.keep(os.path.join(directory, name), replaced)


def release_kept(commit: _native.Commit, directory: str) -> None:
    """Remove the second names of files that a newer, whole save of their step has replaced.

    For all steps: a save that was killed may have left some in a step that is never saved again.

    The directory is fsynced first: the new names may be those of other ranks, which have not come to
    their fsync yet.
    """
    try:
        kept = [files for files in survey_steps(directory).values() if files.kept]
        superseded = [one for files in kept for one in _superseded(directory, files)]
        if superseded:
            commit.discard(directory, superseded)
    except FileNotFoundError:
        # Another rank is removing the same files.
        return
    except OSError as error:
        # The save is whole and durable; what is left takes space, and the next save tries again.
        logger.warning(f"Files that were replaced in {directory} could not be removed: {error}")


def release_unreplaced(
    commit: _native.Commit, directory: str, step: int, names: Iterable[str]
) -> None:
    """After a failed save, remove the second names of the files that still have their first.

    Only for files of this rank: another rank may be about to replace its own.
    """
    own = {*names}
    try:
        files = survey_step(directory, step)
        unreplaced = [
            name
            for name in files.kept_names()
            if own_name(name) in own and _is_same_file(directory, name, own_name(name))
        ]
        if unreplaced:
            # Without an fsync before: that of this directory may be what has failed, and these files still
            # have their own names.
            commit.discard(directory, judged_names(directory, unreplaced), after_sync=False)
    except OSError as error:
        # The caller raises the error of the save.
        logger.warning(f"Second names of files in {directory} could not be removed: {error}")


def _superseded(directory: str, files: StepFiles) -> list[Judged]:
    try:
        return superseded_names(directory, files)
    except (CheckpointError, FileNotFoundError):
        # Other ranks have not finished.
        return _unfinished(directory, files)


def _unfinished(directory: str, files: StepFiles) -> list[Judged]:
    """Return the second names in a step that was never whole, except those of the last few saves."""
    by_age = sorted(files.kept.values(), key=lambda kept: _write_time(directory, kept))
    names = [name for kept in by_age[:-_UNFINISHED_MAX] for name in kept.names()]
    return judged_names(directory, names)


def _write_time(directory: str, kept: StepFiles) -> int:
    times = [standing(os.path.join(directory, name)) for name in kept.names()]
    return max((there.changed_ns for there in times if there is not None), default=0)


def _is_same_file(directory: str, kept: str, name: str) -> bool:
    try:
        return os.path.samefile(os.path.join(directory, kept), os.path.join(directory, name))
    except FileNotFoundError:
        return False
