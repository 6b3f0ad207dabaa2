"""Saves and loads of which every file operation fails: see `errors_everywhere`."""

from __future__ import annotations

import errno
import random

import pytest
from tests.faults.damage import fast_directory
from tests.faults.errors_everywhere import failures, run, stages, try_all
from tests.faults.harness import Tally
from tests.faults.requirements import need_program
from tests.faults.shim.scenes import FileScene
from tests.faults.shim.shim import Plan
from tests.faults.shim.stage import Stage
from tests.faults.shim.zygote import shared

SEED = 20_261_122
#: Beside an EIO at every operation: other errnos, interruptions, errors that stay.
CASES = 500


#: Every so many of all failures are tried in every test run.
_QUICK_STRIDE = 97


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_error_of_any_operation_reaches_the_caller_and_harms_nothing() -> None:
    need_program("gcc")
    with fast_directory() as directory:
        everywhere = [
            (stage, Plan("fail", at, errno.EIO))
            for stage in stages(random.Random(SEED), directory)
            for at in range(1, len(stage.operations) + 1)
        ]
        tally = try_all(everywhere, Tally(), SEED)
        tally.add(run(SEED, CASES, directory))
    print(len(everywhere), tally)
    assert tally.failures == []
    outcomes = {outcome.split(": ", 1)[1] for outcome in tally.outcomes}
    assert outcomes == {
        *("raised, old", "raised, none", "unknown, old", "unknown, none", "unknown, new"),
        *("absorbed, new", "interrupted, new", "raised, read", "right, read"),
    }


@pytest.mark.timeout(300)
def test_a_few_errors() -> None:
    need_program("gcc")
    with fast_directory() as directory:
        cases = [
            (stage, plan)
            for stage in stages(random.Random(SEED), directory)
            for plan in failures(stage.operations, [errno.EIO])
        ]
        tally = try_all(cases[::_QUICK_STRIDE], Tally(), SEED)
    print(len(cases), tally)
    assert tally.failures == []
    assert tally.cases > 30
    outcomes = {outcome.split(": ", 1)[1] for outcome in tally.outcomes}
    assert {"raised, old", "absorbed, new"} <= outcomes


_WRONG = "tests.faults.shim.wrong_savers"


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("work", "words"),
    [
        ("save_with_a_second_fsync", "tried again: fsync"),
        ("save_without_a_word", "nothing was raised for fsync"),
        ("save_and_leave", "left behind: ['.fastckpt-"),
        ("save_file_in_place", "FormatError"),
    ],
)
def test_a_wrong_saver_is_caught(work: str, words: str) -> None:
    need_program("gcc")
    scene = FileScene("wrong", replaces=True, work=f"{_WRONG}:{work}")
    with fast_directory() as directory:
        stage = Stage(scene, shared(), directory)
        cases = [(stage, plan) for plan in failures(stage.operations, [errno.EIO])]
        tally = try_all(cases, Tally(), SEED)
    print(tally)
    assert any(words in failure for failure in tally.failures), tally.failures
