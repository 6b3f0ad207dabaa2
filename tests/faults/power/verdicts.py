"""What a crash state may hold, and how what it must not hold is said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.faults.power.recording import Clock

# The promises that a crash state can break.
LOST = "lost"
DAMAGED = "damaged"
MIXED = "mixed"
LEFT_BEHIND = "left behind"
NOT_ALIVE = "not alive"


class Violation(Exception):
    """A crash state breaks a promise."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")


def kinds_of(failures: Iterable[str]) -> set[str]:
    """Return which promises the failures of a run say to be broken."""
    kinds = (DAMAGED, LEFT_BEHIND, LOST, MIXED, NOT_ALIVE)
    return {kind for failure in failures for kind in kinds if f" -> {kind}: " in failure}


@dataclass(frozen=True)
class Moment:
    """How far the saves had come when the power went. They are numbered from 1 on.

    Attributes:
        acknowledged: The last that had returned; 0 for none.
        begun: The last that had reached the disk: that one or the next.
    """

    acknowledged: int
    begun: int

    def may_hold(self, numbers: Iterable[int]) -> set[int]:
        """Return which of the saves to one place may be there; with 0 where none need be."""
        of_place = list(numbers)
        last = max((n for n in of_place if n <= self.acknowledged), default=0)
        return {last, *(n for n in of_place if self.acknowledged < n <= self.begun)}

    def name(self, found: int) -> str:
        """Name the outcome by the save that was found where the last one went."""
        if self.begun == self.acknowledged:
            return "acknowledged"
        if found == self.begun:
            return "new"
        return "old" if self.acknowledged else "nothing yet"


class Saves(Protocol):
    """Saves in a row, and what has to be there whenever the power goes."""

    def work(self, directory: Path, clock: Clock) -> None:
        """Save one after the other."""

    def check(self, directory: Path, moment: Moment) -> str:
        """Look at what a power cut left; returns the outcome, and raises Violation."""
