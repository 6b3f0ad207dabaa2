"""The moving average of the weights: its state, or where the checkpoint has none, the weights just loaded."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from fastckpt._bare_model import unwrap
from fastckpt.ema import EMAModel
from fastckpt.errors import StateMismatchError

from . import snapshot
from .choices import Choices
from .model import plan_model
from .report import Report
from .restoration import Restoration


def plan_average(
    what: str, ema: Any, state: Any, path: str, choices: Choices, report: Report
) -> Restoration | None:
    """Compare the state of an average with it; return what loads it.

    Returns:
        None where `strict` is False and it does not fit.

    Raises:
        StateMismatchError: It is of other parameters, shapes or dtypes.
    """
    if isinstance(ema, nn.Module):
        return plan_model(what, ema, state, path, choices, report)
    if isinstance(ema, EMAModel):
        try:
            ema.check_state_dict(state)
        except (ValueError, RuntimeError) as error:
            if choices.strict:
                raise StateMismatchError(
                    f"{path} does not fit {what}, and nothing was changed: {error}"
                ) from error
            report.skip(what, str(error))
            return None
        return Restoration(what, partial(ema.load_state_dict, state))
    load = partial(ema.load_state_dict, state)
    return Restoration(what, load, partial(snapshot.of_object, ema), may_refuse=True)


def beginning_of(ema: Any, model: Any) -> Callable[[], None] | None:
    """Return what lets an average begin at a model's weights; None where it is not known how.

    Args:
        ema: An `EMAModel`, an `AveragedModel` of torch's, or one that keeps its averages by name in a dict
            `shadow`.
        model: The model, once its weights are loaded.

    Raises:
        StateMismatchError: The averages are in the model now.
    """
    if isinstance(ema, EMAModel):
        if ema.is_applied:
            raise StateMismatchError(
                "the averages are in the model: restore() them before resuming"
            )
        return ema.reset
    if isinstance(ema, AveragedModel) and isinstance(model, nn.Module):
        return partial(_begin_averaged, ema, model) if _is_average_of(ema, model) else None
    shadow = getattr(ema, "shadow", None)
    if isinstance(shadow, dict) and isinstance(model, nn.Module):
        return partial(_begin_shadow, shadow, model)
    return None


def _is_average_of(ema: AveragedModel, model: nn.Module) -> bool:
    own, state = ema.module.state_dict(), unwrap(model).state_dict()
    return own.keys() == state.keys() and all(
        own[name].shape == state[name].shape for name in own if isinstance(own[name], torch.Tensor)
    )


def _begin_averaged(ema: AveragedModel, model: nn.Module) -> None:
    # It copies the weights in its first update; until then it would be the model before loading.
    ema.module.load_state_dict(unwrap(model).state_dict())
    ema.n_averaged.zero_()


@torch.no_grad()
def _begin_shadow(shadow: dict[str, Any], model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        own = shadow.get(name)
        if isinstance(own, torch.Tensor):
            shadow[name] = parameter.detach().clone().to(device=own.device, dtype=own.dtype)


def is_state(state: Any) -> bool:
    """Whether there is any state at all."""
    return state is not None and not (isinstance(state, Mapping) and not state)
