"""Transfers that stop half-way and calls that signals interrupt: see `short_writes`."""

from __future__ import annotations

import pytest
from tests.faults.damage import fast_directory
from tests.faults.requirements import need_program
from tests.faults.short_writes import disturb, interrupted, problem_of, run

SEED = 20_261_124
CASES = 200


@pytest.mark.timeout(300)
def test_half_transfers_and_interruptions_change_nothing() -> None:
    need_program("gcc")
    with fast_directory() as directory:
        tally = run(SEED, CASES, directory)
        print(SEED, tally)
        assert tally.failures == []
        assert tally.outcomes == {"same": CASES}


def test_transfers_are_halved_and_operations_interrupted() -> None:
    """So that the test above tests something."""
    need_program("gcc")
    rounds = 10
    with fast_directory() as directory:
        ending = disturb(SEED, rounds, directory)
    print(interrupted(ending))
    assert problem_of(ending) is None
    assert {"open", "read", "write", "flock"} <= {*interrupted(ending)}
    # Objects of at most two chunks: whole transfers would be two to a save.
    writes = [operation for operation in ending.operations if operation.kind == "write"]
    assert len(writes) > 5 * rounds
