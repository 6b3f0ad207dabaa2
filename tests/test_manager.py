"""CheckpointManager: what a save writes, which is the best, what load takes and says."""

from __future__ import annotations

import errno
import logging
import math
import os
import random
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from tests.manager_runs import (
    Weights,
    damage,
    loaded_step,
    manager_of,
    messages,
    names,
    save_all,
    steps_in,
)

import fastckpt
from fastckpt import _native
from fastckpt.training import best as best_module
from fastckpt.training import rotation


def first_name(step: int, epoch: int = 0) -> str:
    return f"checkpoint_epoch{epoch:04d}_step{step:08d}.pt"


def test_a_checkpoint_holds_everything_and_loads_with_plain_torch_load(tmp_path: Path) -> None:
    manager = manager_of(tmp_path / "a" / "b", Weights(3))
    extra = {"position": 7, "seen": torch.arange(3)}
    path = manager.save(2, 150, {"val_loss": 0.5, "top1": 1}, {"width": 8}, extra)
    assert path == tmp_path / "a" / "b" / first_name(150, 2)
    found = torch.load(path, weights_only=True)
    assert list(found) == [
        *("epoch", "global_step", "model_state_dict", "optimizer_state_dict"),
        *("scheduler_state_dict", "scaler_state_dict", "rng_states", "ema_state_dict"),
        *("best_metric", "metrics", "metrics_history", "config", "timestamp"),
        *("model_config", "extra_state"),
    ]
    assert torch.equal(found["model_state_dict"]["w"], torch.full((1000,), 3.0))
    assert (found["epoch"], found["global_step"], found["best_metric"]) == (2, 150, 0.5)
    assert found["metrics"] == {"val_loss": 0.5, "top1": 1.0}
    assert found["metrics_history"] == [{"epoch": 2, "step": 150, "val_loss": 0.5, "top1": 1.0}]
    assert found["config"] == manager.config.to_dict()
    assert found["config"]["checkpoint_dir"] == str(tmp_path / "a" / "b")
    assert datetime.fromisoformat(found["timestamp"]).utcoffset() is not None
    assert found["model_config"] == {"width": 8}
    assert found["extra_state"]["position"] == 7
    assert found["optimizer_state_dict"] is None
    assert fastckpt.verify(path).ok
    assert names(path.parent) == ["best_model.pt", path.name]


def test_the_best_is_a_second_name_of_the_same_file(tmp_path: Path) -> None:
    manager = manager_of(tmp_path)
    paths = save_all(manager, {10: 2.0, 20: 1.0, 30: 1.0, 40: 3.0})
    assert paths[1] is not None
    best = tmp_path / "best_model.pt"
    # Of equals the earliest.
    assert os.path.samefile(best, paths[1])
    assert best.stat().st_nlink == 2
    assert manager.get_best_checkpoint() == best
    assert manager.get_latest_checkpoint() == paths[3]
    assert manager.best_metric == 1.0
    model = Weights()
    assert manager_of(tmp_path, model).load_best()["global_step"] == 20


def test_the_largest_is_the_best_where_the_configuration_says_so(tmp_path: Path) -> None:
    manager = manager_of(tmp_path, metric_mode="max", metric_name="accuracy")
    for step, accuracy in enumerate((0.5, 0.9, 0.7, math.nan)):
        manager.save(0, step, {"accuracy": accuracy})
    assert manager.load_best()["global_step"] == 1
    assert manager.best_metric == 0.9


def test_nan_is_never_the_best(tmp_path: Path) -> None:
    manager = manager_of(tmp_path)
    save_all(manager, {1: math.nan})
    assert manager.get_best_checkpoint() is None
    assert not (tmp_path / "best_model.pt").exists()
    with pytest.raises(FileNotFoundError, match="no checkpoint with a 'val_loss'") as caught:
        manager.load_best()
    assert caught.value.filename == str(tmp_path)
    save_all(manager, {2: math.inf, 3: 5.0, 4: math.nan})
    assert manager.best_metric == 5.0
    assert manager_of(tmp_path).best_metric == 5.0
    assert manager.load_best()["global_step"] == 3


