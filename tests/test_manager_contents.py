"""What may be saved with a checkpoint, and what is refused before anything is written."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.manager_runs import Weights, manager_of

import fastckpt


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
                "metrics has no 'val_loss', which chooses the best checkpoint; it has acc, loss. Pass it "
                "(float('nan') if it has no value yet), or set metric_name to another metric or to None"
            ),
        ),
        (
            {},
            ValueError,
            (
                "metrics has no 'val_loss', which chooses the best checkpoint; it is empty. Pass it "
                "(float('nan') if it has no value yet), or set metric_name to another metric or to None"
            ),
        ),
        (
            {"val_loss": "0.5"},
            TypeError,
            (
                "metrics['val_loss'] must be one real number (int, float, 0-dimensional tensor or "
                "numpy scalar), not str"
            ),
        ),
        (
            {"val_loss": torch.zeros(2)},
            TypeError,
            (
                "metrics['val_loss'] must be one real number (int, float, 0-dimensional tensor or "
                "numpy scalar), not Tensor of torch.Size([2])"
            ),
        ),
        ({3: 1.0}, TypeError, "metric names must be strings, not 3"),
    ],
)
def test_wrong_metrics_are_refused_before_anything_is_written(
    metrics: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    manager = manager_of(tmp_path / "run")
    with pytest.raises(error) as caught:
        manager.save(0, 1, metrics)
    assert str(caught.value) == message
    assert list((tmp_path / "run").iterdir()) == []
    assert manager.metrics_history == {}


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
    assert list((tmp_path / "run").iterdir()) == []
    assert manager.metrics_history == {}
    assert manager.best_metric == math.inf


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
