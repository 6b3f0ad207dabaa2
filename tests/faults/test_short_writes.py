"""Transfers that stop half-way and calls that signals interrupt: see `short_writes`."""

from __future__ import annotations

import pytest
import torch
from tests.faults.damage import fast_directory
from tests.faults.requirements import need_program
from tests.faults.shim import workloads
from tests.faults.shim.shim import Plan
from tests.faults.shim.zygote import shared
from tests.faults.short_writes import disturb, interrupted, problem_of, run
from tests.specimens import assert_same

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


def test_signals_without_end_keep_no_space_from_being_reserved_for_ever() -> None:
    """tmpfs reserves all of a file or, where a signal comes, nothing: with a fast timer it never would."""
    need_program("gcc")
    work = f"{workloads.__name__}:{workloads.save_file.__name__}"
    with fast_directory() as directory:
        ending = shared().run(work, directory, Plan("interrupt", kinds=("allocate",)), number=1)
        assert problem_of(ending) is None
        assert 2 < interrupted(ending)["allocate"] < 100
        saved = torch.load(directory / workloads.FILE, weights_only=True)
        assert_same(saved, workloads.file_state(1))