@pytest.mark.parametrize("mode", ["hard link", "reflink", "copy"])
def test_without_hard_links_the_best_is_a_reflink_or_else_a_copy(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def no_link(source: str, destination: str) -> None:
        raise OSError(errno.EPERM, "no links here", source)

    def clone(destination: int, request: int, source: int) -> int:
        calls.append(request)
        if mode == "copy":
            raise OSError(errno.EOPNOTSUPP, "no reflinks here")
        os.sendfile(destination, source, 0, os.fstat(source).st_size)
        return 0

    if mode != "hard link":
        monkeypatch.setattr("fastckpt.training.best.os.link", no_link)
        monkeypatch.setattr("fastckpt.training.best.fcntl.ioctl", clone)
    manager = manager_of(tmp_path, save_total_limit=1)
    save_all(manager, {1: 2.0, 2: 1.0, 3: 1.5})
    best = tmp_path / "best_model.pt"
    assert best.stat().st_nlink == (2 if mode == "hard link" else 1)
    assert calls == ([] if mode == "hard link" else [0x40049409] * 2)
    assert best.read_bytes() == (tmp_path / first_name(2)).read_bytes()
    assert names(tmp_path) == ["best_model.pt", first_name(2), first_name(3)]
    # It is known for what it is, and so it is not given the name again.
    inode = best.stat().st_ino
    again = manager_of(tmp_path, save_total_limit=1)
    save_all(again, {4: 9.0})
    assert best.stat().st_ino == inode
    assert again.get_best_checkpoint() == best


def test_metrics_become_floats(tmp_path: Path) -> None:
    manager = manager_of(tmp_path)
    metrics = {
        "val_loss": torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True),
        "a": np.float32(0.25),
        "b": np.int64(3),
        "c": True,
        "d": np.array(2.5),
    }
    path = manager.save(0, 1, metrics)
    assert path is not None
    found = torch.load(path)["metrics"]
    assert found == {"val_loss": 0.5, "a": 0.25, "b": 3.0, "c": 1.0, "d": 2.5}
    assert {type(value) for value in found.values()} == {float}


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        (
            {"loss": 1.0, "acc": 2},
            KeyError,
            (
                "metrics has no 'val_loss', by which the best checkpoint is chosen; it has: acc, loss. "
                "Pass it, float('nan') where there is none yet, or set metric_name to another one or "
                "to None"
            ),
        ),
        (
            {},
            ValueError,
            (
                "metrics has no 'val_loss', by which the best checkpoint is chosen; it has: none at "
                "all. Pass it, float('nan') where there is none yet, or set metric_name to another one "
                "or to None"
            ),
        ),
        (
            {"val_loss": "0.5"},
            TypeError,
            (
                "metrics['val_loss'] must be one real number (int, float, a tensor of no dimension or "
                "a numpy scalar), not str"
            ),
        ),
        (
            {"val_loss": torch.zeros(2)},
            TypeError,
            (
                "metrics['val_loss'] must be one real number (int, float, a tensor of no dimension or "
                "a numpy scalar), not Tensor of torch.Size([2])"
            ),
        ),
        ({3: 1.0}, TypeError, "names of metrics are strings, and 3 is none"),
        (
            {"step": 1.0},
            ValueError,
            (
                "no metric may be called 'step': save takes it as an argument, and the history has it "
                "under that name"
            ),
        ),
    ],
)
def test_wrong_metrics_are_refused_before_anything_is_written(
    metrics: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    manager = manager_of(tmp_path / "run")
    with pytest.raises(error) as caught:
        manager.save(0, 1, metrics)
    assert str(caught.value) == message
    assert not (tmp_path / "run").exists()
    assert manager.metrics_history == []


_PATH = f"{type(Path()).__module__}.{type(Path()).__qualname__}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"extra_state": {"a": [1, 2, 3, Path("x")]}}, f"extra_state['a'][3]: {_PATH} would be"),
        ({"model_config": Weights()}, "model_config: tests.manager_runs.Weights would be refused"),
        ({"extra_state": {"n": np.float64(1)}}, "extra_state['n']: numpy.float64 would be refused"),
        (
            {"extra_state": {(1, np.int64(2)): 0}},
            "extra_state: key (1, np.int64(2))[1]: numpy.int64 would be refused",
        ),
        ({"model_config": {"f": lambda: 0}}, "model_config['f']: builtins.function cannot be"),
        ({"extra_state": {"big": 1 << 3000}}, "extra_state['big']: builtins.int would be refused"),
        ({"extra_state": {3: datetime(2026, 1, 1)}}, "extra_state[3]: datetime.datetime would"),  # noqa: DTZ001
    ],
)
def test_what_torch_load_would_refuse_is_refused_before_anything_is_written(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    manager = manager_of(tmp_path / "run")
    with pytest.raises(TypeError) as caught:
        manager.save(0, 1, {"val_loss": 1}, **arguments)
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "run").exists()
    assert manager.metrics_history == []
    assert manager.best_metric is None


