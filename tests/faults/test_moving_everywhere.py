"""Copies and prunes that are killed at every change, and of which every operation is made to fail.

Whatever happens, what looks like a checkpoint is one, whole; and the same command again does the rest.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

import pytest
from tests.faults import crash_everywhere
from tests.faults.crash_everywhere import CHANGES, kills
from tests.faults.damage import fast_directory
from tests.faults.harness import Tally
from tests.faults.requirements import need_program
from tests.faults.shim.moving_scenes import CopyScene, PruneScene, UnfinishedError
from tests.faults.shim.shim import Plan
from tests.faults.shim.stage import Play, Stage, play_all
from tests.faults.shim.zygote import shared

SCENES = [CopyScene(), PruneScene()]
#: Every so many cases are tried: thousands of operations only look at files.
_STRIDE = 7
_QUICK_STRIDE = 131


def failures(stages: Iterable[Stage]) -> list[tuple[Stage, Plan]]:
    """Each operation fails, once and from then on for ever."""
    return [
        (stage, Plan("fail", at, errno.EIO, for_ever=for_ever))
        for stage in stages
        for at in range(1, len(stage.operations) + 1)
        for for_ever in (False, True)
    ]


def try_failures(cases: Iterable[tuple[Stage, Plan]]) -> Tally:
    return play_all(cases, _judge, Tally())


def _judge(play: Play) -> str:
    ending = play.ending
    assert not ending.hangs, "it hangs"
    assert not ending.signal, ending.signal
    if ending.raised is None:
        return f"done, {play.judge(finished=True)}"
    assert ending.raised.is_a(OSError, UnfinishedError), ending.raised.trace
    return f"reported, {play.judge(finished=False)}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_at_any_change_leaves_whole_checkpoints() -> None:
    need_program("gcc")
    with fast_directory() as directory:
        cases = list(kills(SCENES, directory, CHANGES))
        tally = crash_everywhere.try_all(cases, Tally(), 0)
    print(len(cases), tally)
    assert tally.failures == []
    for scene in SCENES:
        assert tally.outcomes[f"{scene.name}: old"] > 20
        assert tally.outcomes[f"{scene.name}: new"] > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_error_of_any_operation_leaves_whole_checkpoints() -> None:
    need_program("gcc")
    with fast_directory() as directory:
        cases = failures(Stage(scene, shared(), directory) for scene in SCENES)[::_STRIDE]
        tally = try_failures(cases)
    print(len(cases), tally)
    assert tally.failures == []
    outcomes = {outcome.split(": ", 1)[1] for outcome in tally.outcomes}
    assert {"reported, old", "done, new"} <= outcomes


def test_a_few_kills_and_errors() -> None:
    need_program("gcc")
    with fast_directory() as directory:
        killed = list(kills(SCENES, directory, CHANGES))
        stages = {id(stage): stage for stage, _ in killed}.values()
        tally = crash_everywhere.try_all(killed[::_QUICK_STRIDE], Tally(), 0)
        tally.add(try_failures(failures(stages)[::_QUICK_STRIDE]))
    print(tally)
    assert tally.failures == []
    assert tally.cases > 15
