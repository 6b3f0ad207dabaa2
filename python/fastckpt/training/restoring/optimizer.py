"""Whether an optimizer's state fits it: its kind, its groups, and which state belongs to which parameter.

torch (2.6 to 2.15) compares the number of groups and their sizes, and pairs the rest by position: moments of
another order of the parameters, or of another optimizer, are taken without a word.
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from typing import Any

import torch
from torch.optim import Optimizer

from fastckpt.errors import StateMismatchError
from fastckpt.training.param_names import Names, bare_names, names_in_groups, names_of_optimizer

from . import snapshot
from .choices import Choices
from .model import names_in_another_order
from .optimizer_kinds import is_torchs, kind_of, other_kind
from .param_order import Order, difference, order_by_names, order_of_known
from .report import Report
from .restoration import Restoration

# State that torch's optimizers have beside what is of the shape of the parameter.
_NOT_SHAPED = frozenset({"step", "eta", "mu", "mu_product", "row_var", "col_var", "variance"})
# Keeps the state of all parameters at the first one, in shapes of its own.
_FLAT = "LBFGS"
_LEARNING_RATE = ("lr", "initial_lr")


@dataclass(frozen=True)
class SavedOptimizer:
    """What a checkpoint says of an optimizer.

    Attributes:
        state: Its state dict.
        names: The names of its parameters, as the model had them; None where they were not saved.
        class_name: Its class; None where that was not saved.
    """

    state: Any
    names: Any = None
    class_name: Any = None


@dataclass(frozen=True)
class Surroundings:
    """What an optimizer is restored beside.

    Attributes:
        names: The names of the model's parameters, by parameter.
        model: The model; None where there are several.
        model_state: Its state in the checkpoint.
        path: The checkpoint, for messages.
    """

    names: Mapping[Any, str]
    model: Any
    model_state: Any
    path: str


def plan_optimizer(
    what: str,
    optimizer: Any,
    saved: SavedOptimizer,
    around: Surroundings,
    choices: Choices,
    report: Report,
) -> Restoration | None:
    """Compare the state of an optimizer with the optimizer; return what loads it.

    An optimizer that has a load_state_dict of its own decides by itself, and is put back if it refuses.

    Args:
        what: What it is called in messages.
        optimizer: Has load_state_dict.
        saved: What the checkpoint has of it.
        around: The model beside it.
        choices: `strict`, and `keep`.
        report: Gets what is to be said.

    Returns:
        None where `strict` is False and nothing of it fits: the report says why.

    Raises:
        StateMismatchError: The state does not fit; says in what.
    """
    state = saved.state
    if not isinstance(optimizer, Optimizer) or (
        type(optimizer).load_state_dict is not Optimizer.load_state_dict
    ):
        load = partial(_load_with_kept, optimizer, state, choices)
        return Restoration(what, load, partial(snapshot.of_object, optimizer), may_refuse=True)
    try:
        fitted = _Fit(optimizer, saved, around, choices).fitted()
    except StateMismatchError as error:
        if choices.strict:
            raise StateMismatchError(
                f"{around.path} does not fit {what}, and nothing was changed: {error}"
            ) from None
        report.skip(what, str(error))
        return None
    report.adjust(what, fitted.notes)
    for name, reason in fitted.dropped.items():
        report.skip(f"{what}: {name}", reason)
    load = partial(_load, optimizer, fitted.state)
    may_refuse = bool(
        optimizer._optimizer_load_state_dict_pre_hooks
        or optimizer._optimizer_load_state_dict_post_hooks
    )
    return Restoration(what, load, partial(snapshot.of_optimizer, optimizer), may_refuse=may_refuse)


@dataclass
class _Fitted:
    """A state in the order of the optimizer that gets it.

    Attributes:
        state: For load_state_dict.
        notes: What was done to it.
        dropped: Parameters whose state is not taken, and why.
    """

    state: dict[str, Any]
    notes: list[str]
    dropped: dict[str, str]


class _Fit:
    """One saved state beside the optimizer that is to get it."""

    def __init__(
        self, optimizer: Optimizer, saved: SavedOptimizer, around: Surroundings, choices: Choices
    ) -> None:
        self.optimizer, self.saved, self.around, self.choices = optimizer, saved, around, choices
        self.dropped: dict[str, str] = {}

    def fitted(self) -> _Fitted:
        """Return the state to load.

        Raises:
            StateMismatchError: It does not fit; what and where are added by the caller.
        """
        state = self.saved.state
        if not _is_optimizer_state(state):
            raise StateMismatchError("it is not the state of one optimizer")
        self._check_kept()
        reason = other_kind(self.optimizer, state, self.saved.class_name, self.choices.keep)
        if reason is not None:
            raise StateMismatchError(f"its state is of another kind of optimizer: {reason}")
        order = self._order()
        groups = self._groups(order)
        entries = self._entries(groups, order)
        notes = []
        if order.is_changed:
            notes.append(
                "the states were put into the order of this optimizer by the parameters' names"
            )
        kept = [key for key in self.choices.keep if any(key in one for one in self._present)]
        if kept:
            notes.append(f"kept as the script has it: {', '.join(kept)}")
        return _Fitted({**state, "state": entries, "param_groups": groups}, notes, self.dropped)

    @property
    def _present(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def _check_kept(self) -> None:
        known = {key for group in self._present for key in group if key != "params"}
        for key in self.choices.keep:
            if key not in known and key != "scheduler":
                raise ValueError(
                    f"keep has {key!r}, and the groups of this optimizer have "
                    f"{', '.join(sorted(known))}"
                )

    def _order(self) -> Order:
        """Find out which saved parameter is which; by name where both sides have names, else by place."""
        pairs = self._names()
        for saved, present in pairs:
            order = order_by_names(saved, present)
            if order is not None:
                return order
        if pairs and not self.choices.strict:
            known = order_of_known(*pairs[0])
            if known is not None:
                return known
        sizes = [[len(group["params"]) for group in groups] for groups in self._both]
        if len(sizes[0]) != len(sizes[1]):
            raise StateMismatchError(
                f"the checkpoint has {_groups(len(sizes[0]))} of parameters, and this optimizer has "
                f"{len(sizes[1])}"
            )
        if pairs:
            raise StateMismatchError(f"its parameters have other names; {difference(*pairs[0])}")
        for number, (theirs, ours) in enumerate(zip(*sizes, strict=True)):
            if theirs != ours:
                raise StateMismatchError(
                    f"group {number} has {theirs} parameters in the checkpoint, and {ours} here"
                )
        self._check_order_of_model()
        return Order(
            [*range(len(self._present))],
            [[*range(size)] for size in sizes[1]],
            self._own_names or [[None] * size for size in sizes[1]],
        )

    @property
    def _both(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        return self.saved.state["param_groups"], self._present

    @property
    def _own_names(self) -> Names | None:
        return names_of_optimizer(self.optimizer, self.around.names)

    def _names(self) -> list[tuple[Names, Names]]:
        """Return the names on both sides, in the ways that there are to have them."""
        saved = [names_in_groups(self._both[0]), _as_names(self.saved.names, self._both[0])]
        present = [names_in_groups(self._present), self._own_names]
        ways = [(saved[1], present[1]), (saved[0], present[0])]
        ways += [(saved[0], present[1]), (saved[1], present[0])]
        return [(one, other) for one, other in ways if one is not None and other is not None]

    def _check_order_of_model(self) -> None:
        """Refuse where nothing has names, and the model's own order shows that positions are others."""
        own = self._own_names
        names = [name for group in bare_names(own or []) for name in group]
        if own is None or any(name is None for name in names):
            return
        everything = [
            name for group in bare_names([[*self.around.names.values()]]) for name in group
        ]
        if names != everything:
            return  # It was not made from the model's parameters in their order.
        changed = names_in_another_order(
            self.around.model, self.around.model_state, [name for name in names if name]
        )
        if changed is not None and self.saved.state["state"]:
            raise StateMismatchError(
                "the parameters of the model stand in another order than in the checkpoint "
                f"({changed} change places), and its optimizer's state does not say their names: which "
                "belongs to which cannot be told. Make the modules in the order in which they were saved"
            )

    def _groups(self, order: Order) -> list[dict[str, Any]]:
        """Return the saved groups, in the order of the optimizer that gets them."""
        saved, present = self._both
        used = _numbers(saved)
        free = (number for number in count() if number not in used)
        groups = []
        for number, places, own in zip(order.groups, order.places, present, strict=True):
            group = {key: value for key, value in saved[number].items() if key != "param_names"}
            ids = saved[number]["params"]
            group["params"] = [next(free) if place is None else ids[place] for place in places]
            if "param_names" in own:
                group["param_names"] = own["param_names"]
            for key in kept_keys(self.choices):
                if key in own:
                    group[key] = own[key]
            groups.append(group)
        return groups

    def _entries(self, groups: list[dict[str, Any]], order: Order) -> dict[Any, Any]:
        """Return the states of all parameters; of another shape than the parameter they do not fit."""
        entries = dict(self.saved.state["state"])
        pairs = list(_pairs(groups, self._present))
        names = [name for group in order.names for name in group]
        saved_numbers = _numbers(self._both[0])
        for (number, parameter), name in zip(pairs, names, strict=True):
            reason = self._misfit(entries.get(number), parameter)
            if number not in saved_numbers:
                reason = "the checkpoint does not have it"
            if reason is None:
                continue
            called = f"parameter {number}" if name is None else name
            if self.choices.strict:
                raise StateMismatchError(f"the state of {called} does not fit it: {reason}")
            self.dropped[called] = reason
            entries.pop(number, None)
        if not self._has_shaped_state:
            self._check_places(pairs, entries)
        return entries

    @property
    def _has_shaped_state(self) -> bool:
        """Whether state that is of another shape than its parameter must be wrong."""
        kind = kind_of(self.optimizer)
        return is_torchs(kind) and kind.__name__ != _FLAT

    def _misfit(self, entry: Any, parameter: torch.Tensor) -> str | None:
        present = self.optimizer.state.get(parameter)
        for key, value in entry.items() if isinstance(entry, dict) else ():
            if not isinstance(value, torch.Tensor):
                continue
            own = present.get(key) if isinstance(present, dict) else None
            expected: Any = None
            if self._has_shaped_state:
                expected = None if key in _NOT_SHAPED or value.ndim == 0 else parameter.shape
            elif isinstance(own, torch.Tensor):
                expected = own.shape
            if expected is not None and value.shape != expected:
                return f"{key} has the shape {tuple(value.shape)}, expected {tuple(expected)}"
        return None

    def _check_places(
        self, pairs: list[tuple[Any, torch.Tensor]], entries: Mapping[Any, Any]
    ) -> None:
        """Refuse another order where shapes show it: all are there, at other places."""
        found = [(entries[number], parameter) for number, parameter in pairs if number in entries]
        keys = {key for entry, _ in found if isinstance(entry, dict) for key in entry}
        for key in sorted(keys, key=str):
            shapes = [
                (tuple(entry[key].shape), tuple(parameter.shape))
                for entry, parameter in found
                if isinstance(entry, dict) and isinstance(entry.get(key), torch.Tensor)
            ]
            saved, present = Counter(one for one, _ in shapes), Counter(one for _, one in shapes)
            if saved == present and any(one != other for one, other in shapes):
                raise StateMismatchError(
                    f"the parameters stand in another order than in the checkpoint: {key} is of the "
                    f"shapes {[one for one, _ in shapes][:5]}, the parameters are "
                    f"{[other for _, other in shapes][:5]}"
                )


