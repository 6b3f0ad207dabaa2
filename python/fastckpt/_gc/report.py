"""What `fastckpt.collect_garbage` found: files that nobody needs, and steps that are not whole."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fastckpt._steps.checkpoint_names import step_name
from fastckpt._verdict import Judged


class GarbageKind(str, enum.Enum):
    """Why a file is garbage."""

    #: Of a save whose process died before the file was whole.
    TEMPORARY = "temporary"
    #: The hidden directory of an export whose process died before its files were whole.
    EXPORT = "export"
    #: The second name of a file that a newer, whole save has replaced.
    REPLACED = "replaced"
    #: Of a step that can never be completed.
    INCOMPLETE = "incomplete"


class StepState(str, enum.Enum):
    """What is known of a step that is not whole."""

    #: Every rank has gone past it, so nobody will complete it.
    ABANDONED = "abandoned"
    #: No later step is whole: it may be being saved right now.
    UNDER_WAY = "under_way"
    #: Model and meta are there, and no shard at all: somebody has removed the shards.
    MODEL_ONLY = "model_only"
    #: Not written by fastckpt.
    FOREIGN = "foreign"
    #: A file of it is damaged, so what belongs to it cannot be known.
    DAMAGED = "damaged"


@dataclass(frozen=True)
class GarbageFile:
    """One file, or one directory of an export, that nobody needs.

    Attributes:
        path: The file.
        kind: Why nobody needs it.
        nbytes: Its size in bytes; of a directory, that of the files in it.
        removed: Whether it has been removed; False in a dry run.
        step: The step that it belonged to; None for a temporary file and for an export.
        error: Why it could not be removed.
    """

    path: str
    kind: GarbageKind
    nbytes: int
    removed: bool = False
    step: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class UnfinishedStep:
    """One step that is not whole, or files of ranks whose checkpoint is not there.

    Attributes:
        directory: Where its files are.
        step: The step.
        epoch: The epoch, for files of ranks of a `CheckpointManager`; None for a step with nanochat's names.
        state: What is known of it. Only ABANDONED ones are ever removed.
        reason: What is missing or wrong, a sentence.
        loads_model: Whether its model and meta are whole, and load without the optimizer.
        nbytes: Size of its files in bytes.
        files: Paths of its files, in the order in which they are removed: the model first.
        removed: Whether all of them have been removed.
    """

    directory: str
    step: int
    state: StepState
    reason: str
    loads_model: bool
    nbytes: int
    files: tuple[str, ...]
    removed: bool = False
    epoch: int | None = None

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return step_name(self.step, self.epoch)


@dataclass(frozen=True)
class GcReport(Judged):
    """What `fastckpt.collect_garbage` found and removed.

    Attributes:
        files: Garbage, removed or (in a dry run) to be removed. Files of steps that can never be
            completed are among them only with `incomplete`.
        steps: Steps that are not whole, by directory and step.
        live: Temporary files of saves, and directories of exports, that run now or whose owner cannot be
            told.
        errors: What could not be listed, read or removed: path and message.
        not_found: Paths that were given and are not directories.
        freed_nbytes: Bytes of disk space that the removal frees (or, in a dry run, would free). A
            file that has another name elsewhere frees none.
        dry_run: Whether nothing was removed.
        incomplete: Whether steps that can never be completed were to be removed.
    """

    files: tuple[GarbageFile, ...]
    steps: tuple[UnfinishedStep, ...]
    live: tuple[str, ...]
    errors: tuple[tuple[str, str], ...]
    not_found: tuple[str, ...]
    freed_nbytes: int
    dry_run: bool
    incomplete: bool

    @property
    def status(self) -> str:
        """The verdict: "good" if all was listed, and all that was to be removed is gone; "not_found", "io_error"."""
        if self.errors:
            return "io_error"
        return "not_found" if self.not_found else "good"
