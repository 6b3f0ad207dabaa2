"""Rotation: which checkpoints stay, in which order the others go, and what happens if they do not."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.manager_runs import manager_of, messages, names, save_all, steps_in

import fastckpt
from fastckpt._steps.checkpoint_names import CheckpointName, parse_checkpoint_name
from fastckpt._steps.held import HeldDirectory
from fastckpt.training import rotation
from fastckpt.training.config import CheckpointConfig


def name(step: int, epoch: int = 0, rank: int = 0) -> str:
    return str(CheckpointName(step, epoch, rank))


def test_the_newest_by_step_and_the_best_stay(tmp_path: Path) -> None:
    manager = manager_of(tmp_path, save_total_limit=2)
    save_all(manager, {10: 5.0, 20: 1.0, 30: 4.0, 40: 3.0, 50: 2.0})
    assert names(tmp_path) == ["best_model.pt", name(20), name(40), name(50)]
    # A new best: the old one is one of many again.
    save_all(manager, {60: 0.5})
    assert names(tmp_path) == ["best_model.pt", name(50), name(60)]


def test_without_a_limit_all_stay(tmp_path: Path) -> None:
    save_all(manager_of(tmp_path, save_total_limit=None), dict.fromkeys(range(20), 1.0))
    assert len(steps_in(tmp_path)) == 20


def test_ages_of_files_say_nothing(tmp_path: Path) -> None:
    manager = manager_of(tmp_path, save_total_limit=2, metric_name=None)
    for step in (10, 20, 30):
        path = manager.save(0, step, {})
        assert path is not None
        os.utime(path, (2e9 - step, 2e9 - step))
    assert steps_in(tmp_path) == [20, 30]


def test_checkpoints_of_one_step_stay_or_go_together(tmp_path: Path) -> None:
    manager = manager_of(tmp_path, save_total_limit=1, metric_name=None)
    for epoch in (1, 2):
        manager.save(epoch, 10, {})
    assert names(tmp_path) == [name(10, 1), name(10, 2)]
    manager.save(3, 20, {})
    assert names(tmp_path) == [name(20, 3)]


def test_what_cannot_be_deleted_is_warned_of_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manager = manager_of(tmp_path, save_total_limit=1, metric_name=None)
    manager.save(0, 10, {})
    real = HeldDirectory.unlink

    def refused(directory: HeldDirectory, file_name: str) -> None:
        if file_name == name(10):
            path = os.path.join(directory.path, file_name)
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
        real(directory, file_name)

    monkeypatch.setattr(HeldDirectory, "unlink", refused)
    assert manager.save(0, 20, {}) == tmp_path / name(20)
    assert messages(caplog) == [
        (
            "An old checkpoint could not be deleted, and is tried again later: "
            f"{tmp_path / name(10)}: Permission denied"
        )
    ]
    manager.save(0, 30, {})
    assert steps_in(tmp_path) == [10, 30]
    monkeypatch.undo()
    manager.save(0, 40, {})
    assert steps_in(tmp_path) == [40]


def test_files_of_other_ranks_go_after_their_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = manager_of(tmp_path, save_total_limit=2)
    removed = []
    real = HeldDirectory.unlink

    def watched(directory: HeldDirectory, file_name: str) -> None:
        removed.append(file_name)
        real(directory, file_name)

    for step, loss in {10: 1.0, 20: 2.0, 30: 3.0, 40: 4.0}.items():
        for rank in (1, 2):
            fastckpt.save({}, tmp_path / name(step, 0, rank))
        monkeypatch.setattr(HeldDirectory, "unlink", watched)
        save_all(manager, {step: loss})
        monkeypatch.undo()
    # 10 is the best.
    assert removed == [name(20), name(20, 0, 1), name(20, 0, 2)]
    left = {10: 1.0, 30: 1.0, 40: 1.0}
    expected = {"best_model.pt", *(name(step, 0, rank) for step in left for rank in range(3))}
    assert set(names(tmp_path)) == expected


def test_files_of_ranks_without_a_checkpoint_go_once_a_later_one_is_there(tmp_path: Path) -> None:
    manager = manager_of(tmp_path, metric_name=None)
    for step in (10, 20, 30):
        fastckpt.save({}, tmp_path / name(step, 0, 1))
    (tmp_path / name(5)).write_bytes(b"damaged")
    fastckpt.save({}, tmp_path / name(5, 0, 1))
    manager.save(0, 20, {})
    # That of 30 may be of a rank that is ahead, that of 5 belongs to something to be repaired.
    assert names(tmp_path) == [name(5), name(5, 0, 1), name(20), name(20, 0, 1), name(30, 0, 1)]


def test_beside_the_steps_of_an_earlier_run_another_rank_may_still_be_ahead(tmp_path: Path) -> None:
    """Started again from step 0; checkpoint 90 is of the run before."""
    manager = manager_of(tmp_path, metric_name=None)
    manager.save(0, 90, {})
    for step in (5, 20):
        fastckpt.save({}, tmp_path / name(step, 0, 1))
    manager.save(0, 10, {})
    assert names(tmp_path) == [name(10), name(20, 0, 1), name(90)]


def test_a_file_that_somebody_else_has_deleted_is_no_trouble(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = manager_of(tmp_path, save_total_limit=2, metric_name=None)
    for step in (10, 20):
        manager.save(0, step, {})
    (tmp_path / name(10)).unlink()
    manager.save(0, 30, {})
    assert steps_in(tmp_path) == [20, 30]
    assert messages(caplog) == []


_NAMES = st.builds(CheckpointName, st.integers(0, 60), st.integers(0, 3))


def naive(
    there: set[CheckpointName],
    limit: int | None,
    every: int | None,
    cycle: int | None,
    protected: set[CheckpointName],
) -> set[CheckpointName]:
    """Say for each checkpoint by itself whether it may go."""
    gone = set()
    for one in there:
        newer = {other.step for other in there if other.step > one.step}
        reasons = [
            limit is None,
            limit is not None and len(newer) < limit,
            every is not None and one.step % every == 0,
            cycle is not None and one.step > 0 and one.step % cycle == 0,
            any(one.step == other.step for other in protected),
        ]
        if not any(reasons):
            gone.add(one)
    return gone


@given(
    there=st.sets(_NAMES, min_size=1),
    limit=st.none() | st.integers(1, 6),
    every=st.none() | st.integers(1, 9),
    cycle=st.none() | st.integers(1, 9),
    data=st.data(),
)
def test_rotation_agrees_with_looking_at_each_checkpoint(
    there: set[CheckpointName],
    limit: int | None,
    every: int | None,
    cycle: int | None,
    data: st.DataObject,
) -> None:
    protected = data.draw(st.sets(st.sampled_from(sorted(there)), max_size=2))
    config = CheckpointConfig(save_total_limit=limit, keep_every=every, cycle_steps=cycle)
    found = rotation.expendable(there, config, protected=protected)
    assert found == sorted(naive(there, limit, every, cycle, protected))


_LOSSES = st.sampled_from([0.0, 1.0, 2.0, 3.0, math.nan, math.inf])


@settings(max_examples=25)
@given(
    saves=st.lists(st.tuples(st.integers(1, 12), _LOSSES), min_size=1, max_size=8),
    limit=st.integers(1, 3),
    data=st.data(),
)
def test_after_any_saves_the_directory_is_what_a_naive_list_says(
    saves: list[tuple[int, float]],
    limit: int,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("run")
    fields: dict[str, Any] = {"save_total_limit": limit, "verify_before_delete": False}
    manager = manager_of(directory, **fields)
    there: dict[int, float] = {}
    best: tuple[int, float] | None = None
    for step, loss in saves:
        if data.draw(st.booleans()):
            manager = manager_of(directory, **fields)
        save_all(manager, {step: loss})
        there[step] = loss
        if not math.isnan(loss) and (best is None or loss < best[1]):
            best = (step, loss)
        keep = {step, *sorted(there)[-limit:]} | ({best[0]} if best else set())
        there = {one: value for one, value in there.items() if one in keep}
        assert steps_in(directory) == sorted(there)
        found = manager.get_best_checkpoint()
        assert (found is None) == (best is None)
        if found is not None and best is not None:
            contents = fastckpt.load(found)
            assert (contents["global_step"], contents["metrics"]["val_loss"]) == best
            assert contents["best_metric"] == best[1]
        latest = manager.get_latest_checkpoint()
        assert latest is not None
        assert parse_checkpoint_name(latest.name) == CheckpointName(max(there), 0)


@given(step=st.integers(0, 10**12), epoch=st.integers(0, 10**6), rank=st.integers(0, 5000))
def test_a_name_says_what_it_was_made_of(step: int, epoch: int, rank: int) -> None:
    made = CheckpointName(step, epoch, rank)
    assert parse_checkpoint_name(str(made)) == made


@pytest.mark.parametrize(
    "wrong",
    [
        "checkpoint_epoch001_step00000001.pt",
        "checkpoint_epoch0001_step0000001.pt",
        "checkpoint_epoch00001_step00000001.pt",
        "checkpoint_epoch0001_step00000001_rank0.pt",
        "checkpoint_epoch0001_step00000001_rank01.pt",
        "checkpoint_epoch0001_step00000001.pt.tmp",
        "xcheckpoint_epoch0001_step00000001.pt",
        "checkpoint_epoch0001_step00000001.pt\n",
        "best_model.pt",
    ],
)
def test_other_names_are_none_of_a_managers(wrong: str) -> None:
    assert parse_checkpoint_name(wrong) is None
