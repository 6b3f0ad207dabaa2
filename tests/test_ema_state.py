"""The state of moving averages: saved, refused where it does not fit, and resumed."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import copy
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ema_models import Net, bits, change
from torch import nn

import fastckpt
from fastckpt import EMAModel


def trained(ema_options: dict[str, Any]) -> tuple[nn.Module, EMAModel]:
    model = Net()
    ema = EMAModel(model, **ema_options)
    for seed in range(3):
        change(model, seed)
        ema.update()
    return model, ema


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_the_state_survives_a_file_bit_for_bit(
    use_buffers: bool, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"use_buffers": use_buffers, "dtype": dtype, "warmup": True}
    model, ema = trained({"decay": 0.99, **options})
    fastckpt.save({"ema": ema.state_dict()}, tmp_path / "ema.pt")
    state = torch.load(tmp_path / "ema.pt", weights_only=True)["ema"]
    resumed = EMAModel(copy.deepcopy(model), **options)
    resumed.load_state_dict(state)
    assert (resumed.decay, resumed.warmup, resumed.num_updates) == (0.99, True, 3)
    for part in ("shadow", "buffers"):
        assert bits(resumed.state_dict()[part]) == bits(ema.state_dict()[part])
    assert repr(resumed) == "EMAModel(3 parameters, decay=0.99, num_updates=3)"


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    ema = EMAModel(nn.Linear(2, 2), 0.5)
    before = bits(ema.state_dict()["shadow"])

    def refused(message: str, **changes: Any) -> None:
        state = {**EMAModel(nn.Linear(2, 2), 0.9).state_dict(), **changes}
        for method in (ema.check_state_dict, ema.load_state_dict):
            with pytest.raises(ValueError, match=message):
                method(state)
        assert bits(ema.state_dict()["shadow"]) == before
        assert (ema.decay, ema.num_updates) == (0.5, 0)

    weight, bias = torch.zeros(2, 2), torch.zeros(2)
    refused(r"it lacks 'weight'$", shadow={"bias": bias})
    refused(
        r"it has 'x', which is not averaged", shadow={"bias": bias, "weight": weight, "x": bias}
    )
    refused(r"'bias' is torch.float32 \(3,\)", shadow={"weight": weight, "bias": torch.ones(3)})
    refused(r"'bias' is torch.float64", shadow={"weight": weight, "bias": bias.double()})
    refused(r"use_buffers=True, and this .*use_buffers=False", use_buffers=True)
    refused(r"decay must be 0 to 1, not 7", decay=7)
    refused(r"not the state of an EMAModel: it has the keys .*'lr'", lr=1)
    refused(r"not the state of an EMAModel: it has the keys .*'parameters'", parameters={})
    refused(r"on the meta device", shadow={"weight": weight.to("meta"), "bias": bias})
    refused(r"two names in the state mean", shadow={"weight": weight, "_orig_mod.weight": weight})
    refused(r"shadow must be a dict of tensors, not a list", shadow=[weight])
    refused(r"by name; 'weight' is a float", shadow={"weight": 0.5, "bias": bias})
    refused(r"decay must be 0 to 1, not half", decay="half")
    refused(r"num_updates must be 0 or more, not -1", num_updates=-1)
    refused(r"warmup must be True or False, not 1", warmup=1)
    refused(r"buffers must be a dict of tensors, not a tuple", buffers=())


RESUME = """
import hashlib, sys, torch, fastckpt
from torch import nn

def run(ema, model, steps):
    for step in steps:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        model.zero_grad()
        (model(x) ** 2).mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.1 * parameter.grad)
        ema.update()

def digest(ema, model):
    state = ema.state_dict()
    tensors = [*model.state_dict().values(), *state["shadow"].values(), *state["buffers"].values()]
    hashed = hashlib.sha256(repr((ema.decay, ema.num_updates, ema.warmup)).encode())
    for tensor in tensors:
        hashed.update(bytes(tensor.detach().reshape(-1).view(torch.uint8).numpy()))
    return hashed.hexdigest()

def parts(seed, decay):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    ema = fastckpt.EMAModel(model, decay, use_buffers=True, warmup=True)
    return ema, model
"""


def test_a_fresh_process_resumes_bit_for_bit(tmp_path: Path) -> None:
    space: dict[str, Any] = {}
    exec(RESUME, space)
    ema, model = space["parts"](0, 0.999)
    space["run"](ema, model, range(5))
    states = {
        "model": model.state_dict(),
        "ema": ema.state_dict(),
    }
    path = tmp_path / "checkpoint.pt"
    fastckpt.save(states, path)
    space["run"](ema, model, range(5, 10))
    script = RESUME + (
        "ema, model = parts(1, 0.5)\n"
        "state = torch.load(sys.argv[1], weights_only=True)\n"
        "model.load_state_dict(state['model'])\n"
        "ema.load_state_dict(state['ema'])\n"
        "run(ema, model, range(5, 10))\n"
        "print(digest(ema, model))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == space["digest"](ema, model)
    assert len(done.stdout.strip()) == hashlib.sha256().digest_size * 2
