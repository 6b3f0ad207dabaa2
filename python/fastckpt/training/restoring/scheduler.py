"""Whether the state of a learning rate scheduler is of its kind: torch takes any dict, and breaks later."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from fastckpt._wording import class_name, some_names
from fastckpt.errors import StateMismatchError

from . import snapshot
from .choices import Choices
from .report import Report
from .restoration import Restoration

_BASE_LRS = "base_lrs"
_CHILDREN = "_schedulers"
# What every scheduler has, or only that of some versions of torch (2.6 to 2.15).
_OF_NO_KIND = frozenset(
    {_BASE_LRS, "last_epoch", "verbose", "mode_worse", "default_min_lr", "use_beta1"}
)
_TORCHS = ("torch.optim.lr_scheduler.", "torch.optim.swa_utils.")


def plan_scheduler(
    what: str,
    scheduler: Any,
    state: Any,
    saved_class: Any,
    path: str,
    choices: Choices,
    report: Report,
) -> Restoration | None:
    """Compare the state of a scheduler with the scheduler; return what loads it.

    Args:
        what: What it is called in messages.
        scheduler: Has load_state_dict.
        state: Its state in the checkpoint.
        saved_class: What the checkpoint calls its class; None if it does not.
        path: The checkpoint, for messages.
        choices: `strict`, and whether `keep` has "lr": then the base learning rates stay the script's.
        report: Gets what is to be said.

    Returns:
        None where `strict` is False and it does not fit.

    Raises:
        StateMismatchError: It is of another kind, or for another number of groups.
    """
    is_torchs = isinstance(scheduler, (LRScheduler, ReduceLROnPlateau)) or hasattr(
        scheduler, _CHILDREN
    )
    if is_torchs and isinstance(state, Mapping):
        reason = _misfit(scheduler, scheduler.state_dict(), state, saved_class)
        if reason is not None and choices.strict:
            raise StateMismatchError(
                f"{path} does not fit {what}, and nothing was changed: {reason}"
            )
        if reason is not None:
            report.skip(what, reason)
            return None
        if "lr" in choices.keep:
            state = _with_base_lrs(state, scheduler.state_dict())
    # Small, and the class of a user more often than not: it is always put back if anything fails.
    return Restoration(
        what,
        partial(scheduler.load_state_dict, state),
        partial(snapshot.of_object, scheduler),
        may_refuse=not class_name(type(scheduler)).startswith(_TORCHS),
    )


def _misfit(
    scheduler: Any, present: Mapping[str, Any], saved: Mapping[str, Any], saved_class: Any
) -> str | None:
    own_class = class_name(type(scheduler))
    names = (saved_class, own_class)
    if all(isinstance(name, str) and name.startswith(_TORCHS) for name in names) and (
        saved_class != own_class
    ):
        before, now = (name.rpartition(".")[2] for name in names)
        return f"its state is that of a {before}, and this is a {now}"
    if saved_class != own_class:
        own, other = _settings(present), _settings(saved)
        differs = own != other if own_class.startswith(_TORCHS) else bool(own - other)
        if differs:
            return (
                f"its state is that of another scheduler than {type(scheduler).__qualname__}: it has "
                f"{some_names(other) or 'no settings'}, expected {some_names(own) or 'none'}"
            )
    return _other_size(present, saved)


def _other_size(present: Mapping[str, Any], saved: Mapping[str, Any]) -> str | None:
    own, other = present.get(_BASE_LRS), saved.get(_BASE_LRS)
    if isinstance(own, list) and isinstance(other, list) and len(own) != len(other):
        return f"it was saved for {len(other)} groups of parameters, and there are {len(own)}"
    children, saved_children = present.get(_CHILDREN), saved.get(_CHILDREN)
    if not isinstance(children, (list, tuple)) or not isinstance(saved_children, (list, tuple)):
        return None
    if len(children) != len(saved_children):
        return f"it consists of {len(children)} schedulers, and that of the checkpoint of {len(saved_children)}"
    for number, (one, other_one) in enumerate(zip(children, saved_children, strict=True)):
        if not isinstance(one, Mapping) or not isinstance(other_one, Mapping):
            continue
        own_settings, other_settings = _settings(one), _settings(other_one)
        if own_settings != other_settings:
            return (
                f"its scheduler number {number} is of another kind: it has "
                f"{some_names(other_settings) or 'no settings'}, expected "
                f"{some_names(own_settings) or 'none'}"
            )
        reason = _other_size(one, other_one)
        if reason is not None:
            return f"its scheduler number {number}: {reason}"
    return None


def _settings(state: Mapping[str, Any]) -> set[str]:
    """Return the keys by which schedulers are told apart: their settings, and whether they have others inside."""
    return {
        str(key)
        for key in state
        if key == _CHILDREN or (not str(key).startswith("_") and key not in _OF_NO_KIND)
    }


def _with_base_lrs(state: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved state with the learning rates that the script's scheduler began with."""
    mixed = {**state, **{key: present[key] for key in (_BASE_LRS,) if key in present}}
    children, own = state.get(_CHILDREN), present.get(_CHILDREN)
    if isinstance(children, (list, tuple)) and isinstance(own, (list, tuple)):
        mixed[_CHILDREN] = type(children)(
            _with_base_lrs(one, other) for one, other in zip(children, own, strict=True)
        )
    return mixed