def test_what_only_this_process_allows_is_refused_too(tmp_path: Path) -> None:
    with (
        torch.serialization.safe_globals([Weights]),
        pytest.raises(
            TypeError, match=r"extra_state: tests\.manager_runs\.Weights would be refused"
        ),
    ):
        manager_of(tmp_path).save(0, 1, {"val_loss": 1}, extra_state=Weights())


def test_unusual_plain_values_are_saved(tmp_path: Path) -> None:
    shared = [1]
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    extra = {
        "values": [None, 1 << 128, 1.5, "ä", b"bytes", bytearray(b"x"), 2j, {1, 2}, (1, [2])],
        "torch": [torch.float8_e4m3fn, torch.Size([2]), torch.device("cuda", 1)],
        "shared": [shared, shared],
        "cyclic": cyclic,
        5: torch.nn.Parameter(torch.ones(2)),
    }
    path = manager_of(tmp_path).save(0, 1, {"val_loss": 1}, extra_state=extra)
    assert path is not None
    found = torch.load(path, weights_only=True)["extra_state"]
    assert found["values"] == extra["values"]
    assert found["torch"] == extra["torch"]
    assert found["shared"][0] is found["shared"][1]
    assert found["cyclic"][0] is found["cyclic"]


def test_a_scheduler_with_an_object_that_cannot_be_loaded_is_refused_by_name(
    tmp_path: Path,
) -> None:
    class Warmup:
        def __init__(self) -> None:
            self.started = Path("x")

        def __call__(self, step: int) -> float:
            return 1.0

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, Warmup())
    config = fastckpt.CheckpointConfig(tmp_path, metric_name=None)
    manager = fastckpt.CheckpointManager(config, Weights(), optimizer, scheduler)
    with pytest.raises(TypeError, match=r"scheduler_state_dict\['lr_lambdas'\]\[0\]\['started'\]"):
        manager.save(0, 1, {})


@pytest.mark.parametrize(("epoch", "step"), [(-1, 0), (0, -5)])
def test_negative_numbers_are_refused(epoch: int, step: int, tmp_path: Path) -> None:
    what = f"epoch must not be negative, and is {epoch}"
    if step < 0:
        what = f"step must not be negative, and is {step}"
    with pytest.raises(ValueError) as caught:
        manager_of(tmp_path).save(epoch, step, {"val_loss": 1})
    assert str(caught.value) == what
    with pytest.raises(TypeError):
        manager_of(tmp_path).save(0, 1.5, {"val_loss": 1})  # type: ignore[arg-type]


def test_large_numbers_have_more_digits(tmp_path: Path) -> None:
    manager = manager_of(tmp_path)
    manager.save(12345, 123456789, {"val_loss": 1})
    manager.save(9999, 99999999, {"val_loss": 1})
    assert manager.get_latest_checkpoint() == tmp_path / "checkpoint_epoch12345_step123456789.pt"
    assert manager_of(tmp_path).load()["epoch"] == 12345


