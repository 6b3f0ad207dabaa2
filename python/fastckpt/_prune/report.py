"""What `fastckpt.prune` found, kept and removed."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fastckpt._steps.checkpoint_names import step_name
from fastckpt._verdict import Judged


class Fate(str, enum.Enum):
    """What becomes of a checkpoint."""

    #: It stays, for the reasons given.
    KEPT = "kept"
    #: It is removed (in a dry run: would be).
    REMOVED = "removed"
    #: Incomplete, or maybe under way: neither counted nor touched.
    LEFT_ALONE = "left_alone"
    #: Its bytes have changed since they were written: neither counted nor touched.
    DAMAGED = "damaged"


@dataclass(frozen=True)
class PrunedFile:
    """One file of a checkpoint that goes.

    Attributes:
        path: The file.
        nbytes: Its size in bytes.
        removed: Whether it has been removed; False in a dry run.
        error: Why it could not be removed.
    """

    path: str
    nbytes: int
    removed: bool = False
    error: str | None = None


@dataclass(frozen=True)
class PrunedCheckpoint:
    """One checkpoint of the directory.

    Attributes:
        step: Its step.
        epoch: Its epoch, for a CheckpointManager's checkpoint; None for a step with nanochat's names.
        fate: What becomes of it.
        reasons: Why: "newest", "every", "best", ... for one that is kept; a sentence for the others.
        nbytes: Size of its files in bytes.
        files: Those that go, in the order in which they are removed; empty for one that stays.
    """

    step: int
    epoch: int | None
    fate: Fate
    reasons: tuple[str, ...] = ()
    nbytes: int = 0
    files: tuple[PrunedFile, ...] = ()

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return step_name(self.step, self.epoch)


@dataclass(frozen=True)
class PruneReport(Judged):
    """What `fastckpt.prune` found and removed.

    Attributes:
        directory: The directory.
        checkpoints: All checkpoints in it, by step.
        leftovers: Files of other ranks whose checkpoint an interrupted prune had removed.
        blocked: Why nothing was removed although something could have been.
        errors: What could not be read or removed: path and message.
        freed_nbytes: Bytes of disk space that the removal frees (in a dry run: would free). A file
            that has another name elsewhere frees none.
        found: Whether the directory is there and holds checkpoints.
        dry_run: Whether nothing was to be removed.
        quick: Whether only the structure of what stays was checked.
    """

    directory: str
    checkpoints: tuple[PrunedCheckpoint, ...]
    leftovers: tuple[PrunedFile, ...]
    blocked: tuple[str, ...]
    errors: tuple[tuple[str, str], ...]
    freed_nbytes: int
    found: bool
    dry_run: bool
    quick: bool

    @property
    def files(self) -> tuple[PrunedFile, ...]:
        """All files that are removed, or (in a dry run) to be removed."""
        return (
            *(file for checkpoint in self.checkpoints for file in checkpoint.files),
            *self.leftovers,
        )

    @property
    def status(self) -> str:
        """The verdict: "good" if all that was to be removed is gone; "damaged", "blocked", "not_found", "io_error"."""
        if self.errors:
            return "io_error"
        if any(checkpoint.fate is Fate.DAMAGED for checkpoint in self.checkpoints):
            return "damaged"
        if self.blocked:
            return "blocked"
        return "good" if self.found else "not_found"
