"""Save ids: all ranks of one save write the same, without waiting, and no two saves share one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rendezvous import Rendezvous, in_ranks, rendezvous
from torch import distributed

import fastckpt
from fastckpt import _native
from fastckpt._steps import save_id as save_id_module

WORLD_SIZE = 4


def mark_of(path: Path) -> tuple[int, int]:
    mark = _native.Archive.open(path).save_mark
    assert mark is not None
    return mark.save_id, mark.shards


def save(directory: Path, step: int, rank: int = 0, *, optimizer: Any = 1, **options: Any) -> None:
    fastckpt.save_checkpoint(directory, step, {"n": rank}, optimizer, {}, rank=rank, **options)


def test_files_of_one_save_share_an_id_and_no_two_saves_do(tmp_path: Path) -> None:
    seen = set()
    for step in (1, 2, 2):
        save(tmp_path, step)
        mark = mark_of(tmp_path / f"model_{step:06d}.pt")
        assert mark == mark_of(tmp_path / f"optim_{step:06d}_rank0.pt")
        assert mark[0] > 0
        assert mark[1] == 1
        seen.add(mark[0])
    assert len(seen) == 3


def test_a_step_without_optimizer_state_has_no_shards(tmp_path: Path) -> None:
    save(tmp_path, 1, optimizer=None, world_size=8)
    assert mark_of(tmp_path / "model_000001.pt")[1] == 0


def test_without_a_process_group_only_rank_0_has_an_id(tmp_path: Path) -> None:
    for rank in (2, 0, 1):
        save(tmp_path, 1, rank)
    assert mark_of(tmp_path / "optim_000001_rank1.pt") == (0, 0)
    assert mark_of(tmp_path / "optim_000001_rank2.pt") == (0, 0)
    assert fastckpt.verify(tmp_path).ok
    for rank in range(3):
        loaded = fastckpt.load_checkpoint(tmp_path, 1, "cpu", load_optimizer=True, rank=rank)
        assert loaded == ({"n": 0}, 1, {})


def test_a_plain_save_carries_no_id(tmp_path: Path) -> None:
    fastckpt.save({}, tmp_path / "a.pt")
    assert mark_of(tmp_path / "a.pt") == (0, 0)


def test_an_id_agreed_elsewhere_is_used(tmp_path: Path) -> None:
    with save_id_module.agreed(17, 2):
        save(tmp_path, 1, 1)
        save(tmp_path, 1, 0)
    assert mark_of(tmp_path / "model_000001.pt") == (17, 2)
    assert mark_of(tmp_path / "optim_000001_rank1.pt") == (17, 2)
    save(tmp_path, 2)
    assert mark_of(tmp_path / "model_000002.pt")[0] != 17
    for wrong in (0, 10**14, -1):
        with pytest.raises(ValueError, match="save_id must be"), save_id_module.agreed(wrong, 1):
            pass


@pytest.fixture
def meeting() -> Iterator[Rendezvous]:
    with rendezvous() as found:
        yield found


def test_ranks_of_a_process_group_agree(tmp_path: Path, meeting: Rendezvous) -> None:
    run = tmp_path / "d12"

    def work(rank: int) -> None:
        for step in (1, 1, 2):
            save(run, step, rank)

    in_ranks(meeting, WORLD_SIZE, work)
    ids = set()
    for step in (1, 2):
        marks = {mark_of(run / f"optim_{step:06d}_rank{rank}.pt") for rank in range(WORLD_SIZE)}
        marks.add(mark_of(run / f"model_{step:06d}.pt"))
        assert len(marks) == 1
        ids |= marks
        assert fastckpt.load_checkpoint(run, step, "cpu", True, rank=3)[1] == 1
    assert {shards for _, shards in ids} == {WORLD_SIZE}
    assert len(ids) == 2
    assert not [name for name in os.listdir(run) if name.startswith(".")]


def test_nobody_waits_for_a_rank_that_does_not_save(tmp_path: Path, meeting: Rendezvous) -> None:
    def work(rank: int) -> None:
        if rank != 2:
            save(tmp_path, 1, rank)

    in_ranks(meeting, WORLD_SIZE, work)
    with pytest.raises(fastckpt.IncompleteCheckpointError, match=r"rank2\.pt is missing"):
        fastckpt.load_checkpoint(tmp_path, 1, "cpu", load_optimizer=True)


def test_the_master_alone_may_save_the_state_of_all(tmp_path: Path, meeting: Rendezvous) -> None:
    def work(rank: int) -> None:
        if rank == 0:
            save(tmp_path, 1, world_size=1)

    in_ranks(meeting, WORLD_SIZE, work)
    assert fastckpt.load_checkpoint(tmp_path, 1, "cpu", load_optimizer=True) == ({"n": 0}, 1, {})


def test_a_rank_that_skips_its_optimizer_keeps_count(tmp_path: Path, meeting: Rendezvous) -> None:
    """The second save of a step is the second for every rank, whatever the first one wrote."""

    def work(rank: int) -> None:
        save(tmp_path, 1, rank, optimizer=None if rank == 1 else 1)
        save(tmp_path, 1, rank)

    in_ranks(meeting, WORLD_SIZE, work)
    assert fastckpt.find_last_good_step(tmp_path, world_size=WORLD_SIZE) == 1


# The barrier.


def test_barrier_returns_when_the_step_is_whole_everywhere(
    tmp_path: Path, meeting: Rendezvous
) -> None:
    def work(rank: int) -> None:
        for turn in range(3):
            save(tmp_path, turn % 2, rank)
            fastckpt.barrier_commit(tmp_path, turn % 2, timeout_secs=200)
            assert fastckpt.find_last_good_step(tmp_path, world_size=WORLD_SIZE) == min(turn, 1)

    in_ranks(meeting, WORLD_SIZE, work)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_rank_0_may_end_right_after_the_barrier(tmp_path: Path, meeting: Rendezvous) -> None:
    """The store goes with it, which the others must not need any more."""

    def work(rank: int) -> None:
        save(tmp_path, 1, rank)
        fastckpt.barrier_commit(tmp_path, 1, timeout_secs=200)

    in_ranks(meeting, WORLD_SIZE, work, meet_again=False)
    assert fastckpt.find_last_good_step(tmp_path, world_size=WORLD_SIZE) == 1


def test_barrier_names_the_rank_that_does_not_come(tmp_path: Path, meeting: Rendezvous) -> None:
    def work(rank: int) -> None:
        if rank != 3:
            save(tmp_path, 1, rank)
        # From here on, those that come come at once.
        distributed.barrier()
        if rank == 3:
            return
        with pytest.raises(fastckpt.IncompleteCheckpointError, match="from rank 3 within 4 s"):
            fastckpt.barrier_commit(tmp_path, 1, timeout_secs=4)

    in_ranks(meeting, WORLD_SIZE, work)


def test_barrier_without_a_group_checks_the_step(tmp_path: Path) -> None:
    save(tmp_path, 1)
    fastckpt.barrier_commit(tmp_path, 1)
    (tmp_path / "optim_000001_rank0.pt").unlink()
    with pytest.raises(fastckpt.IncompleteCheckpointError, match=r"rank0\.pt is missing"):
        fastckpt.barrier_commit(tmp_path, 1)


def test_saving_leaves_the_random_state_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    save(tmp_path, 1)
    assert torch.equal(torch.get_rng_state(), before)
