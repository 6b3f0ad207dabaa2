"""Moving averages: their values, what they do to a model and undo, and that they survive a resume."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import copy
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import fastckpt
import fastckpt.ema
from fastckpt import EMAModel


class Net(nn.Module):
    """Tied weights, buffers of every kind, a frozen parameter."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4, dtype=dtype)
        self.norm = nn.BatchNorm1d(4, dtype=dtype)
        self.head = nn.Linear(4, 5, bias=False, dtype=dtype)
        self.head.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False)
        self.register_buffer("mask", torch.full((2, 2), -torch.inf, dtype=dtype).triu(1))
        self.register_buffer("scratch", torch.zeros(3, dtype=dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.embed(x)))
        return result


def change(model: nn.Module, seed: int) -> None:
    """Move every parameter and floating buffer that is not constant, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise.to(parameter.device, parameter.dtype))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                assert module.running_mean is not None
                assert module.num_batches_tracked is not None
                module.running_mean.add_(torch.randn(4, generator=generator))
                module.num_batches_tracked.add_(7)


def bits(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    return {
        name: bytes(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        for name, value in tensors.items()
    }


# The values


SHAPES = st.lists(st.sampled_from([(), (0,), (1,), (3, 2), (7,)]), min_size=1, max_size=4)
DTYPES = st.sampled_from(
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]
)


@given(
    shapes=SHAPES,
    dtypes=st.lists(DTYPES, min_size=4, max_size=4),
    decay=st.sampled_from([0.0, 0.5, 0.9, 0.9999, 1.0]),
    warmup=st.booleans(),
    updates=st.integers(0, 6),
    seed=st.integers(0, 1000),
    piece_nbytes=st.sampled_from([1, 20, 1 << 20]),
)
def test_the_average_is_that_of_a_loop_in_float64(
    shapes: list[tuple[int, ...]],
    dtypes: list[torch.dtype],
    decay: float,
    warmup: bool,
    updates: int,
    seed: int,
    piece_nbytes: int,
) -> None:
    torch.manual_seed(seed)
    model = nn.ParameterList(
        nn.Parameter(torch.randn(shape, dtype=dtype))
        for shape, dtype in zip(shapes, dtypes, strict=False)
    )
    ema = EMAModel(model, decay, warmup=warmup)
    wide = [p.detach().to(torch.complex128) for p in model]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastckpt.ema, "_CONVERTED_NBYTES", piece_nbytes)
        for t in range(updates):
            with torch.no_grad():
                for parameter in model:
                    parameter.add_(torch.randn_like(parameter))
            kept = min(decay, (1 + t) / (10 + t)) if warmup else decay
            assert ema.next_decay == kept
            ema.update()
            now = [p.detach().to(torch.complex128) for p in model]
            wide = [kept * a + (1 - kept) * p for a, p in zip(wide, now, strict=True)]
    averages = ema.state_dict()["parameters"]
    assert ema.num_updates == updates
    for average, parameter, expected in zip(averages.values(), model, wide, strict=True):
        narrow = parameter.dtype in (torch.bfloat16, torch.float16)
        assert average.dtype == (torch.float32 if narrow else parameter.dtype)
        wanted = expected if average.dtype.is_complex else expected.real
        torch.testing.assert_close(average, wanted.to(average.dtype))


@pytest.mark.parametrize("use_buffers", [False, True])
def test_the_average_is_that_of_swa_utils_bit_for_bit(use_buffers: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    reference = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=use_buffers
    )
    reference.update_parameters(model)  # Its first update takes the weights as they are.
    ema = EMAModel(model, 0.9, use_buffers=use_buffers)
    for seed in range(20):
        change(model, seed)
        reference.update_parameters(model)
        ema.update()
    with ema.applied():
        ours = model.state_dict()
        theirs = reference.module.state_dict()
        # It averages integer buffers too, and truncates what comes out.
        ours.pop("1.num_batches_tracked")
        truncated = theirs.pop("1.num_batches_tracked")
        assert bits(ours) == bits(theirs)
    if use_buffers:
        assert truncated < model.get_buffer("1.num_batches_tracked")
        assert ema.state_dict()["buffers"]["1.num_batches_tracked"] == 140


def test_bfloat16_weights_are_averaged_in_float32_since_bfloat16_loses_every_update() -> None:
    model = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    wide, narrow = EMAModel(model), EMAModel(model, dtype=torch.bfloat16)
    nn.init.constant_(model.weight, 2.0)
    for _ in range(1000):
        wide.update()
        narrow.update()
    expected = torch.full((4, 4), 2 - 0.9999**1000)
    torch.testing.assert_close(
        wide.state_dict()["parameters"]["weight"], expected, rtol=1e-5, atol=0
    )
    assert torch.equal(
        narrow.state_dict()["parameters"]["weight"], torch.ones(4, 4, dtype=torch.bfloat16)
    )
    with wide.applied():
        assert torch.equal(model.weight, expected.to(torch.bfloat16))


def test_float8_weights_are_averaged_in_float32() -> None:
    weight = torch.ones(4).to(torch.float8_e4m3fn)
    model = nn.ParameterList([nn.Parameter(weight)])
    ema = EMAModel(model, 0.5)
    with torch.no_grad():
        model[0].copy_(torch.full((4,), 2.0))
    ema.update()
    assert torch.equal(ema.state_dict()["parameters"]["0"], torch.full((4,), 1.5))
    with ema.applied():
        assert torch.equal(model[0].float(), torch.full((4,), 1.5))
    assert torch.equal(model[0].float(), torch.full((4,), 2.0))


def test_a_wider_dtype_can_be_asked_for_and_complex_weights_keep_theirs() -> None:
    model = nn.ParameterList([torch.ones(2), torch.ones(2, dtype=torch.complex64)])
    averages = EMAModel(model, dtype=torch.float64).state_dict()["parameters"]
    assert [average.dtype for average in averages.values()] == [torch.float64, torch.complex64]


def test_tied_parameters_are_averaged_once_and_frozen_ones_not_stored() -> None:
    model = Net()
    ema = EMAModel(model, 0.5)
    assert list(ema.state_dict()["parameters"]) == ["embed.weight", "norm.weight", "norm.bias"]
    before = model.embed.weight.detach().clone()
    with torch.no_grad():
        model.embed.weight.add_(1)
    ema.update()
    with ema.applied():
        assert model.head.weight is model.embed.weight
        torch.testing.assert_close(model.head.weight, before + 0.5)


def test_buffers_are_averaged_when_asked_for_and_a_mask_of_infinities_stays_one() -> None:
    model = Net()
    plain, ema = EMAModel(model, 0.5), EMAModel(model, 0.5, use_buffers=True)
    assert plain.state_dict()["buffers"] == {}
    mean = model.norm.running_mean
    assert mean is not None
    before = mean.clone()
    for seed in range(3):
        change(model, seed)
        before = 0.5 * before + 0.5 * mean
        ema.update()
    buffers = ema.state_dict()["buffers"]
    names = ["mask", *(f"norm.{n}" for n in ("running_mean", "running_var"))]
    assert set(buffers) == {*names, "norm.num_batches_tracked"}  # `scratch` is not persistent.
    torch.testing.assert_close(buffers["norm.running_mean"], before)
    assert torch.equal(buffers["mask"], model.get_buffer("mask"))
    assert buffers["norm.num_batches_tracked"] == 21
    assert buffers["norm.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"decay must be 0 to 1, not"):
        EMAModel(nn.Linear(1, 1), decay)


def test_what_cannot_be_averaged_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no parameter of the model is trainable"):
        EMAModel(nn.Linear(1, 1).requires_grad_(False))
    with pytest.raises(ValueError, match=r"meta device.*'weight'; make the EMAModel after"):
        EMAModel(nn.Linear(1, 1, bias=False, device="meta"))
    with pytest.raises(ValueError, match=r"dtype must be a floating one, .* not torch.int32"):
        EMAModel(nn.Linear(1, 1), dtype=torch.int32)


# Apply and restore


def test_restore_brings_back_every_bit_of_parameters_and_buffers() -> None:
    model = Net()
    ema = EMAModel(model, 0.5)
    change(model, 1)
    ema.update()
    objects = list(map(id, model.parameters()))
    everything = {**model.state_dict(), "scratch": model.get_buffer("scratch")}
    before = bits(everything)
    ema.apply()
    assert ema.is_applied
    assert bits(model.state_dict()) != {n: b for n, b in before.items() if n != "scratch"}
    with torch.no_grad():
        model.norm.weight.fill_(torch.nan)
        model.get_buffer("scratch").fill_(3)
    update_bn([torch.tensor([0, 1, 2])], model)
    ema.restore()
    assert not ema.is_applied
    assert bits({**model.state_dict(), "scratch": model.get_buffer("scratch")}) == before
    assert list(map(id, model.parameters())) == objects


def test_an_exception_restores_and_comes_through() -> None:
    model = Net()
    ema = EMAModel(model, 0.5)
    change(model, 1)
    ema.update()
    before = bits(model.state_dict())

    def fail_while_applied() -> None:
        with ema.applied() as applied:
            assert applied is model
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_applied()
    assert bits(model.state_dict()) == before
    with ema.applied():
        ema.restore()
    assert bits(model.state_dict()) == before


def test_a_buffer_that_cannot_be_written_to_is_left_alone() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("positions", torch.zeros(1).expand(3))
    ema = EMAModel(model)
    with ema.applied():
        pass
    assert torch.equal(model.get_buffer("positions"), torch.zeros(3))


def test_an_error_while_the_averages_are_put_in_restores(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(2, 2)
    ema = EMAModel(model, 0.5)
    change(model, 1)
    before = bits(model.state_dict())
    real, calls = fastckpt.ema._copy, []

    def fail_second(to: dict[str, Tensor], values: dict[str, Tensor]) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        real(to, values)

    monkeypatch.setattr(fastckpt.ema, "_copy", fail_second)
    with pytest.raises(MemoryError):
        ema.apply()
    assert not ema.is_applied
    assert bits(model.state_dict()) == before


def test_nested_use_is_an_error_that_says_so_and_the_model_is_restored() -> None:
    model = nn.Linear(2, 2)
    ema = EMAModel(model, 0.5)
    change(model, 1)
    before = bits(model.state_dict())

    def nest() -> None:
        with ema.applied(), ema.applied():
            pass

    with pytest.raises(RuntimeError, match=r"in the model already, and apply cannot be nested"):
        nest()
    assert bits(model.state_dict()) == before
    with pytest.raises(RuntimeError, match=r"not in the model: apply\(\) first"):
        ema.restore()


@pytest.mark.parametrize("action", ["update", "follow_model", "load_state_dict"])
def test_averages_that_are_applied_are_not_taken_for_weights(action: str) -> None:
    ema = EMAModel(nn.Linear(2, 2))
    state = ema.state_dict()
    with ema.applied(), pytest.raises(RuntimeError, match=rf"{action}\(\) while the averages are"):
        getattr(ema, action)(*([state] if action == "load_state_dict" else []))


def test_the_averages_go_into_another_model_of_the_same_shape() -> None:
    model = Net()
    ema = EMAModel(model, 0.5)
    change(model, 1)
    ema.update()
    other = Net()
    before = bits(other.state_dict())
    with ema.applied(other) as applied:
        assert applied is other
        assert torch.equal(other.embed.weight, ema.state_dict()["parameters"]["embed.weight"])
    assert bits(other.state_dict()) == before
    ema.update(other)
    assert ema.num_updates == 2


# A model that changes


def test_parameters_that_change_are_named_and_follow_model_takes_them_up() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    ema = EMAModel(model, 0.5)
    kept = ema.state_dict()["parameters"]["0.weight"]
    model[0].bias.requires_grad_(False)
    model.add_module("2", nn.Linear(2, 1, bias=False))
    model[1] = nn.Identity()
    words = (
        r"frozen: '0.bias'; removed: '1.bias', '1.weight'; "
        r"added or made trainable: '2.weight'\): undo that, or call follow_model\(\)"
    )
    with pytest.raises(RuntimeError, match=words):
        ema.update()
    with pytest.raises(RuntimeError, match=words):
        ema.apply()
    assert ema.num_updates == 0
    ema.follow_model()
    ema.update()
    averages = ema.state_dict()["parameters"]
    assert list(averages) == ["0.weight", "2.weight"]
    assert averages["0.weight"] is kept
    assert torch.equal(averages["2.weight"], model.get_parameter("2.weight"))


def test_a_parameter_of_another_shape_is_named() -> None:
    model = nn.Linear(2, 2)
    ema = EMAModel(model)
    model.bias = nn.Parameter(torch.zeros(3))
    with pytest.raises(RuntimeError, match=r"'bias' has the shape \(3,\), and its average \(2,\)"):
        ema.update()
    ema.follow_model()
    assert ema.state_dict()["parameters"]["bias"].shape == (3,)


def test_a_buffer_that_is_added_is_named() -> None:
    model = nn.BatchNorm1d(2)
    ema = EMAModel(model, use_buffers=True)
    model.register_buffer("extra", torch.zeros(1))
    with pytest.raises(RuntimeError, match=r"buffers are not those .*'extra'"):
        ema.update()


# State


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
    for part in ("parameters", "buffers"):
        assert bits(resumed.state_dict()[part]) == bits(ema.state_dict()[part])
    assert repr(resumed) == "EMAModel(3 parameters, decay=0.99, num_updates=3)"


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    ema = EMAModel(nn.Linear(2, 2), 0.5)
    before = bits(ema.state_dict()["parameters"])

    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=message):
            ema.load_state_dict({**EMAModel(nn.Linear(2, 2), 0.9).state_dict(), **changes})
        assert bits(ema.state_dict()["parameters"]) == before
        assert (ema.decay, ema.num_updates) == (0.5, 0)

    weight, bias = torch.zeros(2, 2), torch.zeros(2)
    refused(r"it lacks 'weight'$", parameters={"bias": bias})
    refused(r"it has 'x', of which", parameters={"bias": bias, "weight": weight, "x": bias})
    refused(r"'bias' is torch.float32 \(3,\)", parameters={"weight": weight, "bias": torch.ones(3)})
    refused(r"'bias' is torch.float64", parameters={"weight": weight, "bias": bias.double()})
    refused(r"use_buffers=True, and this .*use_buffers=False", use_buffers=True)
    refused(r"decay must be 0 to 1, not 7", decay=7)
    refused(r"not the state of an EMAModel: it has the keys .*'lr'", lr=1)


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
    tensors = [*model.state_dict().values(), *state["parameters"].values(), *state["buffers"].values()]
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


# Wrappers and devices


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_compiled_and_distributed_models_have_the_names_of_the_bare_one() -> None:
    model = Net()
    bare = EMAModel(model, 0.5)
    distributed = DistributedDataParallel(model)
    compiled: Any = torch.compile(model, backend="eager")
    both: Any = torch.compile(distributed, backend="eager")
    partly = Net()
    partly.norm = torch.compile(partly.norm, backend="eager")  # type: ignore[assignment]
    for wrapped in (compiled, distributed, both, partly, nn.DataParallel(model)):
        ema = EMAModel(wrapped, 0.9)
        assert list(ema.state_dict()["parameters"]) == list(bare.state_dict()["parameters"])
        ema.load_state_dict(bare.state_dict())
        ema.update()
        bare.update(wrapped)
    assert bare.num_updates == 5


def test_a_compiled_model_computes_with_the_averages_while_they_are_applied() -> None:
    model = nn.Linear(3, 2)
    compiled: Any = torch.compile(model, backend="eager")
    ema = EMAModel(compiled, 0.5)
    x = torch.ones(1, 3)
    first = compiled(x)
    change(model, 0)
    ema.update()
    now = compiled(x)
    with ema.applied():
        torch.testing.assert_close(compiled(x), (first + now) / 2)
    assert torch.equal(compiled(x), now)


@pytest.mark.cuda
def test_averages_live_where_they_are_asked_to_and_follow_the_model() -> None:
    model = Net()
    following, kept = EMAModel(model, 0.5), EMAModel(model, 0.5, device="cpu", use_buffers=True)
    expected = copy.deepcopy(following)
    model.cuda()
    for seed in range(3):
        change(model, seed)
        following.update()
        kept.update()
        expected.update(copy.deepcopy(model).cpu())
    states = [ema.state_dict()["parameters"] for ema in (following, kept, expected)]
    assert {value.device.type for value in states[0].values()} == {"cuda"}
    assert {value.device.type for value in states[1].values()} == {"cpu"}
    for name, value in states[2].items():
        torch.testing.assert_close(states[0][name].cpu(), value)
        torch.testing.assert_close(states[1][name], value)
    before = bits(model.state_dict())
    with kept.applied():
        assert model.embed.weight.device.type == "cuda"
        assert torch.equal(model.embed.weight.cpu(), states[1]["embed.weight"])
    assert bits(model.state_dict()) == before
