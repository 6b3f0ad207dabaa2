"""Saves that are killed at every one of their file operations: see `crash_everywhere`."""

from __future__ import annotations

import random

import pytest
from tests.faults.crash_everywhere import CHANGES, RANKS, kills, run, try_all
from tests.faults.damage import fast_directory
from tests.faults.harness import Tally
from tests.faults.requirements import need_program
from tests.faults.shim.scenes import FileScene, Scene, StepScene, save_scenes

SEED = 20_261_121
#: Beside a kill at every operation that changes something.
CASES = 60

_WRONG = "tests.faults.shim.wrong_savers"


#: Every so many of all kills are tried in every test run.
_QUICK_STRIDE = 17


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kill_at_any_operation_leaves_the_old_or_the_new() -> None:
    need_program("gcc")
    scenes = save_scenes(random.Random(SEED), RANKS)
    with fast_directory() as directory:
        tally = try_all(list(kills(scenes, directory, CHANGES)), Tally(), SEED)
        everywhere = tally.cases
        tally.add(run(SEED, CASES, directory))
    print(everywhere, tally)
    assert tally.failures == []
    for scene in scenes:
        # A kill before the first change leaves the old, one after the last change the new.
        assert tally.outcomes[f"{scene.name}: {scene.before}"] > 5
        assert tally.outcomes[f"{scene.name}: new"] > 1
    finished = sum(count for outcome, count in tally.outcomes.items() if "finished" in outcome)
    assert finished < tally.cases / 20


@pytest.mark.timeout(300)
def test_a_few_kills() -> None:
    need_program("gcc")
    with fast_directory() as directory:
        cases = list(kills(save_scenes(random.Random(SEED), RANKS), directory, CHANGES))
        tally = try_all(cases[::_QUICK_STRIDE], Tally(), SEED)
    print(len(cases), tally)
    assert tally.failures == []
    assert tally.cases > 20
    assert sum(tally.outcomes[outcome] for outcome in tally.outcomes if "new" in outcome) > 2


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("scene", "words"),
    [
        (FileScene("in place", replaces=True, work=f"{_WRONG}:save_file_in_place"), "FormatError"),
        (
            FileScene("in place, new", replaces=False, work=f"{_WRONG}:save_file_in_place"),
            "FormatError",
        ),
        (
            StepScene("temp name ends in .pt", [0], work=f"{_WRONG}:save_step_beside"),
            "left behind: new_model_000200.pt",
        ),
        (
            StepScene("model first", [0], replaces=False, work=f"{_WRONG}:save_model_first"),
            "one rank's model is there before its other files",
        ),
        (
            StepScene("step in place", [0], replaces=True, work=f"{_WRONG}:save_step_in_place"),
            "EOFError",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Scene) else "",
)
def test_a_wrong_saver_is_caught(scene: Scene, words: str) -> None:
    need_program("gcc")
    with fast_directory() as directory:
        tally = try_all(list(kills([scene], directory)), Tally(), SEED)
    print(tally.failures)
    assert any(words in failure for failure in tally.failures), tally
