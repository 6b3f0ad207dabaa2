"""What directories of checkpoints hold: one row for each checkpoint."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class State(str, enum.Enum):
    """Whether a checkpoint can be loaded, as far as its structure tells; `verify` reads its bytes."""

    WHOLE = "whole"
    #: A file is missing, or of another save.
    TORN = "torn"
    DAMAGED = "damaged"
    #: A format that cannot be looked into.
    UNCOVERED = "uncovered"
    #: The operating system could not read it.
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class CheckpointRow:
    """One checkpoint: a step with nanochat's names, or a file with the files that belong to it.

    Attributes:
        name: Its first file.
        step: Its step.
        epoch: Its epoch.
        state: Whether it is whole.
        problem: Why not.
        nbytes: Size of its files, each file on disk counted once.
        model_nbytes: Size of the model: of its file, or of the tensors in a file that holds more.
        optimizer_nbytes: Size of the optimizer's state, of all ranks.
        ranks: How many ranks have saved a part of it.
        metrics: The numbers that were measured, by name.
        files: Names of its files.
        is_best: Whether `best_model.pt` is another name of it.
    """

    name: str
    step: int | None
    epoch: int | None
    state: State
    problem: str | None
    nbytes: int
    model_nbytes: int | None
    optimizer_nbytes: int | None
    ranks: int
    metrics: Mapping[str, int | float]
    files: tuple[str, ...]
    is_best: bool = False


@dataclass(frozen=True)
class RunContents:
    """What one directory holds.

    Attributes:
        directory: Its path.
        checkpoints: By step, those without one last.
        nbytes: Size of their files, each file on disk counted once.
        newest: Step of the newest that is whole.
        freed_nbytes: What removing all older than that would free; files that have names elsewhere free
            nothing.
    """

    directory: str
    checkpoints: tuple[CheckpointRow, ...]
    nbytes: int
    newest: int | None
    freed_nbytes: int


@dataclass(frozen=True)
class DirectoryContents:
    """What a directory and those below it hold.

    Attributes:
        path: As it was given.
        runs: The directories in which there are checkpoints.
        nbytes: Size of all, each file on disk counted once.
        leftovers: Temporary files of saves, running or interrupted.
        errors: (path, words) of directories that could not be listed.
    """

    path: str
    runs: tuple[RunContents, ...]
    nbytes: int
    leftovers: tuple[str, ...]
    errors: tuple[tuple[str, str], ...]
