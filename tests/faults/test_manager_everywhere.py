"""Rotation never loses the last good checkpoint or the best one: see `manager_everywhere`."""

from __future__ import annotations

import errno

import pytest
from tests.faults import manager_everywhere
from tests.faults.damage import fast_directory
from tests.faults.errors_everywhere import failures
from tests.faults.harness import Tally
from tests.faults.manager_everywhere import kills, stages
from tests.faults.requirements import need_program
from tests.faults.shim.manager_scenes import (
    ManagerScene,
    manager_read_scenes,
    manager_save_scenes,
    name_of,
)

_WRONG = "tests.faults.shim.wrong_managers"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_at_any_change_loses_neither_the_last_good_nor_the_best() -> None:
    need_program("gcc")
    scenes = manager_save_scenes()
    with fast_directory() as directory:
        cases = [(stage, plan) for stage in stages(scenes, directory) for plan in kills(stage)]
        tally = manager_everywhere.try_all(cases, Tally())
    print(len(cases), tally)
    assert tally.failures == []
    for scene in scenes:
        assert tally.outcomes[f"{scene.name}: killed, {scene.before}"] > 5
        assert tally.outcomes[f"{scene.name}: killed, new"] > 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_error_of_any_operation_loses_neither_the_last_good_nor_the_best() -> None:
    need_program("gcc")
    scenes = [*manager_save_scenes(), *manager_read_scenes()]
    with fast_directory() as directory:
        cases = [
            (stage, plan)
            for stage in stages(scenes, directory)
            for plan in failures(stage.operations, [errno.EIO])
        ]
        tally = manager_everywhere.try_all(cases, Tally())
    print(len(cases), tally)
    assert tally.failures == []
    outcomes = {outcome.split(": ", 1)[1] for outcome in tally.outcomes}
    assert outcomes == {
        *("raised, old", "raised, none", "raised, new", "done, new"),
        *("raised, read", "done, read"),
    }


def test_the_order_is_proof_name_name_of_the_best_deletion() -> None:
    need_program("gcc")
    with fast_directory() as directory:
        (stage,) = stages([ManagerScene("a new best", 40, 0.5)], directory)
    steps = [(one.kind, one.name.removeprefix("run/")) for one in stage.operations]
    names = [name for kind, name in steps if kind == "create"]
    assert len(names) == 1, names
    temporary = names[0].removeprefix("run/")
    new, best = name_of(40), "best_model.pt"
    expected = [
        ("write", temporary),
        ("fsync", temporary),
        ("open", temporary),
        ("rename", new),
        ("fsync of a directory", "run"),
        ("link", None),
        ("rename", best),
        ("fsync of a directory", "run"),
        ("unlink", name_of(10)),
        ("unlink", name_of(20)),
    ]
    found = iter(steps)
    for kind, name in expected:
        assert any(one[0] == kind and name in (None, one[1]) for one in found), (kind, name, steps)


@pytest.mark.timeout(400)
def test_a_few_kills_and_errors_of_a_new_best() -> None:
    need_program("gcc")
    with fast_directory() as directory:
        (stage,) = stages([ManagerScene("a new best", 40, 0.5)], directory)
        every = [*kills(stage), *failures(stage.operations, [errno.EIO])]
        tally = manager_everywhere.try_all([(stage, plan) for plan in every[::9]], Tally())
    print(tally)
    assert tally.failures == []
    assert tally.cases > 20


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("work", "step", "words"),
    [
        ("delete_first", 30, "loaded 200, not 300"),
        ("best_in_place", 40, "best_model.pt"),
        ("best_by_unlink", 40, "best_model.pt is gone"),
    ],
)
def test_a_wrong_manager_is_caught(work: str, step: int, words: str) -> None:
    need_program("gcc")
    scene = ManagerScene("wrong", step, 0.5, work=f"{_WRONG}:{work}")
    with fast_directory() as directory:
        (stage,) = stages([scene], directory)
        cases = [(stage, plan) for plan in kills(stage)]
        tally = manager_everywhere.try_all(cases, Tally())
    print(tally.failures)
    assert any(words in failure for failure in tally.failures), tally


def test_a_manager_that_forgets_the_best_is_caught_without_any_fault() -> None:
    need_program("gcc")
    scene = ManagerScene("wrong", 40, 4.0, work=f"{_WRONG}:forget_the_best")
    with fast_directory() as directory, pytest.raises(AssertionError, match="have nothing to do"):
        stages([scene], directory)
