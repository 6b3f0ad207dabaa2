"""Moving averages: their values, of which weights, on which device, and a model that changes."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.ema_models import Net, bits, change
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastckpt import EMAModel
from fastckpt.ema import averaging

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
        patch.setattr(averaging, "_CONVERTED_NBYTES", piece_nbytes)
        for t in range(updates):
            with torch.no_grad():
                for parameter in model:
                    parameter.add_(torch.randn_like(parameter))
            kept = min(decay, (1 + t) / (10 + t)) if warmup else decay
            assert ema.next_decay == kept
            ema.update()
            now = [p.detach().to(torch.complex128) for p in model]
            wide = [kept * a + (1 - kept) * p for a, p in zip(wide, now, strict=True)]
    averages = ema.state_dict()["shadow"]
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


AWKWARD = [torch.inf, -torch.inf, torch.nan, -0.0, 0.0, 3e38, -3e38, 1.0]


def awkward_model(dtype: torch.dtype) -> nn.ParameterList:
    numbers = torch.tensor(AWKWARD, dtype=torch.float32).to(dtype)
    return nn.ParameterList([nn.Parameter(numbers), nn.Parameter(numbers.flip(0).clone())])


def set_to(model: nn.ParameterList, shift: int) -> None:
    """Let every number meet every other."""
    with torch.no_grad():
        for parameter in model:
            parameter.copy_(parameter.roll(shift))


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64], ids=str
)
def test_at_decay_0_the_averages_are_the_weights(
    dtype: torch.dtype, device: str | None, warmup: bool
) -> None:
    model = awkward_model(dtype)
    ema = EMAModel(model, 0.0, device, warmup=warmup)
    for shift in range(len(AWKWARD)):
        set_to(model, shift)
        ema.update()
        averages = ema.state_dict()["shadow"]
        weights = {str(i): p.detach().to(averages[str(i)].dtype) for i, p in enumerate(model)}
        assert bits(averages) == bits(weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_at_decay_1_the_averages_stay(dtype: torch.dtype) -> None:
    model = awkward_model(dtype)
    ema = EMAModel(model, 1.0)
    before = bits(ema.state_dict()["shadow"])
    for shift in range(len(AWKWARD)):
        set_to(model, shift)
        ema.update()
        assert bits(ema.state_dict()["shadow"]) == before
    assert ema.num_updates == len(AWKWARD)


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_averaged_buffers_at_the_ends_of_the_range(decay: float) -> None:
    model = nn.Linear(1, 1)
    model.register_buffer("mask", torch.tensor(AWKWARD))
    ema = EMAModel(model, decay, use_buffers=True)
    before = model.get_buffer("mask").clone()
    model.get_buffer("mask").copy_(before.flip(0))
    ema.update()
    expected = before.flip(0) if decay == 0 else before
    averages = ema.state_dict()["buffers"]["mask"]
    torch.testing.assert_close(averages, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("decay", [0.001, 0.3, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_in_between_an_average_that_was_not_finite_never_is_again(decay: float, bad: float) -> None:
    model = nn.ParameterList([nn.Parameter(torch.tensor([bad, 1.0]))])
    ema = EMAModel(model, decay)
    model[0].data[0] = 1.0
    for _ in range(20):
        ema.update()
    average = ema.state_dict()["shadow"]["0"]
    assert average.isfinite().tolist() == [False, True]


def test_bfloat16_weights_are_averaged_in_float32_since_bfloat16_loses_every_update() -> None:
    model = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    wide, narrow = EMAModel(model), EMAModel(model, dtype=torch.bfloat16)
    nn.init.constant_(model.weight, 2.0)
    for _ in range(1000):
        wide.update()
        narrow.update()
    expected = torch.full((4, 4), 2 - 0.9999**1000)
    torch.testing.assert_close(wide.state_dict()["shadow"]["weight"], expected, rtol=1e-5, atol=0)
    assert torch.equal(
        narrow.state_dict()["shadow"]["weight"], torch.ones(4, 4, dtype=torch.bfloat16)
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
    assert torch.equal(ema.state_dict()["shadow"]["0"], torch.full((4,), 1.5))
    with ema.applied():
        assert torch.equal(model[0].float(), torch.full((4,), 1.5))
    assert torch.equal(model[0].float(), torch.full((4,), 2.0))


def test_a_wider_dtype_can_be_asked_for_and_complex_weights_keep_theirs() -> None:
    model = nn.ParameterList([torch.ones(2), torch.ones(2, dtype=torch.complex64)])
    averages = EMAModel(model, dtype=torch.float64).state_dict()["shadow"]
    assert [average.dtype for average in averages.values()] == [torch.float64, torch.complex64]


def test_tied_parameters_are_averaged_once_and_frozen_ones_not_stored() -> None:
    model = Net()
    ema = EMAModel(model, 0.5)
    assert list(ema.state_dict()["shadow"]) == ["embed.weight", "norm.weight", "norm.bias"]
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
    with pytest.raises(ValueError, match=r"dtype must be a floating dtype, .* not torch.int32"):
        EMAModel(nn.Linear(1, 1), dtype=torch.int32)


# A model that changes


def test_parameters_that_change_are_named_and_follow_model_takes_them_up() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    ema = EMAModel(model, 0.5)
    kept = ema.state_dict()["shadow"]["0.weight"]
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
    assert ema.state_dict()["shadow"]["0.weight"] is kept
    ema.update()
    averages = ema.state_dict()["shadow"]
    assert list(averages) == ["0.weight", "2.weight"]
    assert torch.equal(averages["2.weight"], model.get_parameter("2.weight"))


def test_a_parameter_of_another_shape_is_named() -> None:
    model = nn.Linear(2, 2)
    ema = EMAModel(model)
    model.bias = nn.Parameter(torch.zeros(3))
    with pytest.raises(RuntimeError, match=r"'bias' has the shape \(3,\), and its average \(2,\)"):
        ema.update()
    ema.follow_model()
    assert ema.state_dict()["shadow"]["bias"].shape == (3,)


def test_a_buffer_that_is_added_is_named() -> None:
    model = nn.BatchNorm1d(2)
    ema = EMAModel(model, use_buffers=True)
    model.register_buffer("extra", torch.zeros(1))
    with pytest.raises(RuntimeError, match=r"buffers are not those .*'extra'"):
        ema.update()


# Wrappers and devices


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_averages_of_compiled_and_distributed_models_are_those_of_the_bare_one() -> None:
    model = Net()
    bare = EMAModel(model, 0.5)
    distributed = DistributedDataParallel(model)
    compiled: Any = torch.compile(model, backend="eager")
    both: Any = torch.compile(distributed, backend="eager")
    partly = Net()
    partly.norm = torch.compile(partly.norm, backend="eager")  # type: ignore[assignment]
    for wrapped in (compiled, distributed, both, partly, nn.DataParallel(model)):
        ema = EMAModel(wrapped, 0.9)
        # As a script's own EMAModel, by the names that this model has for its parameters.
        trainable = [name for name, p in wrapped.named_parameters() if p.requires_grad]
        assert list(ema.state_dict()["shadow"]) == list(ema.shadow) == trainable
        ema.load_state_dict(bare.state_dict())
        assert [*bits(ema.shadow).values()] == [*bits(bare.state_dict()["shadow"]).values()]
        bare.load_state_dict(ema.state_dict())
        ema.update()
        bare.update(wrapped)
    assert bare.num_updates == 5
    assert list(bare.shadow) == list(EMAModel(model).shadow)


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
    states = [ema.state_dict()["shadow"] for ema in (following, kept, expected)]
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
