"""Processes that save, killed with SIGKILL at random times: see `random_kills`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.faults.random_kills import FileSaver, kill_again_and_again, run

SEED = 20_261_123
CASES = 300


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_at_any_time_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    tally = run(SEED, CASES, tmp_path)
    print(SEED, tally)
    assert tally.failures == []
    assert tally.cases == CASES
    for saver in ("FileSaver", "StepSaver"):
        outcomes = {name: n for name, n in tally.outcomes.items() if name.startswith(saver)}
        # Kills in the middle of a save: the old is there, and a temporary file or a kept one.
        assert outcomes[f"{saver}: old, with traces"] > CASES / 20, outcomes
        assert any("new" in outcome for outcome in outcomes), outcomes


@pytest.mark.timeout(300)
def test_a_save_in_place_is_caught(tmp_path: Path) -> None:
    wrong = FileSaver("tests.faults.shim.wrong_savers:save_files_in_place_on_and_on")
    tally = kill_again_and_again(wrong, CASES, tmp_path, random.Random(SEED))
    print(SEED, tally)
    assert tally.failures != []
