"""Whether the state of a model fits it, known before anything is changed."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from fastckpt._bare_model import unwrap
from fastckpt._wording import some_names
from fastckpt.errors import StateMismatchError

from . import snapshot
from .choices import Choices
from .model_names import state_for
from .report import Report
from .restoration import Restoration

_OWN_WAYS = ("load_state_dict", "_load_from_state_dict", "state_dict", "set_extra_state")
_HOOKS = ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_state_dict_hooks")
_LISTED_MAX = 10
# The counter that batch norms have had since torch 0.4.1.
_COUNTER = "num_batches_tracked"
# Ways of loading that take each tensor by its name, as it is, and nothing else.
_BY_NAME = (
    nn.Module._load_from_state_dict,
    torch.nn.modules.batchnorm._NormBase._load_from_state_dict,
)


def plan_model(
    what: str, model: Any, state: Any, path: str, choices: Choices, report: Report
) -> Restoration:
    """Compare the state of a model with the model; return what loads it.

    Names, shapes and dtypes are compared. Where a module of the model has its own way of loading, or a
    name or a shape differs, torch's load_state_dict decides, as for old versions of its own modules, and
    the model is put back if that refuses. A dtype may differ where the model's holds every value of the
    saved one.

    Args:
        what: What the model is called in messages.
        model: Has load_state_dict.
        state: Its state in the checkpoint.
        path: The checkpoint, for messages.
        choices: `strict=False`: what fits is loaded, and the rest is listed in the report.
        report: Gets what is to be said.

    Raises:
        StateMismatchError: The state does not fit; says in what.
    """
    if not isinstance(state, Mapping):
        raise StateMismatchError(
            f"{path}: the state of {what} is a {type(state).__name__}, not a dict of names and tensors"
        )
    if not isinstance(model, nn.Module):
        load = partial(model.load_state_dict, state)
        return Restoration(what, load, partial(snapshot.of_object, model), may_refuse=True)
    target, state = state_for(model, state)
    differences = _Differences(target, state)
    if not choices.strict:
        state = differences.without(state)
        differences.report(what, report)
    elif differences.lossy:
        raise StateMismatchError(
            f"{path} does not fit {what}: {_listed(differences.lossy)}. The model cannot hold all of the "
            "saved values. Give it the saved dtype, or convert the values with strict=False"
        )
    elif differences.widened:
        report.adjust(what, [f"converted without loss: {_listed(differences.widened)}"])
    if differences.is_plain and (not choices.strict or not differences.misfits):
        return Restoration(what, partial(target.load_state_dict, state, strict=choices.strict))
    if choices.strict and differences.misfits and differences.is_final:
        raise StateMismatchError(
            f"{path} does not fit {what}, and nothing was changed; strict=False loads what fits. "
            f"{differences.in_words()}"
        )
    load = partial(_load_by_torch, what, target, state, path, choices)
    return Restoration(what, load, partial(snapshot.of_module, target), may_refuse=True)


def _load_by_torch(
    what: str, model: nn.Module, state: Mapping[str, Any], path: str, choices: Choices
) -> None:
    try:
        model.load_state_dict(state, strict=choices.strict)
    except RuntimeError as error:
        hint = "; strict=False loads what fits" if choices.strict else ""
        raise StateMismatchError(
            f"{path} does not fit {what}, and nothing was changed{hint}. {error}"
        ) from error


class _Differences:
    """In what a state differs from the state that a model has.

    Attributes:
        missing: Names that the state lacks.
        unexpected: Names that the model lacks.
        shapes: Names whose shapes differ, with both.
        lossy: Names whose saved dtype has values that the model's has not, with both.
        widened: Names whose dtype in the model has all values of the saved one, with both.
    """

    def __init__(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        present = model.state_dict()
        own_ways = _of_their_own_ways(model)
        self._own_ways = tuple(f"{name}." if name else "" for name in own_ways)
        # Only torch's code takes part in loading: then what fits cannot fail.
        self.is_plain = not own_ways
        self._takes_as_it_is = all(
            type(module)._load_from_state_dict in _BY_NAME for module in model.modules()
        )
        self.missing = [name for name in present if name not in state]
        self.unexpected = [name for name in state if name not in present]
        self.shapes: dict[str, str] = {}
        # What torch itself puts right: counters that old batch norms lack, numbers saved as (1,).
        self._mended = {name for name in self.missing if name.endswith(_COUNTER)}
        self.lossy: dict[str, str] = {}
        self.widened: dict[str, str] = {}
        for name in present.keys() & state.keys():
            self._compare(name, present[name], state[name])

    @property
    def misfits(self) -> bool:
        """Whether names or shapes differ."""
        return bool(self.missing or self.unexpected or self.shapes)

    @property
    def is_final(self) -> bool:
        """Whether torch would refuse too: none of its modules puts right what differs."""
        differing = {*self.missing, *self.unexpected, *self.shapes}
        return self.is_plain and self._takes_as_it_is and not differing <= self._mended

    def in_words(self) -> str:
        """Say what differs in names and shapes, the first few of each."""
        parts = []
        if self.missing:
            parts.append(f"Only in the model: {some_names(self.missing)}")
        if self.unexpected:
            parts.append(f"only in the checkpoint: {some_names(self.unexpected)}")
        if self.shapes:
            parts.append(_listed(self.shapes))
        words = "; ".join(parts)
        return words[:1].upper() + words[1:]

    def without(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of the state that fits."""
        return {
            name: value
            for name, value in state.items()
            if name not in self.shapes and name not in self.unexpected
        }

    def report(self, what: str, report: Report) -> None:
        """Say what of the state is not loaded, or not as it is."""
        for name in self.missing:
            report.skip(f"{what}: {name}", "the checkpoint does not have it")
        for name in self.unexpected:
            report.skip(f"{what}: {name}", "the model does not have it")
        for name, words in sorted(self.shapes.items()):
            report.skip(f"{what}: {name}", words)
        if self.lossy or self.widened:
            report.adjust(what, [f"converted: {_listed({**self.lossy, **self.widened})}"])

    def _compare(self, name: str, present: Any, saved: Any) -> None:
        if not isinstance(present, torch.Tensor) or not isinstance(saved, torch.Tensor):
            return
        if present.shape != saved.shape:
            if present.ndim == 0 and saved.shape == (1,):
                self._mended.add(name)
            self.shapes[name] = (
                f"shape {tuple(saved.shape)} in the checkpoint, {tuple(present.shape)} here"
            )
        elif present.dtype != saved.dtype and not name.startswith(self._own_ways):
            words = f"{_dtype(saved)} in the checkpoint, {_dtype(present)} here"
            (self.widened if _holds_all(present.dtype, saved.dtype) else self.lossy)[name] = words


