"""Averages in the model: what they do to it, and that every bit of it comes back."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.ema_models import Net, bits, change
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from fastckpt import EMAModel
from fastckpt.ema import averaging, ema_model


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
    real, calls = averaging.copy_values, []

    def fail_second(to: dict[str, Tensor], values: dict[str, Tensor]) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        real(to, values)

    monkeypatch.setattr(ema_model, "copy_values", fail_second)
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
    # As a script's own EMAModel: there is nothing to undo.
    ema.restore()
    assert bits(model.state_dict()) == before


@pytest.mark.parametrize(
    "action", ["update", "follow_model", "reset", "load_state_dict", "check_state_dict"]
)
def test_averages_that_are_applied_are_not_taken_for_weights(action: str) -> None:
    ema = EMAModel(nn.Linear(2, 2))
    state = ema.state_dict()
    named = action.replace("check", "load")
    with ema.applied(), pytest.raises(RuntimeError, match=rf"{named}\(\) while the averages are"):
        getattr(ema, action)(*([state] if action.endswith("state_dict") else []))


def test_the_averages_go_into_another_model_of_the_same_shape() -> None:
    model = Net()
    ema = EMAModel(model, 0.5)
    change(model, 1)
    ema.update()
    other = Net()
    before = bits(other.state_dict())
    with ema.applied(other) as applied:
        assert applied is other
        assert torch.equal(other.embed.weight, ema.state_dict()["shadow"]["embed.weight"])
    assert bits(other.state_dict()) == before
    ema.update(other)
    assert ema.num_updates == 2


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
