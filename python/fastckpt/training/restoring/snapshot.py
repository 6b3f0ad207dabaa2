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
    """Remember any object with a state dict: what its attributes hold, and a copy of its state in host memory.

    It is put back by its own load_state_dict, and then, since that may be what has failed, directly: its
    attributes, the dicts and lists that they hold, and the tensors in these and in its state dict.
    """
    if isinstance(target, nn.Module):
        return of_module(target)
    live = target.state_dict() if hasattr(target, "state_dict") else None
    state = host_copy(live)
    attributes = vars(target) if hasattr(target, "__dict__") else {}
    containers, tensors = _reachable([attributes, live])

    def undo() -> None:
        if live is not None:
            with suppress(Exception):
                target.load_state_dict(state)
        for container, content in containers:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)
        with torch.no_grad():
            for tensor, value in tensors:
                tensor.detach().copy_(value)

    return undo


def _reachable(
    roots: list[Any],
) -> tuple[list[tuple[Any, Any]], list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return the dicts and lists below some objects with what they hold, and the tensors with copies."""
    containers, tensors, seen = [], [], set()
    stack = list(roots)
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        if isinstance(value, torch.Tensor):
            seen.add(id(value))
            if value.device.type != "meta":
                tensors.append((value, value.detach().to("cpu", copy=True)))
        elif isinstance(value, (dict, list)):
            seen.add(id(value))
            content = dict(value) if isinstance(value, dict) else list(value)
            containers.append((value, content))
            stack += content.values() if isinstance(content, dict) else content
    return containers, tensors


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
