"""What every fault harness gives back, so that a test can run a few cases of it and a campaign many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# More say nothing new, and a campaign keeps them all in a file.
_FAILURES_KEPT = 20


@dataclass
class Tally:
    """What came of the cases of one run.

    Attributes:
        cases: How many were tried.
        outcomes: How often each thing came of one, e.g. {"old": 41, "new": 59}.
        failures: What should not have happened, each with all that is needed to repeat it.
    """

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def count(self, outcome: str) -> None:
        """Add a case that came out as it may."""
        self.cases += 1
        self.outcomes[outcome] += 1

    def fail(self, description: str) -> None:
        """Add a case that came out as it must not."""
        self.cases += 1
        self.outcomes["failed"] += 1
        if len(self.failures) < _FAILURES_KEPT:
            self.failures.append(description)

    def add(self, other: Tally) -> None:
        """Add all the cases of another run."""
        self.cases += other.cases
        self.outcomes += other.outcomes
        self.failures += other.failures[: max(0, _FAILURES_KEPT - len(self.failures))]


# run(seed, cases, directory): the same seed gives the same cases; files go to the directory only.
Run = Callable[[int, int, Path], Tally]
