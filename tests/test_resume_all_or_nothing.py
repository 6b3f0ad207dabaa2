"""A resume restores everything or nothing: what does not fit, or refuses, leaves all as it was."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.manager_runs import Weights, damage, first_name, manager_of, messages, save_all
from tests.specimens import assert_same
from torch import nn
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import AveragedModel

import fastckpt
from fastckpt import StateMismatchError


class Run:
    """All that a checkpoint can hold, trained a little."""

    def __init__(self, seed: int, width: int = 4) -> None:
        torch.manual_seed(seed)
        self.model: Any = nn.Sequential(
            nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2)
        )
        self.optimizer: Any = torch.optim.AdamW(self.model.parameters(), lr=0.01 * (seed + 1))
        self.scheduler: Any = schedules.StepLR(self.optimizer, 2)
        self.scaler: Any = torch.amp.GradScaler("cpu", init_scale=2.0 ** (seed + 3))
        self.ema: Any = fastckpt.EMAModel(self.model, decay=0.5)
        self.generators = {"loader": torch.Generator().manual_seed(seed)}
        for _ in range(2):
            self.optimizer.zero_grad()
            self.model(torch.randn(5, 3)).square().sum().backward()
            self.optimizer.step()
            self.scheduler.step()
            self.ema.update()
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002

    def manager(self, directory: Path) -> fastckpt.CheckpointManager:
        return fastckpt.CheckpointManager(
            fastckpt.CheckpointConfig(directory, metric_name=None),
            self.model,
            self.optimizer,
            self.scheduler,
            self.scaler,
            ema=self.ema,
            generators=self.generators,
        )

    def states(self) -> Any:
        """Return copies of all state, the random numbers too."""
        parts = (self.model, self.optimizer, self.scheduler, self.scaler, self.ema)
        states = [dict(part.state_dict()) for part in parts if hasattr(part, "state_dict")]
        own: Any = np.random.get_state()  # noqa: NPY002
        numbers = [random.getstate(), own[2], torch.get_rng_state()]
        return copy.deepcopy([*states, *numbers, self.generators["loader"].get_state()])


class Refusing:
    """Takes a part of its state, draws a random number, and raises."""

    def __init__(self) -> None:
        self.numbers = [1.0, 2.0]
        self.tensor = torch.ones(3)

    def state_dict(self) -> dict[str, Any]:
        return {"numbers": self.numbers, "tensor": self.tensor}

    def load_state_dict(self, state: Any) -> None:
        self.numbers[0] = 7.0
        self.tensor.zero_()
        torch.rand(1)
        random.random()
        self.extra = 1
        raise OverflowError("too much")


def _other_head(run: Run) -> None:
    run.model[2] = nn.Linear(4, 9)
    run.optimizer = torch.optim.AdamW(run.model.parameters())


def _half(run: Run) -> None:
    run.model.half()


def _other_optimizer(run: Run) -> None:
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1, momentum=0.9)


def _other_scheduler(run: Run) -> None:
    run.scheduler = schedules.ExponentialLR(run.optimizer, 0.9)


def _other_chain(run: Run) -> None:
    run.scheduler = schedules.SequentialLR(
        run.optimizer,
        [schedules.ConstantLR(run.optimizer), schedules.ExponentialLR(run.optimizer, 0.9)],
        [2],
    )


def _other_average(run: Run) -> None:
    run.ema = fastckpt.EMAModel(nn.Linear(3, 3))


def _two_models(run: Run) -> None:
    run.model = [run.model, nn.Linear(1, 1)]


def _two_optimizers(run: Run) -> None:
    run.optimizer = {"a": run.optimizer}


_MISFITS: dict[str, tuple[Callable[[Run], None], str]] = {
    "head": (_other_head, "2.bias: shape (2,) in the checkpoint, (9,) here"),
    "dtype": (_half, "float32 in the checkpoint, float16 here"),
    "optimizer": (_other_optimizer, "it was saved from AdamW, and this is SGD"),
    "scheduler": (_other_scheduler, "its state is that of a StepLR, and this is a ExponentialLR"),
    "chain": (_other_chain, "its state is that of a StepLR, and this is a SequentialLR"),
    "average": (_other_average, "does not fit ema"),
    "two models": (_two_models, "model: the checkpoint has one, and the script a list of 2"),
    "two optimizers": (
        _two_optimizers,
        "optimizer: the checkpoint has one, and the script a dict of 'a'",
    ),
}


@pytest.mark.parametrize("how", _MISFITS)
def test_what_does_not_fit_is_known_before_anything_is_changed(how: str, tmp_path: Path) -> None:
    Run(0).manager(tmp_path).save(0, 2, {})
    other = Run(1)
    change, words = _MISFITS[how]
    change(other)
    before = other.states()
    with pytest.raises(StateMismatchError) as caught:
        other.manager(tmp_path).load()
    assert words in str(caught.value)
    assert str(tmp_path / first_name(2)) in str(caught.value)
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, ValueError)
    assert_same(other.states(), before)


@pytest.mark.parametrize("part", ["model", "optimizer", "scheduler", "scaler", "ema"])
def test_an_object_that_raises_is_put_back_and_so_are_all_others(part: str, tmp_path: Path) -> None:
    first = Run(0)
    setattr(first, part, Refusing())
    first.manager(tmp_path).save(0, 2, {})
    other = Run(1)
    setattr(other, part, refusing := Refusing())
    refusing.numbers, refusing.tensor = [3.0, 4.0], torch.full((3,), 5.0)
    numbers, tensor, before = refusing.numbers, refusing.tensor, other.states()
    with pytest.raises(OverflowError, match="too much"):
        other.manager(tmp_path).load()
    assert_same(other.states(), before)
    assert refusing.numbers is numbers
    assert refusing.tensor is tensor
    assert not hasattr(refusing, "extra")


def test_damage_and_a_bad_random_state_change_nothing(tmp_path: Path) -> None:
    Run(0).manager(tmp_path).save(0, 2, {})
    path = tmp_path / first_name(2)
    other = Run(1)
    before = other.states()
    contents = torch.load(path)
    contents["rng_states"]["torch"] = contents["rng_states"]["torch"][:100].clone()
    torch.save(contents, tmp_path / "short.pt")
    with pytest.raises(StateMismatchError, match="random number state that cannot be restored"):
        other.manager(tmp_path).load(tmp_path / "short.pt")
    assert_same(other.states(), before)
    damage(path, first_model_bytes(contents))
    with pytest.raises(fastckpt.ChecksumError):
        other.manager(tmp_path).load(path)
    assert_same(other.states(), before)


def first_model_bytes(contents: Any) -> bytes:
    return contents["model_state_dict"]["0.weight"].numpy().tobytes()  # type: ignore[no-any-return]


def test_a_module_with_its_own_way_of_loading_is_put_back(tmp_path: Path) -> None:
    class Stubborn(nn.Linear):
        def _load_from_state_dict(self, *arguments: Any) -> None:
            super()._load_from_state_dict(*arguments)
            if self.out_features == 9:
                self.loaded = True
                raise RuntimeError("never")

    def make(out: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(2, 2), Stubborn(2, out))

    path = fastckpt.CheckpointManager(tmp_path, saved := make(3)).save(0, 0, {"val_loss": 1})
    assert path is not None
    fits = make(3)
    fastckpt.resume_training(path, fits)
    assert_same(fits.state_dict(), saved.state_dict())
    contents = torch.load(path)
    contents["model_state_dict"] = make(9).state_dict()
    torch.save(contents, tmp_path / "nine.pt")
    nine = make(9)
    before = copy.deepcopy(nine.state_dict())
    with pytest.raises(StateMismatchError, match="never"):
        fastckpt.resume_training(tmp_path / "nine.pt", nine)
    assert_same(nine.state_dict(), before)
    assert not hasattr(nine[1], "loaded")


def test_what_torch_puts_right_still_loads(tmp_path: Path) -> None:
    # Batch norms before torch 0.4.1 had no counter, and numbers without a dimension were saved with one.
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)
            self.scale = nn.Parameter(torch.tensor(2.0))

    path = fastckpt.CheckpointManager(tmp_path, Scaled()).save(0, 0, {"val_loss": 1})
    assert path is not None
    contents = torch.load(path)
    state = contents["model_state_dict"]
    del state["norm.num_batches_tracked"], state._metadata["norm"]["version"]
    state["scale"] = torch.tensor([3.0])
    torch.save(contents, tmp_path / "old.pt")
    model = Scaled()
    assert "model" in fastckpt.resume_training(tmp_path / "old.pt", model).restored
    assert model.scale.item() == 3.0


def test_dtypes_are_widened_and_narrowed_only_when_asked(tmp_path: Path) -> None:
    path = fastckpt.CheckpointManager(tmp_path, nn.Linear(2, 2).bfloat16()).save(
        0, 0, {"val_loss": 1}
    )
    assert path is not None
    wide = nn.Linear(2, 2)
    report = fastckpt.resume_training(path, wide)
    assert report.adjusted["model"].startswith("converted without loss: bias: bfloat16 in the")
    narrow = nn.Linear(2, 2).half()
    with pytest.raises(StateMismatchError, match="strict=False"):
        fastckpt.resume_training(path, narrow)
    report = fastckpt.resume_training(path, narrow, strict=False)
    assert torch.equal(narrow.weight, wide.weight.half())
    assert report.adjusted["model"].startswith("converted: bias: bfloat16")


def test_an_average_that_joins_begins_at_the_loaded_weights(tmp_path: Path) -> None:
    saved = nn.Linear(2, 2)
    path = fastckpt.CheckpointManager(tmp_path, saved).save(0, 0, {"val_loss": 1})
    assert path is not None

    class Shadowed:
        def __init__(self, model: nn.Module) -> None:
            self.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

        def load_state_dict(self, state: Any) -> None:
            self.shadow = state["shadow"]

    for make in (fastckpt.EMAModel, AveragedModel, Shadowed):
        model = nn.Linear(2, 2)
        ema: Any = make(model)
        report = fastckpt.resume_training(path, model, ema=ema)
        assert report.skipped["ema"] == (
            "the checkpoint has no state for it: it begins at the weights that were loaded"
        )
        averages = ema.module.state_dict() if make is AveragedModel else ema.shadow
        assert_same(dict(averages), dict(saved.state_dict()))


def test_a_disabled_scaler_stays_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def scaler(enabled: bool) -> Any:
        return torch.amp.GradScaler("cpu", init_scale=8.0, enabled=enabled)

    for saved_on in (True, False):
        directory = tmp_path / str(saved_on)
        path = fastckpt.CheckpointManager(directory, Weights(), scaler=scaler(saved_on)).save(
            0, 0, {"val_loss": 1}
        )
        assert path is not None
        for on in (True, False):
            mine = scaler(on)
            before = dict(mine.state_dict())
            skipped = fastckpt.resume_training(path, Weights(), scaler=mine).skipped
            expected = {
                (True, False): "it is disabled, and stays as it is",
                (False, True): "it was disabled when the checkpoint was saved, and stays as it is",
            }.get((saved_on, on))
            assert skipped == ({} if expected is None else {"scaler": expected})
            assert mine.state_dict() == before
    assert messages(caplog) == []


def test_only_damage_is_fallen_back_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_all(manager_of(tmp_path, Weights(0.5)), {10: 1.0, 20: 2.0})
    newest = tmp_path / first_name(30)
    good = torch.load(tmp_path / first_name(20))
    refused = {
        "an object": (
            {**good, "global_step": 30, "extra_state": Refusing()},
            fastckpt.UnsafePickleError,
        ),
        "another program": ({"epoch": 0, "global_step": 30}, fastckpt.FormatError),
    }
    for contents, error in refused.values():
        torch.save(contents, newest)
        model = Weights(9)
        with pytest.raises(error) as caught:
            manager_of(tmp_path, model).load()
        assert model.value == 9
        said = " ".join([str(caught.value), *messages(caplog)])
        assert "damaged" not in said
        assert "repair" not in said
        caplog.clear()
    newest.write_bytes((tmp_path / first_name(20)).read_bytes()[:-100])
    assert manager_of(tmp_path).load()["global_step"] == 20


def test_what_was_chosen_is_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Run(0).manager(tmp_path).save(0, 2, {})
    with caplog.at_level(logging.INFO, "fastckpt.training"):
        report = Run(1).manager(tmp_path).load(keep=("lr",))
    words = f"Adjusted while restoring from {tmp_path / first_name(2)}: optimizer (kept as the script has it: lr)"
    assert words in messages(caplog, logging.INFO)
    assert report.adjusted == {"optimizer": "kept as the script has it: lr"}


def test_a_file_of_another_script_is_read_through_a_key_map(tmp_path: Path) -> None:
    net, other = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    path = tmp_path / "theirs.pt"
    torch.save({"state": {"net": net.state_dict()}, "opt": optimizer.state_dict(), "it": 5}, path)
    mine = torch.optim.SGD(other.parameters(), lr=0.1)
    key_map = {"model": "state.net", "optimizer": "opt", "step": "it"}
    resumed = fastckpt.resume_training(path, other, mine, key_map=key_map)
    assert resumed["global_step"] == 5
    assert "epoch" not in resumed
    assert resumed.restored == ("model", "optimizer")
    assert mine.param_groups[0]["lr"] == 0.5
    assert_same(other.state_dict(), net.state_dict())
    loaded = fastckpt.CheckpointManager(tmp_path / "own", other, mine).load(path, key_map=key_map)
    assert loaded["model_state_dict"].keys() == net.state_dict().keys()
    for wrong, error, words in (
        (
            {"model": "nett"},
            fastckpt.FormatError,
            "has no key 'nett', which key_map names; it has 'state'",
        ),
        (
            {"models": "net"},
            ValueError,
            "key_map has no part 'models': choose from model, optimizer",
        ),
        ({"optimizer": "opt"}, ValueError, "key_map must say where the model is"),
    ):
        with pytest.raises(error, match=words):
            fastckpt.resume_training(path, other, mine, key_map=wrong)


@pytest.mark.parametrize("form", [list, dict])
def test_several_of_each_part_are_saved_and_restored(form: type, tmp_path: Path) -> None:
    def make(seed: int) -> list[Run]:
        return [Run(seed), Run(seed + 10, width=5)]

    def part(runs: list[Run], name: str) -> Any:
        objects = [getattr(run, name) for run in runs]
        return objects if form is list else dict(zip("gd", objects, strict=True))

    def manager(runs: list[Run]) -> fastckpt.CheckpointManager:
        names = ("model", "optimizer", "scheduler", "scaler")
        return fastckpt.CheckpointManager(
            tmp_path, *(part(runs, name) for name in names), ema=part(runs, "ema")
        )

    saved, others = make(0), make(1)
    manager(saved).save(0, 2, {"val_loss": 1})
    report = manager(others).load()
    assert report.restored[:5] == ("model", "optimizer", "scheduler", "scaler", "ema")
    for one, other in zip(saved, others, strict=True):
        for name in ("model", "optimizer", "scheduler", "scaler", "ema"):
            assert_same(getattr(other, name).state_dict(), getattr(one, name).state_dict())
    # Swapped, they do not fit, and all of them are as they were.
    swapped = make(1)[::-1]
    before = [run.states() for run in swapped]
    with pytest.raises(StateMismatchError):
        manager(swapped).load()
    assert_same([run.states() for run in swapped], before)


def test_what_has_no_state_dict_is_refused_at_once(tmp_path: Path) -> None:
    for arguments, words in (
        (([Weights(), 3],), r"model\[1\] must have state_dict and load_state_dict"),
        (
            (Weights(), {"a": object()}),
            r"optimizer\['a'\] must have state_dict and load_state_dict",
        ),
    ):
        with pytest.raises(TypeError, match=words):
            fastckpt.CheckpointManager(tmp_path, *arguments)


def test_a_model_without_parameters_is_one(tmp_path: Path) -> None:
    path = fastckpt.CheckpointManager(tmp_path, nn.ReLU()).save(0, 0, {"val_loss": 1})
    assert path is not None
    assert fastckpt.resume_training(path, nn.ReLU()).restored[0] == "model"


def test_a_module_that_converts_what_it_loads_decides_by_itself(tmp_path: Path) -> None:
    class Quantized(nn.Linear):
        def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
            state[f"{prefix}weight"] = state[f"{prefix}weight"].half()
            super()._load_from_state_dict(state, prefix, *rest)

    path = fastckpt.CheckpointManager(tmp_path, nn.Sequential(nn.Linear(2, 2))).save(
        0, 0, {"val_loss": 1}
    )
    assert path is not None
    model = nn.Sequential(Quantized(2, 2, dtype=torch.float16))
    assert fastckpt.resume_training(path, model).adjusted == {}


def test_averages_that_are_applied_or_of_another_model_stop_nothing_half_way(
    tmp_path: Path,
) -> None:
    path = fastckpt.CheckpointManager(tmp_path, nn.Linear(2, 2)).save(0, 0, {"val_loss": 1})
    assert path is not None
    model = nn.Linear(2, 2)
    before = copy.deepcopy(model.state_dict())
    ema = fastckpt.EMAModel(model)
    with ema.applied(), pytest.raises(StateMismatchError, match=r"restore\(\) them"):
        fastckpt.resume_training(path, model, ema=ema)
    assert_same(model.state_dict(), before)
    other = AveragedModel(nn.Linear(3, 3))
    skipped = fastckpt.resume_training(path, model, ema=other).skipped
    assert skipped["ema"] == "the checkpoint has no state for it"
