"""Transfers that stop half-way and calls that signals interrupt: nobody notices."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from tests.faults.harness import Tally
from tests.faults.shim.shim import Plan
from tests.faults.shim.zygote import Ending, shared

# Saves and loads that one process makes: what it keeps from one to the next is part of the test.
_ROUNDS = 20
_WORK = "tests.faults.shim.workloads:save_and_load_again_and_again"


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Save, load and verify objects of random sizes, all of it disturbed."""
    generator = random.Random(seed)
    tally = Tally()
    while tally.cases < cases:
        rounds = min(_ROUNDS, cases - tally.cases)
        own_seed = generator.randrange(2**31)
        problem = problem_of(disturb(own_seed, rounds, directory))
        if problem:
            tally.fail(f"{rounds} rounds with seed {own_seed} of {seed}: {problem}")
        for _ in range(rounds - bool(problem)):
            tally.count("not known" if problem else "same")
    return tally


def disturb(seed: int, rounds: int, directory: Path) -> Ending:
    """Save, load and verify a number of times, in one process."""
    return shared().run(_WORK, directory, Plan("disturb"), seed=seed, rounds=rounds)


def problem_of(ending: Ending) -> str | None:
    """Say what went wrong; None if nothing did."""
    if ending.hangs:
        return "it hangs"
    if ending.signal:
        return f"signal {ending.signal}"
    return ending.raised.trace if ending.raised else None


def interrupted(ending: Ending) -> Counter[str]:
    """Return how many operations of each kind were interrupted."""
    return Counter(operation.kind for operation in ending.operations if operation.injected)
