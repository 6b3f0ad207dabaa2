"""Whether an optimizer's state is of its kind: AdamW's into SGD would break, or be wrong, in its first step.

A state dict of torch (2.6 to 2.15) does not say which class it is of. It shows in the settings of the groups
(betas or momentum), and in what the state of a parameter consists of.
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch.optim import Optimizer

from fastckpt._wording import class_name

# Settings that only some versions of torch have, that choose an implementation, or that a scheduler adds.
_NOT_OF_A_KIND = frozenset(
    {
        *("params", "param_names", "foreach", "maximize", "capturable", "differentiable", "fused"),
        *("decoupled_weight_decay", "initial_lr", "max_lr", "min_lr", "swa_lr"),
        *("base_momentum", "max_momentum"),
    }
)
# What torch's optimizers (2.6 to 2.15) read from a parameter's state once it has one.
_NEEDED_IN_STATE: dict[str, tuple[str, ...]] = {
    "Adadelta": ("square_avg", "acc_delta"),
    "Adagrad": ("sum",),
    "Adam": ("exp_avg", "exp_avg_sq"),
    "AdamW": ("exp_avg", "exp_avg_sq"),
    "Adamax": ("exp_avg", "exp_inf"),
    "ASGD": ("ax", "eta", "mu"),
    "Muon": ("momentum_buffer",),
    "NAdam": ("exp_avg", "exp_avg_sq", "mu_product"),
    "RAdam": ("exp_avg", "exp_avg_sq"),
    "RMSprop": ("square_avg",),
    "Rprop": ("prev", "step_size"),
    "SparseAdam": ("exp_avg", "exp_avg_sq"),
}
# What they read beside it where a setting asks for it.
_NEEDED_BY_SETTING = {"amsgrad": "max_exp_avg_sq", "centered": "grad_avg"}
_DECOUPLED = "decoupled_weight_decay"


def is_torchs(kind: type) -> bool:
    """Whether a class is one of torch's own optimizers."""
    return _names_torchs(class_name(kind))


def kind_of(optimizer: Optimizer) -> type[Optimizer]:
    """Return the class of an optimizer; of a class derived from one of torch's, that one."""
    for base in type(optimizer).__mro__:
        if base is not Optimizer and is_torchs(base):
            return base
    return type(optimizer)


def other_kind(
    optimizer: Optimizer, state: Mapping[str, Any], saved_class: Any, keep: Collection[str]
) -> str | None:
    """Say why a state is of another kind of optimizer; None if nothing says so.

    Args:
        optimizer: The optimizer of the script.
        state: The state of the checkpoint: "state" and "param_groups".
        saved_class: What the checkpoint calls the class; None if it does not.
        keep: Settings that stay those of the script.
    """
    kind = kind_of(optimizer)
    own_names = {class_name(one) for one in (kind, type(optimizer))}
    if saved_class in own_names:
        # Settings may come and go with versions of one class.
        return _other_state(optimizer, kind, state, keep)
    return (
        _other_class(kind, saved_class, keep)
        or _other_settings(optimizer, state["param_groups"], keep)
        or _other_state(optimizer, kind, state, keep)
    )


def _other_class(kind: type[Optimizer], saved: Any, keep: Collection[str]) -> str | None:
    present = class_name(kind)
    if not isinstance(saved, str) or not _names_torchs(saved) or not is_torchs(kind):
        return None
    names = [name.rpartition(".")[2] for name in (saved, present)]
    if names[0] == names[1] or (set(names) == {"Adam", "AdamW"} and _DECOUPLED in keep):
        return None
    return f"it was saved from {names[0]}, and this is {names[1]}{_adam_hint(names)}"


def _other_settings(
    optimizer: Optimizer, saved_groups: Iterable[Mapping[str, Any]], keep: Collection[str]
) -> str | None:
    needed = optimizer.defaults.keys() - _NOT_OF_A_KIND
    own = {key for group in optimizer.param_groups for key in group}
    for saved in saved_groups:
        missing = sorted(needed - saved.keys() - set(keep))
        strange = sorted((saved.keys() & _settings_of_torch()) - own)
        if missing or strange:
            words = [f"its groups have no {', '.join(missing)}"] if missing else []
            words += [f"its groups have {', '.join(strange)}"] if strange else []
            return f"{' but '.join(words)}, which is not what {type(optimizer).__qualname__} has"
    present = {group.get(_DECOUPLED) for group in optimizer.param_groups}
    decoupled = {saved.get(_DECOUPLED) for saved in saved_groups}
    if _DECOUPLED not in keep and None not in present | decoupled and present.isdisjoint(decoupled):
        names = ["AdamW", "Adam"] if True in decoupled else ["Adam", "AdamW"]
        return f"its weight decay is that of {names[0]}, and this is {names[1]}{_adam_hint(names)}"
    return None


def _other_state(
    optimizer: Optimizer, kind: type[Optimizer], state: Mapping[str, Any], keep: Collection[str]
) -> str | None:
    entries = [one for one in state["state"].values() if isinstance(one, Mapping) and one]
    if not entries:
        return None
    needed = {*_needed(kind, state["param_groups"], optimizer, keep)}
    present = [set(one) for one in optimizer.state.values() if isinstance(one, dict) and one]
    if present and not is_torchs(kind):
        needed = set.intersection(*present)
    for entry in entries:
        missing = sorted(str(key) for key in needed - entry.keys())
        if missing:
            there = ", ".join(sorted(map(str, entry)))
            return (
                f"the state of its parameters has {there}, and {type(optimizer).__qualname__} needs "
                f"{', '.join(missing)}"
            )
    return None


def _needed(
    kind: type[Optimizer],
    saved_groups: Iterable[Mapping[str, Any]],
    optimizer: Optimizer,
    keep: Collection[str],
) -> Iterable[str]:
    if not is_torchs(kind):
        return
    yield from _NEEDED_IN_STATE.get(kind.__name__, ())
    for setting, key in _NEEDED_BY_SETTING.items():
        groups = optimizer.param_groups if setting in keep else saved_groups
        if any(group.get(setting) is True for group in groups):
            yield key


def _adam_hint(names: Collection[str]) -> str:
    if set(names) == {"Adam", "AdamW"}:
        return (
            f". keep=({_DECOUPLED!r},) takes its moments, and decays the weights as this one does"
        )
    return ""


def _names_torchs(name: str) -> bool:
    return name.startswith("torch.optim.")


@cache
def _settings_of_torch() -> frozenset[str]:
    """Return the settings by which torch's own optimizers are told apart."""
    settings: set[str] = set()
    for one in vars(torch.optim).values():
        if isinstance(one, type) and issubclass(one, Optimizer) and one is not Optimizer:
            settings |= {*inspect.signature(one.__init__).parameters}
    return frozenset(settings - _NOT_OF_A_KIND - {"self", "lr"})
