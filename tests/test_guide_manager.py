"""Scripts written for a manager of their own run with the import changed, and each reads the other's files."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import json
import logging
import math
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tests import guide_manager
from tests.manager_runs import messages
from tests.specimens import assert_same
from torch import nn

import fastckpt

_BOTH: list[Any] = [guide_manager, fastckpt]
_LOSSES = [4.0, 2.5, 3.0, 2.0, 2.25, 2.75]


class Script:
    """A training script; `classes` is where it imports its manager from."""

    def __init__(self, classes: Any, directory: Path, seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        self.model = nn.Linear(3, 2)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**seed)
        config = classes.CheckpointConfig(checkpoint_dir=str(directory), save_total_limit=3)
        self.manager = classes.CheckpointManager(
            config, self.model, self.optimizer, self.scheduler, self.scaler
        )

    def step(self) -> None:
        self.optimizer.zero_grad()
        noise = random.random() + float(np.random.rand())  # noqa: NPY002
        self.model(torch.randn(4, 3) + noise).square().sum().backward()
        self.optimizer.step()
        self.scheduler.step()

    def train(self, first: int, last: int) -> list[Any]:
        """Train and save; return what the script can see of its manager."""
        seen = []
        for step in range(first, last):
            self.step()
            metrics = {"val_loss": _LOSSES[step], "lr": self.optimizer.param_groups[0]["lr"]}
            path = self.manager.save(step // 2, step, metrics, {"width": 3}, {"place": step})
            seen.append((path.name, self.manager.best_metric))
        return seen

    def state(self) -> Any:
        parts = (self.model, self.optimizer, self.scheduler, self.scaler)
        numbers = (random.random(), float(np.random.rand()), torch.rand(2))  # noqa: NPY002
        return [dict(part.state_dict()) for part in parts], numbers


def _run(classes: Any, directory: Path) -> tuple[list[Any], Script]:
    script = Script(classes, directory, 1)
    return script.train(0, 4), script


def open_doors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let such a manager load what it has written itself: torch does that with weights_only=False alone."""
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: real(*a, **{**k, "weights_only": False}))


def test_a_script_sees_the_same_of_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views = []
    open_doors(monkeypatch)
    for number, classes in enumerate(_BOTH):
        seen, script = _run(classes, tmp_path / str(number))
        manager = script.manager
        assert manager.model is script.model
        assert manager.optimizer is script.optimizer
        assert manager.scheduler is script.scheduler
        assert manager.scaler is script.scaler
        assert manager.checkpoint_dir == tmp_path / str(number)
        assert manager.config.save_total_limit == 3
        loaded = manager.load_best(load_rng_state=False)
        views.append(
            (
                seen,
                [path.name for path in manager.checkpoints],
                manager.metrics_history,
                manager.get_latest_checkpoint().name,
                manager.get_best_checkpoint().name,
                {key: loaded[key] for key in ("epoch", "global_step", "best_metric", "metrics")},
                (loaded["model_config"], loaded["extra_state"]),
                loaded["model_state_dict"].keys(),
                loaded["optimizer_state_dict"].keys(),
                manager.load(load_optimizer=False)["metrics_history"]["val_loss"],
            )
        )
    assert views[0] == views[1]
    assert views[0][2] == {"val_loss": _LOSSES[:4], "lr": views[0][2]["lr"]}


