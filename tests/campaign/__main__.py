"""Run the fault harnesses for hours: `make campaign`, or

    python -m tests.campaign [--minutes N] [--only NAME]... [--list] [--skip-seeded-bugs]

First every seeded bug is built and has to be caught by a named test; then the harnesses run in
turns, the one furthest from its goal first. Ctrl-C stops at any time: what is done is in the ledger
(tests/campaign/ledger.json), and the next campaign goes on with other seeds.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.campaign.harnesses import HARNESSES, PROTOCOL, Harness
from tests.campaign.ledger import Ledger, tested_commit

_DEFAULT_MINUTES = 120.0


def main() -> int:
    """Run what the command line asks for; return 1 if anything failed."""
    arguments = _parse()
    harnesses = [h for h in HARNESSES if not arguments.only or h.name in arguments.only]
    if arguments.list:
        _print_state(Ledger(), harnesses)
        return 0
    failed = False
    if not arguments.skip_seeded_bugs:
        command = [sys.executable, "-m", "tests.seeded_bugs"]
        failed = subprocess.run(command, check=False).returncode != 0
    directory = Path(tempfile.mkdtemp(prefix="fastckpt-campaign-"))
    try:
        failed = _run_in_turns(harnesses, arguments.minutes, directory) or failed
    except KeyboardInterrupt:
        print("stopped")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    _print_state(Ledger(), harnesses)
    return int(failed)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, default=_DEFAULT_MINUTES)
    parser.add_argument("--only", action="append", choices=[h.name for h in HARNESSES])
    parser.add_argument("--list", action="store_true", help="say what has been done, and end")
    parser.add_argument("--skip-seeded-bugs", action="store_true")
    return parser.parse_args()


def _run_in_turns(harnesses: list[Harness], minutes: float, directory: Path) -> bool:
    """Run batches until the time is over or every goal is reached; whether anything failed."""
    deadline = time.monotonic() + minutes * 60
    ledger = Ledger()
    broken: set[str] = set()
    print(f"testing {tested_commit()}")
    while time.monotonic() < deadline:
        open_ones = [h for h in harnesses if h.name not in broken and _cases(ledger, h) < h.goal]
        if not open_ones:
            print("every goal is reached")
            break
        harness = min(open_ones, key=lambda h: _cases(ledger, h) / h.goal)
        seed = ledger.next_seed(harness.name)
        work = directory / f"{harness.name}-{seed}"
        work.mkdir()
        began = time.monotonic()
        tally = harness.run(seed, harness.batch, work)
        seconds = time.monotonic() - began
        shutil.rmtree(work, ignore_errors=True)
        ledger.add(harness.name, tally, seconds, PROTOCOL)
        print(
            f"{harness.name} seed {seed}: {tally.cases:,} cases in {seconds:.0f} s, "
            f"{len(tally.failures)} failed; {_cases(ledger, harness):,} of {harness.goal:,}",
            flush=True,
        )
        if tally.failures:
            print("\n".join(f"  {failure}" for failure in tally.failures))
            broken.add(harness.name)
    return bool(broken)


def _print_state(ledger: Ledger, harnesses: list[Harness]) -> None:
    print("\n| harness | cases | goal | failed | before | hours |\n|---|---:|---:|---:|---:|---:|")
    for harness in harnesses:
        own = [entry for entry in ledger.entries if entry.harness == harness.name]
        failed = sum(len(entry.failures) for entry in own)
        hours = sum(entry.seconds for entry in own) / 3600
        cases = _cases(ledger, harness)
        # Of a protocol that is not this one any more.
        before = ledger.cases(harness.name) - cases
        figures = (f"{cases:,}", f"{harness.goal:,}", str(failed), f"{before:,}", f"{hours:.2f}")
        print(f"| {harness.name} | {' | '.join(figures)} |")


def _cases(ledger: Ledger, harness: Harness) -> int:
    return ledger.cases(harness.name, harness.protocol)


if __name__ == "__main__":
    sys.exit(main())
