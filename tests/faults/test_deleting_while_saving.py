"""Somebody saves while somebody else deletes or copies: each schedule that once lost something, forced."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.copied_runs import RANKS, names, of_step, outcomes, save_step, whole
from tests.faults.children import in_child, wait_for

import fastckpt
from fastckpt import _native
from fastckpt._copy.copy import Outcome
from fastckpt._gc.judging import StepJudge
from fastckpt._gc.report import StepState
from fastckpt._prune import prune as prune_module
from fastckpt._steps import held as held_module
from fastckpt._steps import removal
from fastckpt._steps.survey import StepFiles
from fastckpt.nanochat import steps as steps_module


def tear(directory: Path, step: int) -> None:
    """Leave a step as a crash does."""
    (directory / f"meta_{step:06d}.json").unlink()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    for step in (10, 50, 100):
        save_step(directory, step, step)
    return directory


def test_gc_keeps_a_step_that_is_saved_after_it_was_judged(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tear(run, 50)
    real = StepJudge.look

    def look(judge: StepJudge, files: StepFiles) -> None:
        real(judge, files)
        # The last one that is judged. The run, started again from here, comes to step 50.
        if files.step == 10:
            save_step(run, 50, 51)

    monkeypatch.setattr(StepJudge, "look", look)
    report = fastckpt.collect_garbage(run, incomplete=True)
    assert whole(run, 50) == 51
    assert {file.error for file in report.files} == {"kept, since it was saved again meanwhile"}
    assert not any(file.removed for file in report.files)
    assert report.freed_nbytes == 0


@pytest.mark.parametrize("ranks", [(1, 0), (1,), (0,)])
def test_prune_keeps_what_is_saved_while_it_makes_the_removal_of_the_model_durable(
    ranks: tuple[int, ...], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = removal.sync_directory

    def save_meanwhile(path: str) -> None:
        real(path)
        if "model_000010.pt" not in names(run):
            save_step(run, 10, 11, ranks)

    monkeypatch.setattr(removal, "sync_directory", save_meanwhile)
    fastckpt.prune(run, keep=2)
    save_step(run, 10, 11, tuple(rank for rank in range(RANKS) if rank not in ranks))
    assert whole(run, 10) == 11


def test_prune_keeps_files_of_ranks_whose_checkpoint_is_saved_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(step: int, rank: int) -> None:
        name = f"checkpoint_epoch0000_step{step:08d}{f'_rank{rank}' if rank else ''}.pt"
        fastckpt.save({"global_step": step, "epoch": 0, "rank": rank}, tmp_path / name)

    save(10, 1)
    for step in (20, 30, 40):
        save(step, 0)
    real = prune_module._settle

    def save_meanwhile(*arguments: Any) -> Any:
        save(10, 0)
        return real(*arguments)

    monkeypatch.setattr(prune_module, "_settle", save_meanwhile)
    report = fastckpt.prune(tmp_path, keep=3)
    assert [file.error for file in report.leftovers] == ["kept, since it was saved again meanwhile"]
    assert "checkpoint_epoch0000_step00000010_rank1.pt" in names(tmp_path)


def test_prune_deletes_nothing_on_account_of_a_checkpoint_that_is_gone_by_then(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = prune_module._settle

    def delete_meanwhile(*arguments: Any) -> Any:
        kept = real(*arguments)
        (run / "model_000100.pt").unlink()
        return kept

    monkeypatch.setattr(prune_module, "_settle", delete_meanwhile)
    report = fastckpt.prune(run, keep=1)
    assert not any(file.removed for each in report.checkpoints for file in each.files)
    assert whole(run, 10) == 10
    assert whole(run, 50) == 50


# Copies


def when_its_meta_is_there(
    to: Path, step: int, act: Callable[[], None]
) -> Callable[[int, int], None]:
    """Return a progress callback that acts once, while the model is being read."""
    done: list[bool] = []

    def progress(_done: int, _total: int) -> None:
        if not done and (to / f"meta_{step:06d}.json").exists():
            done.append(True)
            act()

    return progress


BIG = 4_000_000


def test_a_copy_removes_nothing_that_another_copy_has_acknowledged(tmp_path: Path) -> None:
    source, to = tmp_path / "source", tmp_path / "to"
    save_step(source, 1, 11, numel=BIG)
    reports = []

    def copy_and_save() -> None:
        reports.append(fastckpt.copy_checkpoint(source, to))
        save_step(source, 1, 12, numel=BIG)

    report = fastckpt.copy_checkpoint(
        source, to, progress=when_its_meta_is_there(to, 1, copy_and_save)
    )
    assert reports[0].status == "good"
    assert whole(to, 1) == 11, "it was acknowledged"
    # What is there is not what the source has by now, and is never overwritten.
    assert outcomes(report) == {"step 1": Outcome.CONFLICT}


def test_a_copy_notices_that_the_shard_that_it_found_was_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, to = tmp_path / "source", tmp_path / "to"
    save_step(source, 1, 11, numel=BIG)
    fastckpt.copy_checkpoint(source, to)
    for name in ("model_000001.pt", "meta_000001.json"):
        (to / name).unlink()

    def take_back() -> None:
        # As the undo of another copy does, that published it and not the model.
        (to / "optim_000001_rank0.pt").unlink()

    report = fastckpt.copy_checkpoint(source, to, progress=when_its_meta_is_there(to, 1, take_back))
    assert outcomes(report) == {"step 1": Outcome.COPIED}
    assert whole(to, 1) == 11


@pytest.mark.parametrize("saved", ["model_000001.pt", "optim_000001_rank1.pt"])
def test_a_copy_never_replaces_what_somebody_saves_at_the_destination_meanwhile(
    saved: str, tmp_path: Path
) -> None:
    source, to = tmp_path / "source", tmp_path / "to"
    save_step(source, 1, 11, numel=BIG)
    to.mkdir()
    done: list[bool] = []

    def progress(*_: int) -> None:
        if not done:
            done.append(True)
            torch.save({"of": "somebody else"}, to / saved)

    report = fastckpt.copy_checkpoint(source, to, progress=progress)
    assert torch.load(to / saved) == {"of": "somebody else"}
    assert outcomes(report) == {"step 1": Outcome.CONFLICT}


def test_an_undo_removes_only_files_of_its_own(tmp_path: Path) -> None:
    source, to = tmp_path / "source", tmp_path / "to"
    save_step(source, 1, 11, numel=BIG)
    data = bytearray((source / "model_000001.pt").read_bytes())
    data[-BIG] ^= 1
    (source / "model_000001.pt").write_bytes(data)

    def save_there() -> None:
        torch.save({"of": "somebody else"}, to / "new.pt")
        os.replace(to / "new.pt", to / "optim_000001_rank0.pt")

    report = fastckpt.copy_checkpoint(
        source, to, progress=when_its_meta_is_there(to, 1, save_there)
    )
    assert outcomes(report) == {"step 1": Outcome.DAMAGED}
    assert names(to) == {"optim_000001_rank0.pt"}
    assert torch.load(to / "optim_000001_rank0.pt") == {"of": "somebody else"}


# Locks


@pytest.mark.parametrize("work", ["gc", "prune"])
def test_nothing_is_deleted_where_a_saver_holds_the_lock(
    work: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_module, "_PATIENCE_SECS", 0.1)
    tear(run, 10)
    tear(run, 50)
    save_step(run, 200, 200)
    before = names(run)
    held = held_module.HeldDirectory.open(str(run))
    fcntl.flock(held._fd, fcntl.LOCK_SH)
    if work == "gc":
        files = [*fastckpt.collect_garbage(run, incomplete=True).files]
    else:
        report = fastckpt.prune(run, keep=1)
        files = [file for each in report.checkpoints for file in each.files]  # type: ignore[misc]
    held.close()
    assert files
    words = {"kept, since another process is saving or deleting here"}
    assert {file.error for file in files} == words
    assert names(run) == before


def test_a_save_never_fails_over_a_lock_and_says_that_it_had_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.pt"
    held = held_module.HeldDirectory.open(str(tmp_path))
    # Somebody who deletes, and was stopped in the middle of it.
    with held.locked() as is_locked:
        assert is_locked
        fastckpt.save({"n": 1}, path)
    held.close()
    assert fastckpt.load(path) == {"n": 1}
    (record,) = [record for record in caplog.records if record.name == "fastckpt"]
    assert record.getMessage().startswith(f"Saved in {tmp_path} without its lock, ")


# Linked shards


@pytest.mark.parametrize("has_links", [True, False], ids=["hard links", "no hard links"])
def test_a_step_with_a_linked_shard_survives_a_kill_between_its_two_publishes(
    has_links: bool, tmp_path: Path
) -> None:
    run, big = tmp_path / "run", tmp_path / "big"
    big.mkdir()

    def save(number: float) -> None:
        fastckpt.save_checkpoint(
            run,
            100,
            {"w": torch.full((10,), number)},
            {"m": torch.full((10,), number)},
            {"n": number},
        )

    def loaded() -> float:
        model, optimizer, meta = fastckpt.load_checkpoint(run, 100, "cpu", load_optimizer=True)
        assert optimizer is not None
        assert float(model["w"][0]) == float(optimizer["m"][0]) == meta["n"]
        return float(meta["n"])

    save(1.0)
    shard = run / "optim_000100_rank0.pt"
    shard.rename(big / "shard")
    shard.symlink_to("../big/shard")
    if not has_links:
        # What such a file system leaves where a save is killed after it has moved the shard aside.
        commit = _native.Commit()
        save_id = _native.Archive.open(shard).save_mark
        assert save_id is not None
        commit.keep(shard, save_id.save_id)
        (big / "shard").unlink()
        assert not shard.exists()
        assert loaded() == 1.0
    else:
        child = in_child(lambda: _save_until_the_second_publish(save))
        wait_for(lambda: os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG) is not None)
        assert loaded() == 1.0
        assert shard.is_symlink()
        assert torch.load(shard)["m"][0] == 2.0, "the new shard is there already"
    assert fastckpt.find_last_good_step(run, verify="full") == 100
    assert fastckpt.verify(run).newest_good_steps == {str(run): 100}
    to = tmp_path / "copy"
    assert outcomes(fastckpt.copy_checkpoint(run, to)) == {"step 100": Outcome.COPIED}
    assert not any(path.is_symlink() for path in to.iterdir())
    fastckpt.collect_garbage(run)
    assert loaded() == 1.0, "what is kept is still needed"
    save(3.0)
    assert loaded() == 3.0
    assert names(run) == of_step(run, 100)
    assert names(big) == {"shard"}


def test_gc_takes_a_linked_shard_for_as_new_as_the_file_that_it_leads_to(run: Path) -> None:
    """A save leaves the link as it was: its own time says nothing."""
    shard = run / "optim_000050_rank1.pt"
    shard.unlink()
    shard.symlink_to("../shard")
    os.utime(shard, (1, 1), follow_symlinks=False)
    for name in of_step(run, 50) - {shard.name}:
        os.utime(run / name, (1, 1))
    tear(run, 50)
    # Rank 1 of the run, started again, has come to step 50, and rank 0 not yet.
    save_step(run, 50, 51, (1,))
    report = fastckpt.collect_garbage(run, incomplete=True)
    assert [(step.step, step.state) for step in report.steps] == [(50, StepState.UNDER_WAY)]
    save_step(run, 50, 51, (0,))
    assert whole(run, 50) == 51


def _save_until_the_second_publish(save: Callable[[float], None]) -> None:
    real = steps_module._publish
    calls: list[bool] = []

    def publish(*arguments: Any) -> None:
        calls.append(True)
        if len(calls) == 2:
            os._exit(9)
        real(*arguments)

    steps_module._publish = publish  # type: ignore[assignment]
    save(2.0)
