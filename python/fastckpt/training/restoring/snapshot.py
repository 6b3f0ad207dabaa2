"""What an object was before its state was loaded, so that it can be put back, bit for bit."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from typing import Any

import torch
from torch import nn

Undo = Callable[[], None]


def nothing_to_undo() -> Undo:
    """Return what puts back an object whose loading cannot fail half-way: nothing."""
    return lambda: None


def of_optimizer(optimizer: torch.optim.Optimizer) -> Undo:
    """Remember an optimizer of torch's; its load_state_dict makes new dicts, so no tensor is copied."""
    state, groups = optimizer.state, optimizer.param_groups
    contents = [dict(group) for group in groups]
    attributes = dict(vars(optimizer))

    def undo() -> None:
        vars(optimizer).clear()
        vars(optimizer).update(attributes)
        optimizer.state, optimizer.param_groups = state, groups
        for group, content in zip(groups, contents, strict=True):
            group.clear()
            group.update(content)

    return undo


def of_module(module: nn.Module) -> Undo:
    """Remember a module: its attributes, and a copy of every tensor in host memory."""
    parts = [
        (part, dict(vars(part)), dict(part._parameters), dict(part._buffers))
        for part in module.modules()
    ]
    values = [
        (tensor, tensor.detach().to("cpu", copy=True))
        for tensor in chain(module.parameters(), module.buffers())
        if tensor.device.type != "meta"
    ]

    def undo() -> None:
        for part, attributes, parameters, buffers in parts:
            vars(part).clear()
            vars(part).update(attributes)
            _put_back(part._parameters, parameters)
            _put_back(part._buffers, buffers)
        with torch.no_grad():
            for tensor, value in values:
                tensor.detach().copy_(value)

    return undo


def of_object(target: Any) -> Undo:
    """Remember any object with a state dict: its attributes, and a copy of its state in host memory."""
    if isinstance(target, nn.Module):
        return of_module(target)
    attributes = dict(vars(target)) if hasattr(target, "__dict__") else None
    state = host_copy(target.state_dict()) if hasattr(target, "state_dict") else None

    def put_attributes_back() -> None:
        if attributes is not None:
            vars(target).clear()
            vars(target).update(attributes)

    def undo() -> None:
        put_attributes_back()
        if state is None:
            return
        # What was changed in place comes back by the object's own way; where that is what has failed,
        # its attributes are all that can be put back.
        with suppress(Exception):
            target.load_state_dict(state)
            return
        put_attributes_back()

    return undo


def _put_back(present: dict[str, Any], former: dict[str, Any]) -> None:
    present.clear()
    present.update(former)


def host_copy(value: Any) -> Any:
    """Copy a state; its tensors into host memory, whatever device they are on."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        copied = copy.copy(value)
        copied.update({key: host_copy(part) for key, part in value.items()})
        return copied
    if type(value) in (list, tuple):
        return type(value)(host_copy(part) for part in value)
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - an object may refuse in any way
        # What cannot be copied is not what a state dict should hold; it is put back as it then is.
        return value