def test_only_the_best_is_saved_where_the_configuration_says_so(tmp_path: Path) -> None:
    manager = manager_of(tmp_path, save_best_only=True, save_total_limit=2)
    losses = {1: 5.0, 2: 6.0, 3: 4.0, 4: math.nan, 5: 4.0, 6: 3.0, 7: 2.0}
    paths = save_all(manager, losses)
    assert [path is not None for path in paths] == [True, False, True, False, False, True, True]
    assert steps_in(tmp_path) == [6, 7]
    # What was not saved is in the history nonetheless.
    assert [one["step"] for one in manager.metrics_history] == [1, 2, 3, 4, 5, 6, 7]
    assert [one["step"] for one in manager.load()["metrics_history"]] == [1, 2, 3, 4, 5, 6, 7]
    again = manager_of(tmp_path, save_best_only=True, save_total_limit=2)
    assert again.save(0, 8, {"val_loss": 2.5}) is None


def test_a_new_manager_takes_up_history_best_and_rotation(tmp_path: Path) -> None:
    save_all(manager_of(tmp_path, save_total_limit=3), {10: 3.0, 20: 1.0, 30: 2.0, 40: 4.0})
    again = manager_of(tmp_path, save_total_limit=3)
    assert again.best_metric == 1.0
    assert [one["step"] for one in again.metrics_history] == [10, 20, 30, 40]
    assert again.get_best_checkpoint() == tmp_path / "best_model.pt"
    save_all(again, {50: 9.0, 60: 8.0, 70: 7.0})
    assert steps_in(tmp_path) == [20, 50, 60, 70]
    assert len(again.load()["metrics_history"]) == 7


def test_a_new_manager_reads_no_tensors(tmp_path: Path) -> None:
    save_all(manager_of(tmp_path, Weights(0.5)), {10: 1.0, 20: 2.0})
    # The bytes of the tensors are wrong, and nobody notices before they are loaded.
    damage(tmp_path / first_name(20))
    again = manager_of(tmp_path)
    assert again.best_metric == 1.0
    assert again.get_latest_checkpoint() == tmp_path / first_name(20)


def test_a_step_that_is_saved_again_replaces_itself(tmp_path: Path) -> None:
    model = Weights(1)
    manager = manager_of(tmp_path, model)
    save_all(manager, {10: 1.0})
    model.value = 2
    save_all(manager, {10: 3.0})
    # The best is still there, under its second name.
    assert manager.load()["metrics"] == {"val_loss": 3.0}
    assert model.value == 2
    assert manager.load_best()["metrics"] == {"val_loss": 1.0}
    assert model.value == 1
    assert manager_of(tmp_path).best_metric == 1.0
    assert [one["val_loss"] for one in manager.metrics_history] == [1.0]
    manager.load()
    assert [one["val_loss"] for one in manager.metrics_history] == [3.0]


def test_load_takes_the_newest_by_step_whatever_the_times_say(tmp_path: Path) -> None:
    save_all(manager_of(tmp_path), {30: 1.0, 200: 2.0, 9: 3.0})
    for age, step in enumerate((9, 30, 200)):
        os.utime(tmp_path / first_name(step), (1e9 - age, 1e9 - age))
    assert loaded_step(manager_of(tmp_path)) == 200


def test_a_step_below_those_that_are_there_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = manager_of(tmp_path, save_total_limit=2)
    save_all(manager, {100: 1.0, 200: 2.0, 5: 3.0})
    assert messages(caplog) == [
        (
            f"Saving step 5, and {tmp_path} has checkpoints of later steps, up to 200: load() takes "
            "those first, and they count as the newest. Another directory for another run?"
        )
    ]
    # It was just saved, so it stays although it is not among the newest.
    assert steps_in(tmp_path) == [5, 100, 200]


