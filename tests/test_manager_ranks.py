"""Several ranks of a real process group: each saves and gets back its own RNG states."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.manager_runs import Weights, manager_of, messages, names, steps_in
from tests.rendezvous import Rendezvous, in_ranks, rendezvous
from torch import distributed

import fastckpt

WORLD_SIZE = 2


@pytest.fixture
def meeting() -> Iterator[Rendezvous]:
    with rendezvous() as found:
        yield found


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def draw() -> list[float]:
    return [random.random(), float(np.random.random()), float(torch.rand(1))]  # noqa: NPY002


def name(step: int, rank: int = 0) -> str:
    return f"checkpoint_epoch0000_step{step:08d}" + (f"_rank{rank}.pt" if rank else ".pt")


def test_each_rank_goes_on_with_its_own_numbers(tmp_path: Path, meeting: Rendezvous) -> None:
    def save(rank: int) -> list[float]:
        seed_all(rank)
        manager = manager_of(tmp_path, Weights(rank + 1), save_total_limit=2)
        distributed.barrier()
        for step, loss in {10: 2.0, 20: 1.0, 30: 3.0, 40: 4.0}.items():
            draw()
            path = manager.save(0, step, {"val_loss": loss})
            assert path == tmp_path / name(step)
            distributed.barrier()
        return draw()

    expected = in_ranks(meeting, WORLD_SIZE, save)
    assert expected[0] != expected[1]
    # Of the deleted ones nothing is left, of any rank; the weights are those of rank 0.
    kept = [name(step, rank) for step in (20, 30, 40) for rank in (0, 1)]
    assert names(tmp_path) == ["best_model.pt", *kept]
    own = torch.load(tmp_path / name(40, 1), weights_only=True)
    assert set(own) == {"epoch", "global_step", "rank", "rng_states"}
    assert fastckpt.verify(tmp_path).ok

    def resume(rank: int) -> list[Any]:
        seed_all(99)
        model = Weights()
        manager = manager_of(tmp_path, model)
        resumed = manager.load()
        assert resumed.skipped == {}
        assert model.value == 1
        drawn = draw()
        return [drawn, manager.load_best().skipped, draw() == drawn]

    found = in_ranks(meeting, WORLD_SIZE, resume)
    assert found == [[numbers, {}, False] for numbers in expected]


def test_numbers_of_another_save_are_not_taken(tmp_path: Path, meeting: Rendezvous) -> None:
    """A rank's file of an earlier save of the same step, of which the rank never came to the later."""

    def save(rank: int) -> None:
        seed_all(rank)
        manager_of(tmp_path, metric_name=None).save(0, 10, {})

    in_ranks(meeting, WORLD_SIZE, save)
    shutil.copy(tmp_path / name(10, 1), tmp_path / "old")
    in_ranks(meeting, WORLD_SIZE, save)
    os.replace(tmp_path / "old", tmp_path / name(10, 1))

    def resume(rank: int) -> dict[str, str]:
        return manager_of(tmp_path, metric_name=None).load().skipped

    skipped = in_ranks(meeting, WORLD_SIZE, resume)
    assert skipped[0] == {}
    assert skipped[1] == {
        "RNG": f"the states of rank 1 cannot be read: {tmp_path / name(10, 1)} is of another save "
        f"than {tmp_path / name(10)}"
    }
    (tmp_path / name(10, 1)).unlink()
    skipped = in_ranks(meeting, WORLD_SIZE, resume)
    assert "No such file" in skipped[1]["RNG"]


def test_another_number_of_ranks_is_said(
    tmp_path: Path, meeting: Rendezvous, caplog: pytest.LogCaptureFixture
) -> None:
    in_ranks(
        meeting,
        WORLD_SIZE,
        lambda _rank: bool(manager_of(tmp_path, metric_name=None).save(0, 10, {})),
    )
    resumed = manager_of(tmp_path, metric_name=None).load()
    assert "torch RNG" in resumed.restored
    assert list(resumed.skipped) == ["RNG of all ranks"]
    assert "2 ranks have saved, and 1 resume" in messages(caplog)[0]


def test_without_rng_states_other_ranks_write_nothing(tmp_path: Path, meeting: Rendezvous) -> None:
    def save(rank: int) -> None:
        manager = manager_of(tmp_path, metric_name=None, save_rng_state=False)
        assert manager.save(0, 10, {}) == tmp_path / name(10)

    in_ranks(meeting, WORLD_SIZE, save)
    assert names(tmp_path) == [name(10)]


def test_all_ranks_save_only_what_is_better(tmp_path: Path, meeting: Rendezvous) -> None:
    def save(rank: int) -> list[bool]:
        manager = manager_of(tmp_path, save_best_only=True)
        distributed.barrier()
        losses = enumerate((3.0, 4.0, 2.0, float("nan"), 1.0))
        # No barrier in between: a rank may see the files of one that is ahead.
        return [manager.save(0, step, {"val_loss": loss}) is not None for step, loss in losses]

    assert in_ranks(meeting, WORLD_SIZE, save) == [[True, False, True, False, True]] * WORLD_SIZE
    assert steps_in(tmp_path) == [0, 2, 4]


def test_a_signal_to_one_rank_lets_all_save_the_same_step(
    tmp_path: Path, meeting: Rendezvous
) -> None:
    def train(rank: int) -> list[Any]:
        # Children of a process that did not reset it may inherit another.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        manager = manager_of(tmp_path, metric_name=None, save_every_steps=1000)
        with manager.preemption() as preemption:
            for step in range(1, 50):
                if rank == 1 and step == 7:
                    os.kill(os.getpid(), signal.SIGTERM)
                if manager.should_save(step):
                    manager.save(0, step, {})
                if preemption.requested:
                    break
        return [step, preemption.is_saved]

    assert in_ranks(meeting, WORLD_SIZE, train) == [[7, True]] * WORLD_SIZE
    assert names(tmp_path) == [name(7), name(7, 1)]


def test_clocks_of_ranks_need_not_agree(tmp_path: Path, meeting: Rendezvous) -> None:
    def train(rank: int) -> list[bool]:
        secs = 1e-9 if rank == 1 else 1e9
        manager = manager_of(tmp_path, metric_name=None, save_every_secs=secs)
        return [manager.should_save(step) for step in range(1, 4)]

    assert in_ranks(meeting, WORLD_SIZE, train) == [[True] * 3] * WORLD_SIZE
