"""Training that is resumed in a fresh process goes on bit for bit: see `resume_runs`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.resume_runs import STEPS, Combination, combinations
from tests.specimens import assert_same
from torch import nn

import fastckpt

_ROOT = Path(__file__).resolve().parent.parent


# All in one process of pytest-xdist: the runs take longer than all that is asked of them.
pytestmark = pytest.mark.xdist_group("resume")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both roles of all runs, each in a process of its own."""
    directory = tmp_path_factory.mktemp("runs")
    paths = [str(_ROOT), os.environ.get("PYTHONPATH")]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)))
    for role in ("whole", "resume"):
        command = [sys.executable, "-W", "ignore", "-m", "tests.resume_runs", role, str(directory)]
        subprocess.run(command, check=True, env=environment, timeout=200)
    return directory


@pytest.mark.parametrize("combination", combinations(), ids=str)
def test_a_resumed_run_is_the_same_bit_for_bit(combination: Combination, runs: Path) -> None:
    name = str(combination)
    whole, resumed = (
        json.loads((runs / f"{role}.json").read_text())[name] for role in ("whole", "resume")
    )
    assert resumed["skipped"] == {}
    # What was seen in each step: the rows that chance chose, the loss, the learning rates, the scale.
    assert [one["step"] for one in resumed["seen"]] == list(range(STEPS, 2 * STEPS))
    assert resumed["seen"] == whole["seen"]
    assert resumed["draws"] == whole["draws"]
    states = [torch.load(runs / f"{role}.pt")[name] for role in ("whole", "resume")]
    assert_same(states[1], states[0])
    metrics = {"loss": 0.25, "lr": 0.5, "step_count": float(STEPS)}
    assert resumed["resumed"] == {
        "epoch": 3,
        "global_step": STEPS,
        "best_metric": 0.25,
        "metrics": metrics,
        "metrics_history": {name: [value] for name, value in metrics.items()},
        "history_epochs": [3],
        "history_steps": [STEPS],
        "model_config": {"features": 8},
        "config": resumed["resumed"]["config"],
        "timestamp": resumed["resumed"]["timestamp"],
        "extra_state": {"position": 17},
    }


def test_the_runs_depend_on_everything_that_is_restored(runs: Path) -> None:
    whole = json.loads((runs / "whole.json").read_text())
    # Were it not so, the test above would show little.
    for name, result in whole.items():
        seen = result["seen"]
        assert len({one["loss"] for one in seen}) >= STEPS - 1, name
        if "-scaler-" in name and "-no-scaler-" not in name:
            assert len({one["scale"] for one in seen}) > 1, name
    first = {name.split("-")[0]: result["seen"] for name, result in whole.items()}
    for name, seen in first.items():
        assert name == "ReduceLROnPlateau" or len({one["lrs"][0] for one in seen}) > 1, name


def test_every_file_loads_with_plain_torch_load(runs: Path) -> None:
    files = sorted(runs.glob("*/*.pt"))
    assert len(files) == 2 * len(combinations())
    script = (
        "import sys, torch\n"
        "for path in sys.argv[1:]:\n"
        "    contents = torch.load(path, weights_only=True)\n"
        "    assert len(contents) == 19, contents.keys()\n"
        "    assert contents['model_config'] == {'features': 8}\n"
        "    assert contents['config']['metric_name'] == 'loss'\n"
    )
    subprocess.run([sys.executable, "-c", script, *map(str, files)], check=True, timeout=200)


class HalfPrecision(torch.optim.Optimizer):
    """Keeps float32 moments and an integer counter beside bfloat16 parameters, as many do."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["moment"] = torch.zeros_like(parameter, dtype=torch.float32)
                    state["count"] = torch.zeros((), dtype=torch.int64)
                state["moment"].mul_(0.9).add_(parameter.grad.float(), alpha=1 / 3)
                state["count"] += 1
                parameter.add_(state["moment"], alpha=-group["lr"])


def test_moments_keep_the_dtype_that_they_were_saved_in(tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Linear(4, 4).bfloat16()
        return model, HalfPrecision(model.parameters())

    model, optimizer = make()
    model(torch.randn(2, 4, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    expected = optimizer.state_dict()
    assert expected["state"][0]["moment"].dtype == torch.float32
    config = fastckpt.CheckpointConfig(tmp_path, metric_name=None)
    path = fastckpt.CheckpointManager(config, model, optimizer, None).save(0, 1, {})
    assert path is not None
    model, optimizer = make()
    fastckpt.resume_training(path, model, optimizer, None)
    assert_same(optimizer.state_dict(), expected)


def test_optimizer_state_goes_to_where_the_parameters_are(tmp_path: Path) -> None:
    # No second device is needed to see it: "meta" is one.
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, lr=0.1)
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    config = fastckpt.CheckpointConfig(tmp_path, metric_name=None)
    path = fastckpt.CheckpointManager(config, model, optimizer, None).save(0, 1, {})
    assert path is not None
    elsewhere = nn.Linear(4, 4, device="meta")
    other = torch.optim.SGD(elsewhere.parameters(), momentum=0.9, lr=0.1)
    contents = fastckpt.load(path)
    restored = type(elsewhere).load_state_dict
    assert restored is not None
    fastckpt.resume_training(path, _Inert(), other, None)
    devices = {state["momentum_buffer"].device.type for state in other.state.values()}
    assert devices == {"meta"}
    assert set(contents["optimizer_state_dict"]["state"]) == {0, 1}


class _Inert:
    """Takes any state."""

    def load_state_dict(self, state: Any) -> None:
        assert set(state) == {"weight", "bias"}
