"""EMAModel beside the guide's: the same scripts run with either, and either reads the other's state."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import guide_classes
from tests.ema_models import Net, bits, change
from torch import Tensor, nn

import fastckpt

BOTH = pytest.mark.parametrize("kind", [guide_classes.EMAModel, fastckpt.EMAModel])
PAIRS = [
    (guide_classes.EMAModel, fastckpt.EMAModel),
    (fastckpt.EMAModel, guide_classes.EMAModel),
]
# A checkpoint whose EMA is in the form of November 2026.
OLDER_FILE = Path(__file__).parent / "older_files" / "manager_2026_11.pt"


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def trained(kind: Any, model: nn.Module, updates: int = 3, **options: Any) -> Any:
    ema = kind(model, **{"decay": 0.9, **options})
    for seed in range(updates):
        change(model, seed)
        ema.update()
    return ema


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


# Scripts


def use_the_attributes(kind: Any, model: nn.Module) -> list[Any]:
    ema = trained(kind, model)
    assert ema.model is model
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    distances = []
    for name, parameter in model.named_parameters():
        if name in ema.shadow:
            distances.append((parameter.data - ema.shadow[name]).norm())
    shapes = {name: tuple(value.shape) for name, value in ema.shadow.items()}
    ema.apply()
    assert bits(ema.backup) == bits(before)
    applied = {name: value.detach().clone() for name, value in model.named_parameters()}
    ema.restore()
    assert bits(dict(model.named_parameters())) == bits(before)
    return [ema.device, ema.decay, ema.backup, torch.stack(distances), shapes, applied]


def restore_without_apply(kind: Any, model: nn.Module) -> list[Any]:
    ema = trained(kind, model)
    before = bits(model.state_dict())
    ema.restore()
    assert bits(model.state_dict()) == before
    return [dict(ema.shadow)]


def keep_the_averages_in_the_model(kind: Any, model: nn.Module) -> list[Any]:
    ema = trained(kind, model)
    ema.apply()
    ema.backup = {}
    ema.restore()
    change(model, 9)
    ema.update()
    return [dict(ema.shadow), dict(model.named_parameters())]


def write_into_the_averages(kind: Any, model: nn.Module) -> list[Any]:
    ema = trained(kind, model)
    name = next(iter(ema.shadow))
    ema.shadow[name] = torch.full_like(ema.shadow[name], 2.0)
    ema.shadow[name].mul_(2)
    ema.update()
    return [dict(ema.shadow)]


def begin_anew_with_a_loop(kind: Any, model: nn.Module) -> list[Any]:
    ema = trained(kind, model)
    ema.shadow = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Not even cloned: the guide's updates make new tensors.
            ema.shadow[name] = parameter.data
    change(model, 7)
    ema.update()
    return [dict(ema.shadow), dict(model.named_parameters())]


def replace_the_averages_by_those_of_a_file(kind: Any, model: nn.Module) -> list[Any]:
    ema = trained(kind, model)
    loaded = copy.deepcopy(ema.state_dict())
    kept = {name: value.clone() for name, value in loaded["shadow"].items()}
    tensors = dict(loaded["shadow"])
    change(model, 8)
    ema.update()
    ema.shadow = loaded["shadow"]
    change(model, 9)
    ema.update()
    assert bits(tensors) == bits(kept)
    return [dict(ema.shadow)]


def keep_the_best_state_in_memory(kind: Any, model: nn.Module) -> list[Any]:
    ema = trained(kind, model)
    best = ema.state_dict()
    weights = bits(best["shadow"])
    one = next(iter(ema.shadow.values()))
    was = one.clone()
    for seed in range(3):
        change(model, 100 + seed)
        ema.update()
    assert bits(best["shadow"]) == weights
    assert torch.equal(one, was)
    ema.load_state_dict(best)
    assert bits(ema.shadow) == weights
    return [dict(ema.shadow)]


def change_the_decay(kind: Any, model: nn.Module) -> list[Any]:
    ema = trained(kind, model)
    ema.decay = 0.5
    change(model, 5)
    ema.update()
    return [ema.state_dict()["decay"], dict(ema.shadow)]


@pytest.mark.parametrize(
    "script",
    [
        use_the_attributes,
        restore_without_apply,
        keep_the_averages_in_the_model,
        write_into_the_averages,
        begin_anew_with_a_loop,
        replace_the_averages_by_those_of_a_file,
        keep_the_best_state_in_memory,
        change_the_decay,
    ],
    ids=lambda script: script.__name__,
)
@pytest.mark.parametrize("wrapper", ["none", "compile", "DataParallel"])
def test_a_script_of_the_guide_runs_with_only_its_import_changed(script: Any, wrapper: str) -> None:
    results = []
    for kind in (guide_classes.EMAModel, fastckpt.EMAModel):
        model = small_model()
        if wrapper == "compile":
            model = torch.compile(model, backend="eager")  # type: ignore[assignment]
        elif wrapper == "DataParallel":
            model = nn.DataParallel(model)
        results.append(script(kind, model))
    for theirs, ours in zip(*results, strict=True):
        if isinstance(theirs, dict) and any(isinstance(v, Tensor) for v in theirs.values()):
            assert_close(ours, theirs)
        elif isinstance(theirs, Tensor):
            torch.testing.assert_close(ours, theirs)
        else:
            assert ours == theirs


# Files


@pytest.mark.parametrize(("writer", "reader"), PAIRS, ids=["theirs", "ours"])
@pytest.mark.parametrize("saved_wrapped", [False, True])
def test_either_goes_on_from_the_others_state(
    writer: Any, reader: Any, saved_wrapped: bool, tmp_path: Path
) -> None:
    model = small_model()
    given: Any = torch.compile(model, backend="eager") if saved_wrapped else model
    ema = trained(writer, given)
    torch.save({"ema": ema.state_dict(), "model": model.state_dict()}, tmp_path / "c.pt")
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    other = small_model()
    other.load_state_dict(state["model"])
    given = torch.compile(other, backend="eager") if saved_wrapped else other
    resumed = reader(given, decay=0.5)
    resumed.load_state_dict(state["ema"])
    assert resumed.decay == 0.9
    assert bits(resumed.shadow) == bits(ema.shadow)
    change(model, 50)
    change(other, 50)
    ema.update()
    resumed.update()
    assert_close(resumed.shadow, dict(ema.shadow))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "module.module."])
def test_the_guides_names_may_be_those_in_a_wrapper(prefix: str) -> None:
    theirs = trained(guide_classes.EMAModel, small_model())
    state = {"shadow": {prefix + name: value for name, value in theirs.shadow.items()}}
    ema = fastckpt.EMAModel(small_model(), 0.5)
    ema.check_state_dict(state)
    ema.load_state_dict(state)
    assert ema.decay == 0.5
    assert bits(ema.shadow) == bits(theirs.shadow)
    assert list(ema.shadow) == list(theirs.shadow)


def test_a_part_of_the_model_that_is_called_module_is_not_taken_for_a_wrapper() -> None:
    def make() -> nn.Module:
        return nn.ModuleDict({"module": nn.Linear(2, 2)})

    ema = trained(fastckpt.EMAModel, make())
    wrapped = {f"module.{name}": value for name, value in ema.shadow.items()}
    for shadow in (dict(ema.shadow), wrapped):
        other = fastckpt.EMAModel(make())
        other.load_state_dict({"shadow": shadow})
        assert bits(other.shadow) == bits(ema.shadow)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_the_guides_averages_of_narrow_weights_become_float32_of_the_same_value(
    dtype: torch.dtype,
) -> None:
    values = torch.randn(2, 2, generator=torch.Generator().manual_seed(1)).to(dtype)
    ema = fastckpt.EMAModel(nn.ParameterList([nn.Parameter(torch.zeros(2, 2).to(dtype))]))
    ema.load_state_dict({"shadow": {"0": values}, "decay": 0.9})
    assert ema.shadow["0"].dtype == torch.float32
    assert torch.equal(ema.shadow["0"], values.float())


def test_a_state_of_the_guide_has_a_constant_decay() -> None:
    ema = fastckpt.EMAModel(small_model(), 0.5, warmup=True)
    for _ in range(3):
        ema.update()
    shadow = {name: value.clone() for name, value in ema.shadow.items()}
    # With a warm-up from the first update on, the averages that were loaded would be gone at once.
    ema.load_state_dict({"shadow": shadow, "decay": 0.75})
    assert (ema.warmup, ema.num_updates, ema.next_decay) == (False, 0, 0.75)


def test_the_form_of_november_2026_is_taken_over_bit_for_bit() -> None:
    state = torch.load(OLDER_FILE, weights_only=True)["ema_state_dict"]
    assert set(state) == {
        *("decay", "warmup", "use_buffers", "num_updates", "parameters", "buffers"),
    }
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    ema = fastckpt.EMAModel(model, 0.9, use_buffers=True)
    ema.load_state_dict(state)
    assert (ema.decay, ema.warmup, ema.num_updates) == (0.5, True, 2)
    # As they were when the file was written.
    assert ema.shadow["0.weight"].tolist() == [[0.04938792809844017, -0.4259566068649292]]
    assert ema.shadow["1.bias"].tolist() == [-0.7609090805053711]
    assert bits(ema.state_dict()["shadow"]) == bits(state["parameters"])
    assert bits(ema.state_dict()["buffers"]) == bits(state["buffers"])


def test_a_state_that_is_kept_outlives_a_state_that_is_loaded() -> None:
    ema = trained(fastckpt.EMAModel, small_model(), use_buffers=True)
    first = ema.state_dict()
    before = bits({**first["shadow"], **{f"b.{k}": v for k, v in first["buffers"].items()}})
    other = trained(fastckpt.EMAModel, small_model(), 5, use_buffers=True)
    ema.load_state_dict(other.state_dict())
    ema.reset()
    assert bits({**first["shadow"], **{f"b.{k}": v for k, v in first["buffers"].items()}}) == before


def test_updates_stay_in_place_where_nobody_looks() -> None:
    ema = trained(fastckpt.EMAModel, small_model())
    first = {name: value.data_ptr() for name, value in ema._shadow.items()}
    ema.update()
    assert {name: value.data_ptr() for name, value in ema._shadow.items()} == first
    kept = ema.state_dict()
    ema.update()
    second = {name: value.data_ptr() for name, value in ema._shadow.items()}
    assert not {*second.values()} & {value.data_ptr() for value in kept["shadow"].values()}
    ema.update()
    assert {name: value.data_ptr() for name, value in ema._shadow.items()} == second


# Beginning anew


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reset_is_what_a_new_one_would_begin_with(use_buffers: bool, dtype: torch.dtype) -> None:
    model = Net(dtype)
    ema = fastckpt.EMAModel(model, 0.75, use_buffers=use_buffers, warmup=True)
    for _ in range(3):
        change_all(model)
        ema.update()
    change_all(model)
    model.frozen.requires_grad_(True)
    ema.reset()
    fresh = fastckpt.EMAModel(model, 0.75, use_buffers=use_buffers, warmup=True)
    for part in ("shadow", "buffers"):
        assert bits(ema.state_dict()[part]) == bits(fresh.state_dict()[part])
    assert (ema.num_updates, ema.decay, ema.warmup) == (0, 0.75, True)


def change_all(model: nn.Module) -> None:
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            value.add_(1)


def test_wrong_averages_are_named_at_the_next_update() -> None:
    model = small_model()
    ema = fastckpt.EMAModel(model)
    weights = {name: value.data.clone() for name, value in model.named_parameters()}
    ema.shadow = {name: value for name, value in weights.items() if name != "0.bias"}
    with pytest.raises(RuntimeError, match=r"added or made trainable: '0.bias'"):
        ema.update()
    ema.shadow = {**weights, "0.bias": torch.zeros(7)}
    with pytest.raises(
        RuntimeError, match=r"'0.bias' has the shape \(4,\), and its average \(7,\)"
    ):
        ema.update()
    ema.shadow = {**weights, "_orig_mod.0.bias": weights["0.bias"]}
    with pytest.raises(RuntimeError, match=r"two names in `shadow` mean the same parameter"):
        ema.apply()
    assert ema.num_updates == 0