@pytest.mark.parametrize("how", ["flipped bit", "truncated", "empty", "pickle", "text", "no model"])
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
    elif how == "no model":
        fastckpt.save({"epoch": 0, "global_step": 30}, newest)
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
    assert [one["step"] for one in manager.metrics_history] == [10, 20]
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
    assert contents["optimizer_state_dict"] is None
    assert contents["rng_states"] is None
    assert manager.load().skipped == {
        "RNG": "the checkpoint has no states for it",
        "optimizer": "the checkpoint has no state for it",
        "scheduler": "its learning rates are in the optimizer's state, not saved here",
    }


def test_a_file_of_another_writer_is_no_checkpoint_of_a_manager(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"model": {}, "epoch": 1}, path)
    with pytest.raises(fastckpt.FormatError) as caught:
        fastckpt.resume_training(path, Weights(), None, None)
    assert str(caught.value) == (
        f"{path} is not a checkpoint of a CheckpointManager: it has no 'global_step' and no "
        "'model_state_dict'; it has 'model', 'epoch'"
    )
    torch.save([1], path)
    with pytest.raises(fastckpt.FormatError, match="it holds a list, not a dict"):
        manager_of(tmp_path).load(path)


def test_damaged_and_foreign_files_are_warned_of_once_and_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_all(manager_of(tmp_path), {10: 1.0})
    (tmp_path / first_name(20)).write_bytes(b"half")
    shutil.copy(tmp_path / first_name(10), tmp_path / first_name(30))
    (tmp_path / first_name(40)).mkdir()
    (tmp_path / "checkpoint_step5.pt").write_bytes(b"another's")
    (tmp_path / "checkpoint_epoch0_step1.pt").write_bytes(b"another's")
    manager = manager_of(tmp_path, save_total_limit=1)
    said = messages(caplog)
    assert len(said) == 3
    assert all(one.startswith("Passed over, and left where it is: ") for one in said)
    assert said[1].endswith(f"{tmp_path / first_name(30)} holds what belongs into {first_name(10)}")
    assert said[2].endswith(f"{tmp_path / first_name(40)} is not a regular file")
    save_all(manager, {50: 0.5, 60: 0.25})
    assert len(messages(caplog)) == 3
    assert set(names(tmp_path)) == {
        *(first_name(20), first_name(30), first_name(40), first_name(60)),
        *("checkpoint_step5.pt", "checkpoint_epoch0_step1.pt", "best_model.pt"),
    }