def _of_their_own_ways(model: nn.Module) -> list[str]:
    """Return the names of the modules in whose loading other code than torch's takes part."""
    return [name for name, module in model.named_modules() if not _is_torchs(module)]


def _is_torchs(module: nn.Module) -> bool:
    functions: list[Any] = [getattr(type(module), name, None) for name in _OWN_WAYS]
    for hooks in _HOOKS:
        # torch puts what was registered into a wrapper of its own.
        registered = (getattr(module, hooks, None) or {}).values()
        functions += [getattr(hook, "hook", hook) for hook in registered]
    return all(str(getattr(one, "__module__", "")).startswith("torch.") for one in functions)


def _holds_all(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether one dtype has every value of another."""
    if wide.is_complex != narrow.is_complex or wide.is_floating_point != narrow.is_floating_point:
        return False
    try:
        return torch.promote_types(wide, narrow) == wide
    except RuntimeError:
        # Those of 8 bits and less are not promoted.
        return narrow.is_floating_point and narrow.itemsize < wide.itemsize


def _listed(words: Mapping[str, str]) -> str:
    """Name the first few differences."""
    shown = [f"{name}: {words[name]}" for name in sorted(words)[:_LISTED_MAX]]
    hidden = len(words) - len(shown)
    return "; ".join(shown) + (f"; and {hidden} more" if hidden else "")


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def names_in_another_order(model: Any, state: Any, names: list[str]) -> str | None:
    """Say whether the saved state has these names in another order; None if not, or if it lacks one."""
    if not isinstance(model, nn.Module) or not isinstance(state, Mapping):
        return None
    target = unwrap(model)
    _, state = state_for(target, state)
    saved = [name for name in state if name in set(names)]
    if saved == names or len(saved) != len(names):
        return None
    first = next(place for place, name in enumerate(names) if saved[place] != name)
    return some_names([saved[first], names[first]])
