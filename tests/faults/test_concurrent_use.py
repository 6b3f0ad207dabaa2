"""Several hands on one thing: tensors, files and steps that change while they are saved or read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.faults import changing_tensors, replaced_while_read, shared_paths, shared_steps

SEED = 20
CHANGED_SAVES = 200
SAVES_EACH = 600
STEP_SAVES = 100
CHANGES = 500


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_tensor_that_changes_meanwhile_still_verifies(tmp_path: Path) -> None:
    """The checksum is of the bytes that were written, not of those that are in the tensor."""
    tally = changing_tensors.run(SEED, CHANGED_SAVES, tmp_path)
    print(tally)
    assert tally.failures == []
    assert tally.cases == CHANGED_SAVES
    # Otherwise nothing has changed while it was being saved.
    assert tally.outcomes["several moments"] > CHANGED_SAVES // 10
    assert os.listdir(tmp_path) == ["changing.pt"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_share_a_path(tmp_path: Path) -> None:
    """Every read finds one of the values, whole; the last rename wins and nothing is left."""
    tally = shared_paths.run(SEED, SAVES_EACH, tmp_path)
    print(tally)
    assert tally.failures == []
    assert tally.outcomes["save"] == shared_paths.SAVERS * SAVES_EACH
    assert min(tally.outcomes[way] for way in ("load", "map", "torch.load", "verify")) > 100


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_step_that_is_saved_again_is_always_there_whole(tmp_path: Path) -> None:
    """Ranks replace their parts one after the other: readers see all old ones or all new ones."""
    tally = shared_steps.run(SEED, STEP_SAVES, tmp_path)
    print(tally)
    assert tally.failures == []
    assert tally.outcomes["save"] == shared_steps.RANKS * STEP_SAVES
    assert (
        min(tally.outcomes[way] for way in ("step", "model", "find", "find-all")) > STEP_SAVES // 2
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_file_that_changes_while_it_is_read_gives_old_or_new_or_an_error(tmp_path: Path) -> None:
    tally = replaced_while_read.run(SEED, CHANGES, tmp_path)
    print(tally)
    assert tally.failures == []
    assert tally.cases == CHANGES
    for result in ("load: old", "load: new", "map: old", "map: new"):
        assert tally.outcomes[result] > 0
    for result in ("FormatError", "FileNotFoundError", "verify: good", "verify: damaged"):
        assert tally.outcomes[result] > 0
