"""What a campaign has done so far: seeds, counts and outcomes, by harness and by version.

The ledger is a JSON file in the repository. It is written after every batch, so a campaign may be
stopped at any moment, and goes on with the next seed.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tests.faults.harness import Tally

LEDGER = Path(__file__).with_name("ledger.json")
_REPOSITORY = LEDGER.parent.parent.parent


@dataclass
class Entry:
    """All batches of one harness on one version of the code and one kernel.

    Attributes:
        harness: Its name.
        commit: The last commit that changed what is tested (rust/ and python/); "+" behind it means
            that there were changes that are in no commit.
        kernel: The running kernel.
        first_seed: Seed of the first batch; each batch has the next number.
        batches: How many there were.
        cases: How many cases they tried together.
        seconds: How long they took together.
        outcomes: What came of the cases.
        failures: Cases that came out as they must not.
        since: Day of the first batch.
        until: Day of the last.
        protocol: How files were saved, kept and deleted then: `harnesses.PROTOCOL`.
    """

    harness: str
    commit: str
    kernel: str
    first_seed: int
    batches: int = 0
    cases: int = 0
    seconds: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    since: str = ""
    until: str = ""
    protocol: int = 1

    def add(self, tally: Tally, seconds: float) -> None:
        """Add one batch."""
        self.batches += 1
        self.cases += tally.cases
        self.seconds = round(self.seconds + seconds, 1)
        self.outcomes = dict(sorted((Counter(self.outcomes) + tally.outcomes).items()))
        self.failures += tally.failures
        self.until = datetime.now(timezone.utc).strftime("%Y-%m-%d")
        self.since = self.since or self.until


class Ledger:
    """The entries, and the file that holds them."""

    def __init__(self, path: Path = LEDGER) -> None:
        self._path = path
        document: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
        self.entries = [Entry(**entry) for entry in document]

    def cases(self, harness: str, protocol: int = 1) -> int:
        """Return how many cases of a harness have been tried since this protocol, over all versions."""
        return sum(
            entry.cases
            for entry in self.entries
            if entry.harness == harness and entry.protocol >= protocol
        )

    def next_seed(self, harness: str) -> int:
        """Return a seed that no batch of this harness has had."""
        own = [entry for entry in self.entries if entry.harness == harness]
        return max((entry.first_seed + entry.batches for entry in own), default=0)

    def add(self, harness: str, tally: Tally, seconds: float, protocol: int) -> None:
        """Add one batch, which ran with `next_seed`, and write the file."""
        commit, kernel = tested_commit(), platform.release()
        seed = self.next_seed(harness)
        last = next((e for e in reversed(self.entries) if e.harness == harness), None)
        if last is None or (last.commit, last.kernel) != (commit, kernel):
            last = Entry(harness, commit, kernel, seed, protocol=protocol)
            self.entries.append(last)
        last.add(tally, seconds)
        self._write()

    def _write(self) -> None:
        entries = sorted(self.entries, key=lambda entry: (entry.harness, entry.first_seed))
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps([asdict(entry) for entry in entries], indent=1) + "\n")
        os.replace(temporary, self._path)


def tested_commit() -> str:
    """Return the commit that last changed what is tested; see `Entry`."""
    tested = ("rust", "python", "Cargo.lock")
    commit = _git("log", "-1", "--format=%h", "--abbrev=10", "--", *tested)
    changed = _git("status", "--porcelain", "--", *tested)
    return commit + "+" * bool(changed)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_REPOSITORY), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
