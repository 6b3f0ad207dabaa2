"""Which checkpoint is loaded, what is restored of it, and what is said of the rest."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.manager_runs import (
    Weights,
    damage,
    first_name,
    loaded_step,
    manager_of,
    messages,
    save_all,
)

import fastckpt


def test_load_takes_the_newest_by_step_whatever_the_times_say(tmp_path: Path) -> None:
    save_all(manager_of(tmp_path), {30: 1.0, 200: 2.0, 9: 3.0})
    for age, step in enumerate((9, 30, 200)):
        os.utime(tmp_path / first_name(step), (1e9 - age, 1e9 - age))
    assert loaded_step(manager_of(tmp_path)) == 200


@pytest.mark.parametrize("how", ["flipped bit", "truncated", "empty", "pickle", "text"])
def test_load_falls_back_from_a_damaged_newest_and_says_so(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Weights(0.5)
    save_all(manager_of(tmp_path, model, metric_name=None), {10: 1.0, 20: 2.0, 30: 3.0})
    newest = tmp_path / first_name(30)
    if how == "flipped bit":
        damage(newest)
    elif how == "pickle":
        damage(newest, b"global_step")
    else:
        data = newest.read_bytes()
        pieces = {"truncated": data[: len(data) // 2], "empty": b"", "text": b"not one"}
        newest.write_bytes(pieces[how])
    model.value = 9
    manager = manager_of(tmp_path, model, metric_name=None)
    resumed = manager.load()
    assert resumed["global_step"] == 20
    assert resumed.path == str(tmp_path / first_name(20))
    assert model.value == 0.5
    assert manager.history_steps == [10, 20]
    said = messages(caplog)
    assert f"Fell back to {tmp_path / first_name(20)}: what is newer is damaged" in said
    assert any(one.startswith("Cannot be loaded") and str(newest) in one for one in said)
    # It is left for whoever wants to repair it, and the next saves do not count it.
    save_all(manager, {40: 1.0})
    assert newest.exists()
    with pytest.raises(fastckpt.CheckpointError):
        manager.load(newest)


def test_load_with_nothing_there_is_file_not_found(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError) as caught:
            manager_of(directory).load()
        assert caught.value.filename == str(directory)
        assert caught.value.strerror == "there is no checkpoint in this directory"
        assert manager_of(directory).get_latest_checkpoint() is None
        assert manager_of(directory).get_best_checkpoint() is None
    with pytest.raises(FileNotFoundError):
        manager_of(tmp_path).load(tmp_path / "none.pt")


def test_where_no_checkpoint_is_good_load_says_so(tmp_path: Path) -> None:
    save_all(manager_of(tmp_path), {10: 1.0, 20: 2.0})
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(fastckpt.FormatError, match=r"none of the 3 checkpoints in .* is good"):
        manager_of(tmp_path).load()


def test_the_best_model_is_the_last_resort(tmp_path: Path) -> None:
    save_all(manager_of(tmp_path), {10: 1.0, 20: 2.0})
    shutil.copy(tmp_path / "best_model.pt", tmp_path / "copy")
    os.replace(tmp_path / "copy", tmp_path / "best_model.pt")
    for step in (10, 20):
        (tmp_path / first_name(step)).write_bytes(b"")
    assert loaded_step(manager_of(tmp_path)) == 10


def test_an_error_of_the_disk_is_raised_and_not_got_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = manager_of(tmp_path)
    save_all(manager, {10: 1.0, 20: 2.0})
    real = fastckpt.load

    def failing(path: str, **options: Any) -> Any:
        if "00000020" in path:
            raise OSError(errno.EIO, "Input/output error", path)
        return real(path, **options)

    monkeypatch.setattr("fastckpt.training.contents.load", failing)
    with pytest.raises(OSError) as caught:
        manager.load()
    assert caught.value.errno == errno.EIO
    assert manager.load(tmp_path / first_name(10))["global_step"] == 10


def test_load_leaves_out_what_it_is_told_to_and_says_what(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def make() -> tuple[torch.nn.Linear, torch.optim.Optimizer, Any]:
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1)

    config = fastckpt.CheckpointConfig(tmp_path, metric_name=None)
    model, optimizer, scheduler = make()
    optimizer.step()
    scheduler.step()
    path = fastckpt.CheckpointManager(config, model, optimizer, scheduler).save(0, 1, {})
    assert path is not None
    state = torch.get_rng_state()
    torch.rand(5)
    other, other_optimizer, other_scheduler = make()
    manager = fastckpt.CheckpointManager(config, other, other_optimizer, other_scheduler)
    drawn = torch.get_rng_state()
    resumed = manager.load(load_optimizer=False, load_rng_state=False)
    assert resumed.restored == ("model",)
    assert resumed.skipped == {
        "optimizer": "load_optimizer=False",
        "scheduler": "load_optimizer=False",
        "scaler": "load_optimizer=False",
        "RNG": "load_rng_state=False",
    }
    assert messages(caplog) == []
    assert torch.equal(other.weight, model.weight)
    assert other_optimizer.param_groups[0]["lr"] == 0.1
    assert torch.equal(torch.get_rng_state(), drawn)
    manager.load()
    assert other_optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert torch.equal(torch.get_rng_state(), state)
    # Parts that are on one side only.
    caplog.clear()
    resumed = fastckpt.resume_training(path, other, None, None, torch.amp.GradScaler("cpu"))
    assert resumed.skipped == {
        "optimizer": "the checkpoint has its state, but no optimizer was given",
        "scheduler": "the checkpoint has its state, but no scheduler was given",
        "scaler": "the checkpoint has no state for it",
    }
    assert len(messages(caplog)) == 3
    assert messages(caplog)[0] == (
        f"Not restored from {path}: optimizer (the checkpoint has its state, but no optimizer was "
        "given)"
    )


def test_without_the_optimizers_state_the_scheduler_is_not_restored(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    config = fastckpt.CheckpointConfig(
        tmp_path, metric_name=None, save_optimizer=False, save_rng_state=False
    )
    manager = fastckpt.CheckpointManager(config, model, optimizer, scheduler)
    path = manager.save(0, 1, {})
    assert path is not None
    contents = torch.load(path)
    assert not {"optimizer_state_dict", "rng_states"} & contents.keys()
    assert manager.load().skipped == {
        "RNG": "the checkpoint has no states for it",
        "optimizer": "the checkpoint has no state for it",
        "scheduler": "its learning rates are in the optimizer's state, which is not restored",
    }


def test_a_file_of_another_writer_is_no_checkpoint_of_a_manager(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"model": {}, "epoch": 1}, path)
    with pytest.raises(fastckpt.FormatError) as caught:
        fastckpt.resume_training(path, Weights(), None, None)
    assert str(caught.value) == (
        f"{path} is not a checkpoint of a CheckpointManager: it has no 'global_step' and no "
        "'model_state_dict'; it has 'model', 'epoch'. Where another script wrote it, key_map says which of "
        "these are the model and the optimizer"
    )
    torch.save([1], path)
    with pytest.raises(fastckpt.FormatError, match="it holds a list, not a dict"):
        manager_of(tmp_path).load(path)


def test_what_was_restored_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manager = manager_of(tmp_path)
    (path,) = save_all(manager, {10: 1.0})
    with caplog.at_level(logging.INFO, "fastckpt.training"):
        manager.load()
    assert messages(caplog, logging.INFO) == [
        f"Loading checkpoint: {path}",
        f"Restored from {path}: model, python RNG, numpy RNG, torch RNG",
        "Resumed at epoch 0, step 10",
    ]
