"""`fastckpt.inspect` of directories: steps, checkpoints of managers, and what is wrong with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.inspected_files import inspected_directory, managed, model

import fastckpt
from fastckpt._inspect.names import FileName, name_of_file
from fastckpt._inspect.run_report import CheckpointRow, State


def rows_of(path: Path) -> tuple[CheckpointRow, ...]:
    (run,) = inspected_directory(path).runs
    return run.checkpoints


def size(*paths: Path) -> int:
    return sum(path.stat().st_size for path in paths)


def save_step(directory: Path, step: int, **meta: Any) -> None:
    optimizer = managed(1)["optimizer_state_dict"]
    fastckpt.save_checkpoint(directory, step, model(), optimizer, {"step": step, **meta})


def test_steps_of_a_run(tmp_path: Path) -> None:
    for step in (100, 200, 300):
        loop = {"min_val_bpb": 1.0, "total_training_time": step / 2}
        save_step(tmp_path, step, val_bpb=1 - step / 1000, loop_state=loop)
    (run,) = inspected_directory(tmp_path).runs
    assert [row.step for row in run.checkpoints] == [100, 200, 300]
    names = [
        "model_000100.pt",
        "meta_000100.json",
        "manifest_000100.json",
        "optim_000100_rank0.pt",
    ]
    assert run.checkpoints[0] == CheckpointRow(
        name="model_000100.pt",
        step=100,
        epoch=None,
        state=State.WHOLE,
        problem=None,
        nbytes=size(*(tmp_path / name for name in names)),
        model_nbytes=size(tmp_path / "model_000100.pt"),
        optimizer_nbytes=size(tmp_path / "optim_000100_rank0.pt"),
        ranks=1,
        metrics={
            "val_bpb": 0.9,
            "loop_state.min_val_bpb": 1.0,
            "loop_state.total_training_time": 50.0,
        },
        files=tuple(names),
    )
    assert run.nbytes == size(*tmp_path.iterdir())
    assert run.newest == 300
    assert run.freed_nbytes == size(
        *(path for path in tmp_path.iterdir() if "000300" not in path.name)
    )


def test_torn_and_damaged_steps(tmp_path: Path) -> None:
    for step in (100, 200, 300, 400, 500):
        save_step(tmp_path, step, val_bpb=0.5)
    (tmp_path / "meta_000200.json").unlink()
    (tmp_path / "optim_000300_rank0.pt").unlink()
    (tmp_path / "model_000400.pt").write_bytes(b"nothing of the kind")
    (tmp_path / "model_000500.pt").unlink()
    (run,) = inspected_directory(tmp_path).runs
    assert [(row.step, row.state, row.ranks) for row in run.checkpoints] == [
        (100, State.WHOLE, 1),
        (200, State.TORN, 1),
        (300, State.TORN, 0),
        (400, State.DAMAGED, 1),
        (500, State.TORN, 1),
    ]
    problems = [row.problem or "" for row in run.checkpoints]
    assert problems[0] == ""
    assert "meta_000200.json is missing" in problems[1]
    assert "optim_000300_rank0.pt is missing" in problems[2]
    assert "model_000400.pt is not a checkpoint" in problems[3]
    assert "model_000500.pt is missing" in problems[4]
    # A meta that is there is read whatever the rest is.
    assert run.checkpoints[2].metrics == {"val_bpb": 0.5}
    # Only the first step is known to be whole: nothing older would go.
    assert (run.newest, run.freed_nbytes) == (100, 0)


def test_managed_checkpoints_with_best_and_ranks(tmp_path: Path) -> None:
    for epoch, step, loss in ((0, 100, 3.0), (1, 200, 2.0), (2, 300, 2.5)):
        name = f"checkpoint_epoch{epoch:04d}_step{step:08d}"
        torch.save(managed(step, epoch, val_loss=loss), tmp_path / f"{name}.pt")
        torch.save({"rng_states": {}}, tmp_path / f"{name}_rank1.pt")
    os.link(tmp_path / "checkpoint_epoch0001_step00000200.pt", tmp_path / "best_model.pt")
    (run,) = inspected_directory(tmp_path).runs
    assert [(row.step, row.epoch, row.is_best, row.ranks) for row in run.checkpoints] == [
        (100, 0, False, 2),
        (200, 1, True, 2),
        (300, 2, False, 2),
    ]
    row = run.checkpoints[0]
    assert (row.model_nbytes, row.optimizer_nbytes) == (256, 268)
    assert row.metrics == {"val_loss": 3.0}
    assert row.nbytes == size(*(tmp_path / name for name in row.files))
    everything = size(*(path for path in tmp_path.iterdir() if path.name != "best_model.pt"))
    assert run.nbytes == everything
    # The best one has a second name, and stays.
    freed = "checkpoint_epoch0000_step00000100.pt", "checkpoint_epoch0000_step00000100_rank1.pt"
    part = "checkpoint_epoch0001_step00000200_rank1.pt"
    assert run.freed_nbytes == size(*(tmp_path / name for name in (*freed, part)))


def test_a_copy_of_the_best_takes_room(tmp_path: Path) -> None:
    torch.save(managed(100), tmp_path / "checkpoint_epoch0001_step00000100.pt")
    torch.save(managed(100), tmp_path / "best_model.pt")
    assert [row.name for row in rows_of(tmp_path)] == [
        "best_model.pt",
        "checkpoint_epoch0001_step00000100.pt",
    ]
    assert inspected_directory(tmp_path).nbytes == size(*tmp_path.iterdir())


def test_parts_of_ranks_that_are_missing_or_left(tmp_path: Path) -> None:
    torch.save(managed(100), tmp_path / "checkpoint_epoch0001_step00000100.pt")
    torch.save({}, tmp_path / "checkpoint_epoch0001_step00000100_rank2.pt")
    torch.save({}, tmp_path / "checkpoint_epoch0001_step00000200_rank1.pt")
    rows = rows_of(tmp_path)
    assert [(row.step, row.state, row.ranks) for row in rows] == [
        (100, State.TORN, 2),
        (200, State.TORN, 1),
    ]
    assert rows[0].problem == "the part of rank 1 is missing"
    assert rows[1].problem is not None
    assert rows[1].problem.endswith("checkpoint_epoch0001_step00000200.pt is missing")


def test_a_checkpoint_that_counts_its_ranks_misses_those_at_the_end(tmp_path: Path) -> None:
    root = managed(100)
    root["rng_states"]["world_size"] = 4
    name = "checkpoint_epoch0001_step00000100"
    torch.save(root, tmp_path / f"{name}.pt")
    torch.save({}, tmp_path / f"{name}_rank1.pt")
    (row,) = rows_of(tmp_path)
    assert row.state is State.TORN
    assert row.problem == "the part of rank 2 is missing, and those of 1 more ranks"
    for rank in (2, 3):
        torch.save({}, tmp_path / f"{name}_rank{rank}.pt")
    (row,) = rows_of(tmp_path)
    assert (row.state, row.ranks) == (State.WHOLE, 4)


def test_other_files_and_directories_below(tmp_path: Path) -> None:
    save_step(tmp_path / "d12", 100)
    other = tmp_path / "other"
    other.mkdir()
    torch.save({"step": 7, "loss": 2.5, "model": model()}, other / "a.pth")
    safetensors.torch.save_file(dict(model()), other / "b.safetensors")
    torch.save({}, other / "old.pt", _use_new_zipfile_serialization=False)
    (other / "text.txt").write_text("no checkpoint")
    (tmp_path / "empty").mkdir()
    (tmp_path / "d12" / ".fastckpt-1-1.tmp").touch()
    contents = inspected_directory(tmp_path)
    assert [run.directory for run in contents.runs] == [str(tmp_path / "d12"), str(other)]
    assert contents.leftovers == (str(tmp_path / "d12" / ".fastckpt-1-1.tmp"),)
    assert [(row.name, row.step, row.state) for row in contents.runs[1].checkpoints] == [
        ("a.pth", 7, State.WHOLE),
        ("b.safetensors", None, State.WHOLE),
        ("old.pt", None, State.UNCOVERED),
    ]
    assert contents.runs[1].checkpoints[0].metrics == {"loss": 2.5}
    assert inspected_directory(tmp_path / "empty").runs == ()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("checkpoint_epoch0003_step00000100.pt", FileName("managed", 100, 3)),
        ("checkpoint_epoch12345_step123456789.pt", FileName("managed", 123456789, 12345)),
        ("checkpoint_epoch0003_step00000100_rank12.pt", FileName("rank", 100, 3, 12)),
        ("model_000100.pt", FileName("model", 100)),
        ("optim_000100_rank3.pt", FileName("optimizer", 100, rank=3)),
        ("meta_000100.json", None),
        ("best_model.pt", None),
        ("checkpoint_epoch3_step100.pt", None),
        ("a_checkpoint_epoch0003_step00000100.pt", None),
    ],
)
def test_what_names_say(name: str, says: FileName | None) -> None:
    assert name_of_file(f"runs/x/{name}") == says