def kept_keys(choices: Choices) -> tuple[str, ...]:
    """Return the settings that stay the script's; with the learning rate goes the one it began with."""
    if "lr" in choices.keep:
        return (*choices.keep, *(key for key in _LEARNING_RATE if key not in choices.keep))
    return tuple(choices.keep)


def _load(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state, and undo what torch does to dtypes on the way.

    torch (2.6 to 2.15) casts every tensor of the state to the dtype of its parameter: moments in
    float32 of a parameter in bfloat16 would lose bits, and counters become floats.
    """
    optimizer.load_state_dict(state)
    kind = type(optimizer)
    if (
        kind._process_value_according_to_param_policy
        is not Optimizer._process_value_according_to_param_policy
    ):
        return  # It knows better.
    for number, parameter in _pairs(state["param_groups"], optimizer.param_groups):
        saved, present = state["state"].get(number), optimizer.state.get(parameter)
        if not isinstance(saved, dict) or not isinstance(present, dict):
            continue
        for key, value in saved.items():
            # Where "step" lives, and as what, torch decides by fused and capturable.
            if isinstance(value, torch.Tensor) and key != "step":
                present[key] = value.to(device=parameter.device)


def _load_with_kept(optimizer: Any, state: Any, choices: Choices) -> None:
    groups = getattr(optimizer, "param_groups", None)
    own = [dict(group) for group in groups] if isinstance(groups, list) else []
    optimizer.load_state_dict(state)
    for group, former in zip(getattr(optimizer, "param_groups", ()), own, strict=False):
        group.update({key: former[key] for key in kept_keys(choices) if key in former})


def _pairs(
    groups: list[dict[str, Any]], present: list[dict[str, Any]]
) -> list[tuple[Any, torch.Tensor]]:
    numbers = chain.from_iterable(group["params"] for group in groups)
    parameters = chain.from_iterable(group["params"] for group in present)
    return list(zip(numbers, parameters, strict=True))


def _is_optimizer_state(state: Any) -> bool:
    return (
        isinstance(state, Mapping)
        and isinstance(state.get("state"), Mapping)
        and isinstance(state.get("param_groups"), list)
        and all(
            isinstance(group, Mapping) and isinstance(group.get("params"), list)
            for group in state["param_groups"]
        )
    )


def _as_names(names: Any, groups: list[Any]) -> Names | None:
    """Return the names that a checkpoint holds, if they are of its groups."""
    if not isinstance(names, list) or not all(isinstance(group, list) for group in names):
        return None
    sizes = [len(group["params"]) for group in groups]
    return names if [len(group) for group in names] == sizes else None


def _numbers(groups: list[dict[str, Any]]) -> set[Any]:
    """Return the numbers that parameters have in a saved state."""
    return {number for group in groups for number in group["params"]}


def _groups(number: int) -> str:
    return "1 group" if number == 1 else f"{number} groups"
