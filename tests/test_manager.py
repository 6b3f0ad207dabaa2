"""CheckpointManager: what a save writes, what a new manager takes up, and what is warned of."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.manager_runs import (
    Weights,
    damage,
    first_name,
    manager_of,
    messages,
    names,
    save_all,
    steps_in,
)

import fastckpt


def test_a_checkpoint_holds_everything_and_loads_with_plain_torch_load(tmp_path: Path) -> None:
    manager = manager_of(tmp_path / "a" / "b", Weights(3))
    extra = {"position": 7, "seen": torch.arange(3)}
    path = manager.save(2, 150, {"val_loss": 0.5, "top1": 1}, {"width": 8}, extra)
    assert path == tmp_path / "a" / "b" / first_name(150, 2)
    found = torch.load(path, weights_only=True)
    assert list(found) == [
        *("epoch", "global_step", "model_state_dict", "class_names", "rng_states"),
        *("best_metric", "metrics", "metrics_history", "history_epochs", "history_steps"),
        *("config", "timestamp", "model_config", "extra_state"),
    ]
    assert torch.equal(found["model_state_dict"]["w"], torch.full((1000,), 3.0))
    assert (found["epoch"], found["global_step"], found["best_metric"]) == (2, 150, 0.5)
    assert found["metrics"] == {"val_loss": 0.5, "top1": 1.0}
    assert found["metrics_history"] == {"val_loss": [0.5], "top1": [1.0]}
    assert (found["history_epochs"], found["history_steps"]) == ([2], [150])
    assert found["config"] == manager.config.to_dict()
    assert found["config"]["checkpoint_dir"] == str(tmp_path / "a" / "b")
    assert datetime.fromisoformat(found["timestamp"]).utcoffset() is not None
    assert found["model_config"] == {"width": 8}
    assert found["extra_state"]["position"] == 7
    assert fastckpt.verify(path).ok
    assert names(path.parent) == ["best_model.pt", path.name]


def test_a_new_manager_takes_up_history_best_and_rotation(tmp_path: Path) -> None:
    save_all(manager_of(tmp_path, save_total_limit=3), {10: 3.0, 20: 1.0, 30: 2.0, 40: 4.0})
    again = manager_of(tmp_path, save_total_limit=3)
    assert again.best_metric == 1.0
    assert again.history_steps == [10, 20, 30, 40]
    assert again.get_best_checkpoint() == tmp_path / "best_model.pt"
    save_all(again, {50: 9.0, 60: 8.0, 70: 7.0})
    assert steps_in(tmp_path) == [20, 50, 60, 70]
    assert len(again.load()["metrics_history"]["val_loss"]) == 7


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
    assert manager.metrics_history["val_loss"] == [1.0]
    manager.load()
    assert manager.metrics_history["val_loss"] == [3.0]


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


def test_the_names_are_imported_on_first_use(tmp_path: Path) -> None:
    script = (
        "import sys, fastckpt\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'CheckpointManager' in dir(fastckpt)\n"
        "fastckpt.CheckpointManager, fastckpt.CheckpointConfig, fastckpt.resume_training\n"
        "assert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=200)


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