def test_what_the_disk_does_not_return_is_not_published(tmp_path: Path) -> None:
    model = Weights(0.5)
    manager = manager_of(tmp_path, model, save_total_limit=1)
    save_all(manager, {10: 1.0})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = rotation._drop_from_page_cache

    def damaging(path: str) -> None:
        real(path)
        with open(path, "r+b") as file:
            file.seek(file.read().find(torch.full((4,), 0.5).numpy().tobytes()))
            file.write(b"\xff")

    with (
        mock.patch.object(rotation, "_drop_from_page_cache", damaging),
        pytest.raises(fastckpt.ChecksumError) as caught,
    ):
        save_all(manager, {20: 0.5})
    assert str(caught.value).startswith(
        f"{tmp_path / first_name(20)} was not saved: read back from the disk, it is not what was "
        "written ("
    )
    assert caught.value.tensors == ["model_state_dict.w"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert manager.best_metric == 1.0
    # The next one is good, and all goes on.
    save_all(manager, {30: 0.5})
    assert names(tmp_path) == ["best_model.pt", first_name(30)]
    assert [one["step"] for one in manager.metrics_history] == [10, 30]


@pytest.mark.parametrize(("verify", "proofs"), [(True, [20, 30, 40, 40]), (False, [])])
def test_a_save_is_read_back_only_if_something_goes_on_its_account(
    verify: bool, proofs: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proven = []
    real = rotation.prove_good

    def watched(commit: Any, path: str) -> None:
        assert not os.path.exists(path) or "00000040" in path, "it is visible already"
        proven.append(int(path[-11:-3]))
        real(commit, path)

    monkeypatch.setattr(rotation, "prove_good", watched)
    manager = manager_of(tmp_path, save_total_limit=2, verify_before_delete=verify)
    # The first has nothing to replace; 20 is a new best; 25 changes nothing that is there.
    save_all(manager, {10: 3.0, 20: 2.0})
    shutil.rmtree(tmp_path)
    again = manager_of(tmp_path, save_total_limit=3, verify_before_delete=verify)
    save_all(again, {10: 1.0, 25: 2.0})
    assert proven == [step for step in proofs if step < 25]
    save_all(again, {30: 0.5, 40: 2.0, 50: 2.0} if not verify else {30: 0.5})
    if verify:
        assert proven == [20, 30]
        save_all(again, {40: 4.0})  # 10 goes
        save_all(again, {40: 5.0})  # and this one is replaced
        assert proven == [20, 30, 40, 40]


def test_after_an_error_the_same_manager_saves_on(tmp_path: Path) -> None:
    manager = manager_of(tmp_path, save_total_limit=1)
    save_all(manager, {10: 1.0})
    error = OSError(errno.EIO, "Input/output error", "x")
    with mock.patch.object(best_module, "name_best", side_effect=error), pytest.raises(OSError):
        save_all(manager, {20: 0.5})
    # The checkpoint is there, the name of the best is not given, and nothing is deleted.
    assert steps_in(tmp_path) == [10, 20]
    assert manager.best_metric == 0.5
    assert manager.get_best_checkpoint() == tmp_path / first_name(20)
    assert manager_of(tmp_path).load_best()["global_step"] == 20
    save_all(manager, {30: 2.0})
    assert manager.get_best_checkpoint() == tmp_path / "best_model.pt"
    assert os.path.samefile(tmp_path / "best_model.pt", tmp_path / first_name(20))
    assert steps_in(tmp_path) == [20, 30]


def test_the_names_are_imported_on_first_use(tmp_path: Path) -> None:
    script = (
        "import sys, fastckpt\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'CheckpointManager' in dir(fastckpt)\n"
        "fastckpt.CheckpointManager, fastckpt.CheckpointConfig, fastckpt.resume_training\n"
        "assert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=100)


def test_what_was_restored_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manager = manager_of(tmp_path)
    (path,) = save_all(manager, {10: 1.0})
    with caplog.at_level(logging.INFO, "fastckpt.training"):
        manager.load()
    assert messages(caplog, logging.INFO) == [
        f"Restored from {path}: model, python RNG, numpy RNG, torch RNG"
    ]


def test_what_is_proven_comes_from_the_disk_and_not_from_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = manager_of(tmp_path, save_total_limit=1)
    save_all(manager, {10: 1.0})
    done: list[tuple[str, int]] = []
    real_advise, real_verify = os.posix_fadvise, _native.verify_file

    def advise(fd: int, offset: int, nbytes: int, advice: int) -> None:
        assert (offset, nbytes, advice) == (0, 0, os.POSIX_FADV_DONTNEED)
        done.append(("dropped", os.fstat(fd).st_ino))
        real_advise(fd, offset, nbytes, advice)

    def verify(path: str) -> Any:
        done.append(("read back", os.stat(path).st_ino))
        return real_verify(path)

    monkeypatch.setattr("fastckpt.training.rotation.os.posix_fadvise", advise)
    monkeypatch.setattr("fastckpt._native.verify_file", verify)
    save_all(manager, {20: 0.5})
    inode = (tmp_path / first_name(20)).stat().st_ino
    assert done == [("dropped", inode), ("read back", inode)]


def test_a_save_draws_no_random_numbers(tmp_path: Path) -> None:
    manager = manager_of(tmp_path, save_total_limit=1)
    drawn = []
    for saves in (False, True):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        if saves:
            save_all(manager, {10: 1.0, 20: 0.5})
            manager.get_best_checkpoint()
        drawn.append([random.random(), np.random.random(), torch.rand(1).item()])  # noqa: NPY002
    assert drawn[0] == drawn[1]