@pytest.mark.parametrize("reader", _BOTH, ids=["own reads", "ours reads"])
@pytest.mark.parametrize("writer", _BOTH, ids=["own wrote", "ours wrote"])
@pytest.mark.parametrize("by", ["load", "resume"])
def test_each_continues_what_either_has_written(
    by: str, writer: ModuleType, reader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, script = _run(writer, tmp_path)
    if reader is guide_manager and writer is guide_manager:
        open_doors(monkeypatch)
    # The state to come to is that after the save, not after these draws.
    script.step()
    expected = script.state()
    other = Script(reader, tmp_path, 2)
    if by == "load":
        resumed = other.manager.load()
        history = other.manager.metrics_history
    else:
        path = max(tmp_path.glob("checkpoint_*.pt"))
        resumed = reader.resume_training(
            path, other.model, other.optimizer, other.scheduler, other.scaler
        )
        history = resumed["metrics_history"]
    assert (resumed["epoch"], resumed["global_step"], resumed["best_metric"]) == (1, 3, 2.0)
    assert history["val_loss"] == _LOSSES[:4]
    other.step()
    assert_same(other.state(), expected)
    # And its saves, best and rotation follow on.
    other.train(4, 6)
    assert sorted(path.name for path in tmp_path.glob("checkpoint_*.pt"))[-2:] == [
        "checkpoint_epoch0002_step00000004.pt",
        "checkpoint_epoch0002_step00000005.pt",
    ]
    best = fastckpt.load(tmp_path / "best_model.pt")
    # A manager of their own knows the best only once it has loaded it.
    assert best["global_step"] == (4 if by == "resume" and reader is guide_manager else 3)
    assert fastckpt.verify(tmp_path).ok


def test_a_manager_on_anothers_directory_takes_up_best_history_and_rotation(tmp_path: Path) -> None:
    _run(guide_manager, tmp_path)
    manager = Script(fastckpt, tmp_path, 2).manager
    assert manager.best_metric == 2.0
    assert [path.name[-5:] for path in manager.checkpoints] == ["01.pt", "02.pt", "03.pt"]
    assert manager.metrics_history["val_loss"] == _LOSSES[:4]
    assert manager.history_steps == [None, None, None, 3]
    assert repr(manager) == (
        f"CheckpointManager({str(tmp_path)!r}, 3 checkpoints, best val_loss 2)"
    )


def test_the_states_that_load_returns_are_the_live_ones(tmp_path: Path) -> None:
    _, script = _run(fastckpt, tmp_path)
    loaded = script.manager.load()
    weight = loaded["model_state_dict"]["weight"]
    assert weight.data_ptr() == script.model.weight.data_ptr()
    moment = loaded["optimizer_state_dict"]["state"][0]["exp_avg"]
    assert moment is script.optimizer.state[script.model.weight]["exp_avg"]
    left = script.manager.load(load_optimizer=False)["optimizer_state_dict"]
    assert left["state"][0]["exp_avg"] is not moment
    assert torch.equal(left["state"][0]["exp_avg"], moment)
    resumed = fastckpt.resume_training(script.manager.checkpoints[-1], nn.Linear(3, 2))
    assert not [key for key in resumed if key.endswith("_dict") or key == "rng_states"]
    assert resumed["config"]["save_total_limit"] == 3
    assert resumed["timestamp"] == loaded["timestamp"]


def test_what_was_not_saved_has_no_key(tmp_path: Path) -> None:
    config = fastckpt.CheckpointConfig(
        tmp_path, metric_name=None, save_optimizer=False, save_rng_state=False
    )
    manager = fastckpt.CheckpointManager(config, nn.Linear(1, 1))
    path = manager.save(0, 1, {})
    assert path is not None
    assert set(torch.load(path)) == {
        *("epoch", "global_step", "model_state_dict", "class_names", "best_metric", "metrics"),
        *("metrics_history", "history_epochs", "history_steps", "config", "timestamp"),
    }
    assert "scaler_state_dict" not in manager.load()
    assert manager.best_metric == math.inf
    assert repr(manager) == f"CheckpointManager({str(tmp_path)!r}, 1 checkpoint)"
    largest = fastckpt.CheckpointConfig(tmp_path / "max", metric_mode="max")
    assert fastckpt.CheckpointManager(largest, nn.Linear(1, 1)).best_metric == -math.inf


def test_the_directory_alone_is_a_configuration(tmp_path: Path) -> None:
    for directory in (str(tmp_path / "a"), tmp_path / "b"):
        manager = fastckpt.CheckpointManager(directory, nn.Linear(1, 1))
        assert manager.checkpoint_dir == Path(directory)
        assert Path(directory).is_dir()
        assert manager.config.metric_name == "val_loss"


def test_a_history_is_read_in_every_form_and_written_in_one(tmp_path: Path) -> None:
    config = fastckpt.CheckpointConfig(tmp_path, metric_name=None)
    manager = fastckpt.CheckpointManager(config, nn.Linear(1, 1))
    manager.save(0, 1, {"loss": 3, "epoch": 7})
    manager.save(1, 2, {"loss": 2, "bleu": 20})
    path = manager.save(1, 3, {"bleu": 25, "step": 1})
    assert path is not None
    nan = math.nan
    expected = {
        "loss": [3.0, 2.0, nan],
        "epoch": [7.0, nan, nan],
        "bleu": [nan, 20.0, 25.0],
        "step": [nan, nan, 1.0],
    }
    assert json.dumps(manager.metrics_history) == json.dumps(expected)
    assert (manager.history_epochs, manager.history_steps) == ([0, 1, 1], [1, 2, 3])
    contents = torch.load(path)
    # Earlier versions wrote one dict a save.
    older = {
        **contents,
        "metrics_history": [
            {"epoch": 0, "step": 1, "loss": 3.0},
            {"epoch": 1, "step": 3, "loss": 2.0, "bleu": 20.0},
        ],
    }
    del older["history_epochs"], older["history_steps"]
    # Scripts that append to each list have none of equal length where a metric came later.
    theirs = {**older, "metrics_history": {"loss": [3, 2.0], "bleu": [np.float64(20)], "x": "y"}}
    for written, steps in ((older, [1, 3]), (theirs, [None, 3])):
        torch.save(written, path)
        again = fastckpt.CheckpointManager(config, nn.Linear(1, 1))
        found = {"loss": [3.0, 2.0], "bleu": [nan, 20.0]}
        assert json.dumps(again.metrics_history) == json.dumps(found)
        assert again.history_steps == steps
        assert json.dumps(again.load()["metrics_history"]) == json.dumps(found)
        again.save(2, 4, {"loss": 1})
        assert json.dumps(again.metrics_history["bleu"]) == json.dumps([nan, 20.0, nan])
        (tmp_path / "checkpoint_epoch0002_step00000004.pt").unlink()


def test_what_the_guide_prints_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fastckpt.training"):
        _, script = _run(fastckpt, tmp_path)
        script.manager.load()
        path = script.manager.get_latest_checkpoint()
        fastckpt.resume_training(path, script.model, script.optimizer, script.scheduler)
    said = messages(caplog, logging.INFO)
    best = [one for one in said if one.startswith("New best")]
    assert best == [f"New best model! val_loss: {value:.4f}" for value in (4.0, 2.5, 2.0)]
    for line in (
        f"Loading checkpoint: {path}",
        f"Resuming from {path}",
        "Resumed at epoch 1, step 3",
    ):
        assert line in said


def test_should_save_says_once_what_it_decides_by(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for fields, policy in (
        ({"save_best_only": True}, "save_best_only"),
        ({"save_when": {"val_loss": ("<", 1.0)}}, "save_when"),
    ):
        caplog.clear()
        config = fastckpt.CheckpointConfig(tmp_path / policy, **fields)
        manager = fastckpt.CheckpointManager(config, nn.Linear(1, 1))
        assert not manager.should_save(1)
        assert not manager.should_save(2)
        assert messages(caplog) == [
            (
                f"should_save() was asked without the metric 'val_loss', by which {policy} decides, and says "
                "no until it is given: should_save(step, metrics)"
            )
        ]
        assert manager.should_save(3, {"val_loss": 0.5})
    caplog.clear()
    config = fastckpt.CheckpointConfig(tmp_path / "c", save_best_only=True, save_every_steps=2)
    assert fastckpt.CheckpointManager(config, nn.Linear(1, 1)).should_save(2)
    assert messages(caplog) == []
