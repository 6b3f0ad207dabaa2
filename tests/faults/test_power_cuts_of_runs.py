"""The power goes while checkpoints come and go: a manager saves and rotates, a run is copied and pruned.

For how that is done, and for single files and steps, see `test_power_cuts`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.faults.power import wrong_writers
from tests.faults.power.copy_saves import IN_PART, CopySaves
from tests.faults.power.foreign_saves import ForeignSaves
from tests.faults.power.manager_saves import ManagerSaves
from tests.faults.power.recording import FILE_SYSTEMS, need_recorded_disks
from tests.faults.power.runs import run_copies, run_foreign, run_managers
from tests.faults.power.verdicts import DAMAGED, LOST, kinds_of
from tests.faults.requirements import on_each

STATES = 40
SEED = 20_261_121
# Runs in which much is deleted, and the best changes often.
SEED_OF_WRONG_MANAGERS = 56
SEED_OF_WRONG_COPIES = 75

# A few seconds each, or several times as much where the machine has other work.
patient = pytest.mark.timeout(400)


@patient
@on_each(FILE_SYSTEMS)
def test_a_power_cut_never_costs_a_manager_the_newest_or_the_best(
    file_system: str, tmp_path: Path
) -> None:
    need_recorded_disks(file_system)
    tally = run_managers(SEED, STATES, tmp_path, file_system)
    assert tally.failures == []
    assert tally.cases == STATES
    assert {"old", "new", "acknowledged"} <= tally.outcomes.keys()


@patient
@on_each(FILE_SYSTEMS)
def test_a_power_cut_leaves_whole_checkpoints_of_copies_and_prunes(
    file_system: str, tmp_path: Path
) -> None:
    need_recorded_disks(file_system)
    tally = run_copies(SEED, STATES, tmp_path, file_system)
    assert tally.failures == []
    assert tally.cases == STATES
    assert {"old", "new", IN_PART} <= tally.outcomes.keys()


@patient
@on_each(FILE_SYSTEMS)
def test_what_a_copy_or_a_prune_has_found_whole_survives_a_power_cut(
    file_system: str, tmp_path: Path
) -> None:
    need_recorded_disks(file_system)
    tally = run_foreign(SEED, STATES, tmp_path, file_system)
    assert tally.failures == []
    assert tally.cases == STATES
    assert {"old", "new"} <= tally.outcomes.keys()


# The harness is of worth only if it finds those who do it wrong.


@pytest.mark.slow
@patient
@pytest.mark.parametrize(
    ("make", "kind", "states"),
    [
        (wrong_writers.DeletesFirst, LOST, STATES),
        (wrong_writers.UnlinksTheBest, LOST, STATES),
        (wrong_writers.DeletesUnsynced, DAMAGED, 20),
    ],
)
def test_a_wrong_manager_is_found(
    make: Callable[..., Any], kind: str, states: int, tmp_path: Path
) -> None:
    need_recorded_disks("ext4")
    draw = functools.partial(ManagerSaves, make=make)
    tally = run_managers(SEED_OF_WRONG_MANAGERS, states, tmp_path, "ext4", draw)
    assert kind in kinds_of(tally.failures)


@pytest.mark.slow
@patient
@pytest.mark.parametrize(
    ("wrong", "kind", "states"),
    [
        ({"copier": wrong_writers.copies_as_cp}, LOST, 10),
        ({"copier": wrong_writers.copies_the_model_first}, DAMAGED, 20),
        ({"pruner": wrong_writers.prunes_the_model_last}, DAMAGED, STATES),
    ],
)
def test_a_wrong_copy_or_prune_is_found(
    wrong: dict[str, Any], kind: str, states: int, tmp_path: Path
) -> None:
    need_recorded_disks("ext4")
    draw = functools.partial(CopySaves, **wrong)
    tally = run_copies(SEED_OF_WRONG_COPIES, states, tmp_path, "ext4", draw)
    assert kind in kinds_of(tally.failures)


@pytest.mark.slow
@patient
@pytest.mark.parametrize(
    "wrong",
    [
        {"copier": wrong_writers.copies_what_is_unsynced},
        {"pruner": wrong_writers.prunes_for_what_is_unsynced},
    ],
)
def test_a_copy_or_prune_that_trusts_memory_is_found(wrong: dict[str, Any], tmp_path: Path) -> None:
    need_recorded_disks("ext4")
    draw = functools.partial(ForeignSaves, **wrong)
    tally = run_foreign(SEED_OF_WRONG_COPIES, 20, tmp_path, "ext4", draw)
    assert LOST in kinds_of(tally.failures)
