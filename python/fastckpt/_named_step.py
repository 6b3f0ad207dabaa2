"""A step as one writes it in a command: DIR@STEP, e.g. runs/d12@1200. Imports no torch."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass

from ._steps.manager_files import survey_manager
from ._steps.saves import read_save
from ._steps.survey import StepFiles, survey_step, survey_steps

_AT_STEP = re.compile(r"(?P<directory>.+)@(?P<step>[0-9]{1,18})", re.ASCII | re.DOTALL)
# The last steps of a directory that a message names.
_STEPS_NAMED = 8


@dataclass(frozen=True)
class NamedStep:
    """A step of a directory, and which files of it there are.

    Attributes:
        directory: The directory.
        step: The step.
        nanochat: Its files with nanochat's names; without any where it has others.
        managed: Names of the CheckpointManager's checkpoints of this step.
    """

    directory: str
    step: int
    nanochat: StepFiles
    managed: tuple[str, ...]

    @property
    def is_nanochat(self) -> bool:
        """Whether it has files with nanochat's names."""
        return bool(self.nanochat.names() or self.nanochat.kept)

    def model_file(self) -> str:
        """Return the file that holds its model.

        Raises:
            IncompleteCheckpointError: No save of it is whole.
            ValueError: There are several.
        """
        if len(self.managed) > 1 or (self.managed and self.is_nanochat):
            names = [*self.nanochat.names()[:1], *self.managed]
            raise ValueError(
                f"{self.directory} has {len(names)} checkpoints of step {self.step}: name the file, "
                f"{os.path.join(self.directory, names[-1])} for instance"
            )
        if self.managed:
            return os.path.join(self.directory, self.managed[0])
        if self.nanochat.model is not None and not self.nanochat.kept:
            return os.path.join(self.directory, self.nanochat.model)
        # A save has replaced files of it, or is at it: which model is the step's takes a look inside.
        return read_save(self.directory, self.step, optimizer=False).model.path


def split_step(path: str) -> tuple[str, int] | None:
    """Return directory and step of DIR@STEP; None for all other paths, and for what is there by that name.

    Example:
        >>> split_step("runs/d12@1200"), split_step("model.pt")
        (('runs/d12', 1200), None)
    """
    match = None if os.path.lexists(path) else _AT_STEP.fullmatch(path)
    return None if match is None else (match["directory"], int(match["step"]))


def find_step(path: str) -> NamedStep | None:
    """Find the step that DIR@STEP names; None for all other paths.

    Raises:
        FileNotFoundError: There is no such directory, or no such step in it.
        OSError: The directory cannot be listed.
    """
    parts = split_step(path)
    if parts is None:
        return None
    directory, step = parts
    if not os.path.isdir(directory):
        # As of any path that is not there.
        os.stat(directory)
        raise NotADirectoryError(errno.ENOTDIR, "not a directory, so it has no steps", directory)
    checkpoints, _ = survey_manager(directory)
    managed = [files.name for files in checkpoints if files.step == step and files.name is not None]
    found = NamedStep(directory, step, survey_step(directory, step), tuple(managed))
    if not (found.is_nanochat or found.managed):
        there = {files.step for files in checkpoints if files.name is not None}
        there |= {number for number, files in survey_steps(directory).items() if files.names()}
        last = ", ".join(map(str, sorted(there)[-_STEPS_NAMED:]))
        which = "the last steps there" if len(there) > _STEPS_NAMED else "the steps there"
        words = f"{which}: {last}" if last else "it has no steps"
        raise FileNotFoundError(errno.ENOENT, f"no step {step} ({words})", directory)
    return found


def model_file(path: str) -> str:
    """Return the file that holds the model of DIR@STEP, and any other path as it is.

    Raises:
        FileNotFoundError, OSError: As for `find_step`.
        IncompleteCheckpointError, ValueError: As for `NamedStep.model_file`.
    """
    named = find_step(path)
    return path if named is None else named.model_file()
