"""What `fastckpt.copy_checkpoint` copied, found already there, or refused."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fastckpt._verdict import Judged
from fastckpt._verify.report import Damage


class Outcome(str, enum.Enum):
    """What became of a file, or of all files of a checkpoint."""

    #: It has been copied.
    COPIED = "copied"
    #: The same was there already, and was verified there.
    PRESENT = "present"
    #: It is a second name of a checkpoint, and so it is at the destination.
    LINKED = "linked"
    #: The source is damaged: nothing of the checkpoint was left at the destination.
    DAMAGED = "damaged"
    #: Something else is at the destination, which is not overwritten.
    CONFLICT = "conflict"
    #: The step is not whole, and it was asked for.
    INCOMPLETE = "incomplete"
    #: The step is not whole, and the whole ones were asked for.
    SKIPPED = "skipped"
    #: It is not there.
    NOT_FOUND = "not_found"
    #: It could not be read, or not be written.
    IO_ERROR = "io_error"
    #: Not come to, since the destination takes no more.
    NOT_REACHED = "not_reached"


# The verdict of the whole: the first of these that came of anything.
_PRECEDENCE = (
    Outcome.DAMAGED,
    Outcome.IO_ERROR,
    Outcome.CONFLICT,
    Outcome.INCOMPLETE,
    Outcome.NOT_FOUND,
)


@dataclass(frozen=True)
class CopiedFile:
    """One file.

    Attributes:
        source: Where it is.
        path: Where its copy is, or would be.
        nbytes: Its size in bytes.
        outcome: What became of it; NOT_REACHED where another file of the checkpoint stood in the way.
        damages: What is wrong with the source.
        message: What else there is to say: why it was refused, what was not checked or not kept.
    """

    source: str
    path: str
    nbytes: int
    outcome: Outcome
    damages: tuple[Damage, ...] = ()
    message: str | None = None


@dataclass(frozen=True)
class CopiedCheckpoint:
    """A step, a checkpoint of a CheckpointManager, or a single file.

    Attributes:
        name: What it is called in messages: "step 1200".
        step: Its step, None for a single file.
        outcome: What became of it as a whole.
        files: Its files, in the order in which they are made visible.
        message: Why it was not copied.
    """

    name: str
    step: int | None
    outcome: Outcome
    files: tuple[CopiedFile, ...] = ()
    message: str | None = None

    @property
    def nbytes(self) -> int:
        """Size of its files in bytes."""
        return sum(file.nbytes for file in self.files)


@dataclass(frozen=True)
class CopyReport(Judged):
    """What `fastckpt.copy_checkpoint` did.

    Attributes:
        source: What was to be copied, as it was named.
        directory: The directory that it is in.
        to: The directory, or the new name, that it was copied to.
        checkpoints: Everything that was to be copied, in this order.
        others: Names of files in the source's directory that are part of no checkpoint, and were not
            copied.
        seconds: Time that it took.
    """

    source: str
    directory: str
    to: str
    checkpoints: tuple[CopiedCheckpoint, ...]
    others: tuple[str, ...]
    seconds: float

    @property
    def output(self) -> str:
        """Another name of `to`."""
        return self.to

    @property
    def files(self) -> tuple[CopiedFile, ...]:
        """All files."""
        return tuple(file for each in self.checkpoints for file in each.files)

    @property
    def copied_nbytes(self) -> int:
        """Bytes that were written."""
        return sum(file.nbytes for file in self.files if file.outcome is Outcome.COPIED)

    @property
    def status(self) -> str:
        """The verdict: "good", "damaged", "io_error", "conflict", "incomplete" or "not_found"."""
        if not self.checkpoints:
            return Outcome.NOT_FOUND.value
        outcomes = {each.outcome for each in self.checkpoints}
        if outcomes == {Outcome.SKIPPED}:
            return Outcome.INCOMPLETE.value
        return next((each.value for each in _PRECEDENCE if each in outcomes), "good")
