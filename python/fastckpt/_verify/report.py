"""What `fastckpt.verify` finds: damages of a file, verdicts of files and steps, the report."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from fastckpt._steps.role import Role
from fastckpt._verdict import EXIT_CODES

Checksums = Literal["all", "metadata", "none"]


class Status(str, enum.Enum):
    """Verdict of a file, of a step, or of everything that was verified."""

    GOOD = "good"
    #: Its bytes have changed since they were written, or it is not a checkpoint at all.
    DAMAGED = "damaged"
    #: A file of the step is missing, or belongs to another save.
    INCOMPLETE = "incomplete"
    #: The operating system could not read it.
    IO_ERROR = "io_error"
    NOT_FOUND = "not_found"
    #: It has no checksums, so nothing can be said about its bytes.
    UNCHECKED = "unchecked"

    def __str__(self) -> str:
        return self.value

    def exit_code(self, *, strict: bool = False) -> int:
        """Exit code of the command for this verdict; `strict` makes UNCHECKED a failure."""
        if self is Status.UNCHECKED and not strict:
            return 0
        return EXIT_CODES[self.value]


# The first of these that occurs is the verdict of the whole.
_PRECEDENCE = (
    Status.DAMAGED,
    Status.INCOMPLETE,
    Status.IO_ERROR,
    Status.NOT_FOUND,
    Status.UNCHECKED,
    Status.GOOD,
)


def worst(statuses: Iterable[Status]) -> Status:
    """Return the verdict that wins over the others; GOOD if there are no verdicts."""
    return min(statuses, key=_PRECEDENCE.index, default=Status.GOOD)


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong with a file. Offsets and sizes are in bytes.

    Attributes:
        path: The file.
        record: The record that is damaged, e.g. "data/17"; None for a structure between records.
        tensors: Names of the tensors that the record holds.
        offset: First byte of the damaged record or structure.
        nbytes: Its size. A checksum finds a damage in a record, not where in the record.
        expected: CRC-32 that the file states, for a record.
        found: CRC-32 of the bytes that are there, for a record.
        detail: What is wrong, in words.
    """

    path: str
    record: str | None
    tensors: tuple[str, ...]
    offset: int
    nbytes: int
    expected: int | None
    found: int | None
    detail: str


class _HasStatus(Protocol):
    @property
    def status(self) -> Status: ...


class _Judged:
    """A verdict; files without checksums are not a failure, unless one asks for --strict."""

    @property
    def exit_code(self: _HasStatus) -> int:
        """Exit code of `fastckpt verify` for this (without --strict)."""
        return self.status.exit_code()

    @property
    def ok(self: _HasStatus) -> bool:
        """Whether nothing wrong was found; files without checksums do not count as wrong."""
        return self.status.exit_code() == 0

    def __bool__(self: _HasStatus) -> bool:
        """Return `ok`, so that ``if report:`` asks what it seems to."""
        return self.status.exit_code() == 0


@dataclass(frozen=True)
class FileReport(_Judged):
    """What verifying one file found.

    Attributes:
        path: The file, as it was named or found.
        role: What it is by its name; "directory" for a directory that could not be verified.
        status: The verdict.
        step: Step in its name, for files with nanochat's names.
        rank: Rank in its name, for a shard of the optimizer.
        nbytes: Size of the file.
        records: Number of records in it.
        checksums: Which records have a CRC-32: "all", "metadata" (all but tensors), or "none".
        headers_covered: Whether the bytes between the records were compared too.
        damages: What is wrong.
        repairable: Whether `fastckpt repair` would recover something of it.
        message: Why it could not be verified, or what was not covered.
        errno: Number of the operating system's error, where that is why.
        seconds: Time that it took.
    """

    path: str
    role: Role
    status: Status
    step: int | None = None
    rank: int | None = None
    nbytes: int = 0
    records: int = 0
    checksums: Checksums = "none"
    headers_covered: bool = False
    damages: tuple[Damage, ...] = ()
    repairable: bool = False
    message: str | None = None
    errno: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class StepReport(_Judged):
    """What verifying the files of one step found.

    Attributes:
        directory: Where the files are.
        step: The step.
        status: The worst of its files, or INCOMPLETE if one is missing or belongs to another save.
        files: Model, meta, manifest and shards, in this order and by rank; then those files of an
            older save that are kept under other names, if it is the newest whole one.
        ranks: Ranks whose shards are there.
        missing: Names of the files that should be there, e.g. "meta_000100.json".
        torn: What is wrong if files of several saves are mixed, a sentence for each.
        extra: Names of stale files: they do not belong to the save that would be loaded.
        save_id: The save that would be loaded; None if none is whole, or its files do not say.
    """

    directory: str
    step: int
    status: Status
    files: tuple[FileReport, ...]
    ranks: tuple[int, ...]
    missing: tuple[str, ...]
    torn: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    save_id: int | None = None

    @property
    def nbytes(self) -> int:
        """Size of its files in bytes."""
        return sum(file.nbytes for file in self.files)

    @property
    def seconds(self) -> float:
        """Time that verifying its files took."""
        return sum(file.seconds for file in self.files)


@dataclass(frozen=True)
class VerifyReport(_Judged):
    """What `fastckpt.verify` found.

    Attributes:
        files: Every file, those of `steps` included.
        steps: Steps of checkpoint directories, by directory and step.
        leftovers: Temporary files of interrupted saves; not read, and never loaded.
        quick: Whether only the structure was checked.
        seconds: Time that it took.
    """

    files: tuple[FileReport, ...]
    steps: tuple[StepReport, ...]
    leftovers: tuple[str, ...]
    quick: bool
    seconds: float

    @property
    def status(self) -> Status:
        """The verdict of the whole: the worst that was found."""
        # A file of a step that is not there counts in its step: as incomplete.
        in_steps = {id(file) for step in self.steps for file in step.files}
        alone = (file.status for file in self.files if id(file) not in in_steps)
        return worst([*alone, *(step.status for step in self.steps)])

    @property
    def damages(self) -> tuple[Damage, ...]:
        """Everything that is wrong with any file."""
        return tuple(damage for file in self.files for damage in file.damages)

    @property
    def nbytes(self) -> int:
        """Size of all files in bytes."""
        return sum(file.nbytes for file in self.files)

    @property
    def newest_good_steps(self) -> dict[str, int | None]:
        """The newest good step of each directory, None if it has none."""
        newest: dict[str, int | None] = {step.directory: None for step in self.steps}
        for step in self.steps:
            best = newest[step.directory]
            if step.status is Status.GOOD and (best is None or step.step > best):
                newest[step.directory] = step.step
        return newest
