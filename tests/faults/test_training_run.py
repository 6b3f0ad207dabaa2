"""A training run that is killed, cut off or left without space loses the steps since its last save.

And nothing else: resumed, it goes on bit for bit as if nothing had happened.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest
from tests.faults import training_run
from tests.faults.disks import need_loop_disks, need_memory_disks
from tests.faults.power.recording import need_recorded_disks
from tests.faults.requirements import need_program
from tests.faults.training_run import Losses

SEED = 20_261
KILLS = 12
SHUT_DOWNS = 3
POWER_CUTS = 25
TIMEOUT_SECS = 250

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


class Aside:
    """A process that has never used autograd itself, so that its forks can."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def __call__(
        self,
        work: Callable[_Parameters, _Result],
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> _Result:
        """Do some work there; returns what it returns."""
        return self._pool.submit(work, *args, **kwargs).result(TIMEOUT_SECS)


# What is made once for all of them is made once.
pytestmark = pytest.mark.xdist_group("training run")


@pytest.fixture(scope="module")
def aside() -> Iterator[Aside]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield Aside(pool)


@pytest.fixture(scope="module")
def undisturbed(aside: Aside, tmp_path_factory: pytest.TempPathFactory) -> Losses:
    return aside(training_run.train_undisturbed, tmp_path_factory.mktemp("undisturbed"))


def test_killed_at_any_moment(aside: Aside, undisturbed: Losses, tmp_path: Path) -> None:
    assert aside(training_run.kill, SEED, KILLS, tmp_path, undisturbed) >= KILLS


def test_the_disk_fills_up(aside: Aside, undisturbed: Losses, tmp_path: Path) -> None:
    need_memory_disks()
    # All that is compared on the way is in there; here, that the disk was full in the middle.
    assert 0 < aside(training_run.fill_disk, tmp_path, undisturbed) < training_run.STEPS


@pytest.mark.parametrize("file_system", ["ext4", "xfs"])
def test_the_file_system_shuts_down(
    file_system: str, aside: Aside, undisturbed: Losses, tmp_path: Path
) -> None:
    need_loop_disks(file_system)
    need_program("xfs_io")
    codes = aside(training_run.shut_down, SEED, SHUT_DOWNS, tmp_path, file_system, undisturbed)
    assert len(codes) == SHUT_DOWNS


def test_the_power_goes(aside: Aside, undisturbed: Losses, tmp_path: Path) -> None:
    need_recorded_disks("ext4")
    tally = aside(training_run.cut_power, SEED, POWER_CUTS, tmp_path, "ext4", undisturbed)
    assert tally.failures == []
    assert tally.outcomes["acknowledged"] > 0
