"""What `fastckpt.repair` found in a damaged file, and what it made of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fastckpt._verdict import Judged


class Outcome(str, enum.Enum):
    """What the new file holds."""

    #: All that was saved.
    WHOLE = "whole"
    #: The object without the tensors that are lost.
    PARTIAL = "partial"
    #: A dict of raw records: what they mean is lost.
    RECORDS = "records"
    #: There is no new file: nothing could be salvaged.
    NOTHING = "nothing"


@dataclass(frozen=True)
class LostRecord:
    """One record that could not be salvaged.

    Attributes:
        record: Its name, e.g. "data/17"; empty where that is lost too.
        reason: Why, in words.
        offset: Where it begins in the damaged file; None where there is no trace of it.
        nbytes: Its size in bytes, if that is known.
        expected: CRC-32 that the file states for it.
        found: CRC-32 of the bytes that are there.
    """

    record: str
    reason: str
    offset: int | None = None
    nbytes: int | None = None
    expected: int | None = None
    found: int | None = None


@dataclass(frozen=True)
class LostTensor:
    """One place of the saved object whose tensor is lost.

    Attributes:
        name: The keys that lead to it, e.g. "transformer.h.3.mlp.c_fc.weight".
        record: The record that held it.
        is_left_out: Whether its key is gone from the dict that it was in; else there is None in its
            place.
    """

    name: str
    record: str
    is_left_out: bool


@dataclass(frozen=True)
class RepairReport(Judged):
    """What `fastckpt.repair` did.

    Attributes:
        path: The damaged file.
        to: The new file, or where it would have been.
        outcome: What the new file holds.
        nbytes: Size of the new file in bytes; 0 if there is no new file.
        records: Names of the records that were salvaged, in file order.
        lost: Records that were not, those that only frame the file included.
        tensors: Places of the object whose tensors are lost.
        notes: What else there is to know, in sentences.
    """

    path: str
    to: str
    outcome: Outcome
    nbytes: int
    records: tuple[str, ...]
    lost: tuple[LostRecord, ...]
    tensors: tuple[LostTensor, ...]
    notes: tuple[str, ...]

    @property
    def output(self) -> str:
        """Another name of `to`."""
        return self.to

    @property
    def status(self) -> str:
        """The verdict: "good" if the file was good or only its framing damaged, else "damaged"."""
        return "good" if self.outcome is Outcome.WHOLE else "damaged"
