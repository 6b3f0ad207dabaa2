"""Steps that are not whole, and files of ranks without their checkpoint: what is known of each."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from fastckpt import _native
from fastckpt._contents.identity import Standing
from fastckpt._contents.outline import read_outline
from fastckpt._steps.checkpoint_names import CheckpointName
from fastckpt._steps.held import HeldDirectory
from fastckpt._steps.left_behind import is_left_behind, newest_change
from fastckpt._steps.manager_files import ManagerFiles
from fastckpt._steps.removal import Going, Space, orphans_going
from fastckpt._steps.saves import read_save
from fastckpt._steps.survey import (
    Listing,
    StepFiles,
    is_of_step,
    own_name,
    parse_name,
    part_of_step,
)
from fastckpt.errors import CheckpointError

from .report import StepState, UnfinishedStep


@dataclass(frozen=True)
class Judgement:
    """What is known of files that are not a checkpoint, and what they were when that was found.

    Attributes:
        step: What is known.
        going: The files, for the case that they go.
    """

    step: UnfinishedStep
    going: Going


class StepJudge:
    """Looks at the steps of a directory, the highest first, and keeps those that are not whole.

    Args:
        held: The directory.
    """

    def __init__(self, held: HeldDirectory) -> None:
        self._held = held
        self._directory = held.path
        self._listing = Listing(held.path)
        # Of the whole steps so far, that of which the last file was written last: when that was.
        self._whole: list[int] = []
        self.unfinished: list[Judgement] = []

    def look(self, files: StepFiles) -> None:
        """Judge one step; every step above it has been looked at.

        Raises:
            OSError: One of its files cannot be read.
        """
        # Before it is judged: what is there later may be of another save.
        judged = self._held.look_at([*files.names(), *files.kept_names()])
        try:
            save = read_save(self._directory, files.step, optimizer=True, listing=self._listing)
        except FileNotFoundError as error:
            # IncompleteCheckpointError is one too.
            self._add(files, judged, self._state(files), error)
        except CheckpointError as error:
            self._add(files, judged, StepState.DAMAGED, error)
        else:
            self._whole = [max((newest_change(save.paths()), *self._whole))]

    def _state(self, files: StepFiles) -> StepState:
        if not self._is_left_behind(files):
            return StepState.UNDER_WAY
        if not _are_ours(self._directory, files):
            return StepState.FOREIGN
        if not files.shards and not files.kept and self._loads_model(files):
            return StepState.MODEL_ONLY
        return StepState.ABANDONED

    def _is_left_behind(self, files: StepFiles) -> bool:
        return is_left_behind(newest_change(self._paths(files)), self._whole)

    def _loads_model(self, files: StepFiles) -> bool:
        try:
            read_save(self._directory, files.step, optimizer=False, listing=self._listing)
        except (CheckpointError, FileNotFoundError):
            return False
        return True

    def _add(
        self,
        files: StepFiles,
        judged: Mapping[str, Standing],
        state: StepState,
        error: Exception,
    ) -> None:
        paths = self._paths(files)
        step = UnfinishedStep(
            directory=self._directory,
            step=files.step,
            state=state,
            reason=str(error),
            loads_model=state is not StepState.DAMAGED and self._loads_model(files),
            nbytes=sum(map(Space().look, paths)),
            files=tuple(paths),
        )
        names = [os.path.basename(path) for path in paths]
        going = Going(
            directory=self._held,
            first=[name for name in names if is_model(name)],
            rest=[name for name in names if not is_model(name)],
            judged=judged,
            part=part_of_step(files.step),
            belongs=partial(is_of_step, step=files.step),
            what="model",
        )
        self.unfinished.append(Judgement(step, going))

    def _paths(self, files: StepFiles) -> list[str]:
        """Return the paths of a step's files, models first, and each manifest behind its meta.

        A meta without its manifest is taken at its word: gone first, the manifest could make a model of
        one save and a meta of another look like one step.
        """
        names = [*files.names(), *files.kept_names()]
        paths = [os.path.join(self._directory, name) for name in names]
        return sorted(paths, key=lambda path: (not is_model(path), _role(path) == "manifest"))


class RankFilesJudge:
    """Looks at files of ranks whose checkpoint, that of rank 0, is not there.

    Args:
        held: Where they are.
        checkpoints: All checkpoints of a CheckpointManager there.
    """

    def __init__(self, held: HeldDirectory, checkpoints: Sequence[ManagerFiles]) -> None:
        self._held = held
        self._directory = held.path
        self._checkpoints = checkpoints
        # The steps from which on something is whole, descending, and when the newest of that was written.
        self._newest: list[tuple[int, int]] | None = None

    def look(self, files: ManagerFiles) -> Judgement:
        """Judge the files of ranks of one step and epoch.

        Raises:
            OSError: One of them, or of the checkpoints of later steps, cannot be read.
        """
        judged = self._held.look_at(files.rank_names())
        paths = [os.path.join(self._directory, name) for name in files.rank_names()]
        missing = os.path.join(self._directory, str(CheckpointName(files.step, files.epoch)))
        reason = f"{missing} is missing: rank 0 has not saved it, or it was deleted"
        state = StepState.UNDER_WAY
        if is_left_behind(newest_change(paths), self._later(files.step)):
            try:
                state = StepState.ABANDONED if all(map(_bears_mark, paths)) else StepState.FOREIGN
            except CheckpointError as error:
                state, reason = StepState.DAMAGED, str(error)
        step = UnfinishedStep(
            directory=self._directory,
            step=files.step,
            epoch=files.epoch,
            state=state,
            reason=reason,
            loads_model=False,
            nbytes=sum(map(Space().look, paths)),
            files=tuple(paths),
        )
        return Judgement(step, orphans_going(self._held, files, judged))

    def _later(self, step: int) -> list[int]:
        """Return when the newest of the whole checkpoints of later steps was written."""
        if self._newest is None:
            self._newest = self._look_at_all_above(step)
        # The first that is asked for has the lowest step.
        end = bisect_left(self._newest, -step, key=lambda each: -each[0])
        return [changed_ns for _, changed_ns in self._newest[end - 1 : end] if end]

    def _look_at_all_above(self, step: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for files in reversed(self._checkpoints):
            if files.step > step and files.name is not None:
                changed_ns = self._look_at(files.name)
                if changed_ns is not None:
                    newest = max((changed_ns, *(each for _, each in found[-1:])))
                    found.append((files.step, newest))
        return found

    def _look_at(self, name: str) -> int | None:
        """Return when a checkpoint was written; None where it is not whole."""
        path = os.path.join(self._directory, name)
        try:
            read_outline(path)
        except (CheckpointError, FileNotFoundError):
            return None
        return newest_change([path])


def _are_ours(directory: str, files: StepFiles) -> bool:
    """Whether fastckpt has written all archives of a step."""
    names = [*filter(None, [files.model]), *files.shards.values()]
    if not names:
        return files.manifest is not None or bool(files.kept)
    return all(_is_marked(os.path.join(directory, name)) for name in names)


def _is_marked(path: str) -> bool:
    try:
        return _bears_mark(path)
    except CheckpointError:
        return False


def _bears_mark(path: str) -> bool:
    try:
        return _native.Archive.open(path).save_mark is not None
    except FileNotFoundError:
        return False


def is_model(path: str) -> bool:
    """Whether a file is the model of a step, or was before it was replaced."""
    return _role(path) == "model"


def _role(path: str) -> str | None:
    named = parse_name(own_name(os.path.basename(path)))
    return None if named is None else named.role
