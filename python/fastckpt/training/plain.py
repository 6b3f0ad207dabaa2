"""What plain ``torch.load(weights_only=True)`` will load, known before it is written."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import Any

import torch
from torch import _weights_only_unpickler

from fastckpt._archive.pickling import pickle_object
from fastckpt._wording import class_name
from fastckpt.errors import UnsafePickleError

# Their exact types: a subclass is pickled by name, and that name is refused.
_PLAIN = frozenset((type(None), bool, float, str))
_TENSORS = (torch.Tensor, torch.nn.Parameter)
# LONG1 holds a number of up to 255 bytes, and torch's unpickler knows no longer ones.
_INT_BITS = 255 * 8 - 1


def refuse_unloadable(obj: object, name: str) -> None:
    """Raise if ``torch.load`` with ``weights_only=True`` would refuse an object.

    What the process has added by ``torch.serialization.add_safe_globals`` does not count: another
    process would not have it.

    Args:
        obj: What is to be saved.
        name: What it is called in the message; the keys that lead to the culprit are added.

    Raises:
        TypeError: It would be refused; names where, and the type that stands there.
    """
    seen: set[int] = set()
    stack: list[tuple[str, Any]] = [(name, obj)]
    while stack:
        path, value = stack.pop()
        kind = type(value)
        if kind in _PLAIN or (kind is int and value.bit_length() <= _INT_BITS):
            continue
        if kind in _TENSORS and not value.__dict__ and value.layout is torch.strided:
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        parts = _parts(path, value)
        if parts is None:
            _refuse_leaf(path, value)
        else:
            stack.extend(reversed(parts))


def _parts(path: str, value: Any) -> list[tuple[str, Any]] | None:
    """Return what a container consists of, with the paths to it; None for any other object."""
    kind = type(value)
    if kind in (list, tuple):
        return [(f"{path}[{position}]", part) for position, part in enumerate(value)]
    if kind not in (dict, OrderedDict):
        return None
    keys = [(f"{path}: key {key!r}", key) for key in value if type(key) not in (str, int)]
    items = [(f"{path}[{key!r}]", part) for key, part in value.items()]
    # A module's state dict carries its versions as an attribute, which is saved too.
    state = getattr(value, "__dict__", {})
    return keys + items + [(f"{path}.{name}", part) for name, part in state.items()]


def _refuse_leaf(path: str, value: Any) -> None:
    try:
        refused = _refusal(value)
    except Exception as error:
        raise TypeError(f"{_describe(path, value)} cannot be pickled: {error}") from error
    if refused is not None:
        raise TypeError(
            f"{_describe(path, value)} would be refused by torch.load with weights_only=True "
            f"({refused}). Save what it is made of: numbers, strings, lists, dicts, tensors"
        )


def _describe(path: str, value: Any) -> str:
    return f"{path}: {class_name(type(value))}"


def _refusal(value: Any) -> str | None:
    """Say why torch's restricted unpickler refuses an object; None if it takes it."""
    pickled = pickle_object(value)
    allowed = _weights_only_unpickler._get_allowed_globals()
    try:
        names = _weights_only_unpickler.get_globals_in_pkl(io.BytesIO(pickled.data))
        unknown = sorted(name for name in names if name not in allowed)
        if unknown:
            return f"it is made by {', '.join(unknown)}"
        unpickler: Any = _weights_only_unpickler.Unpickler(io.BytesIO(pickled.data))
        unpickler.encoding = "utf-8"
        unpickler.persistent_load = _Storages(pickled.storages).load
        unpickler.load()
    except (pickle.UnpicklingError, UnsafePickleError, RuntimeError) as error:
        return str(error).splitlines()[0]
    return None


class _Storages:
    """Answers persistent ids with the storages that were pickled: nothing is copied."""

    def __init__(self, storages: list[torch.UntypedStorage]) -> None:
        self._storages = storages

    def load(self, pid: tuple[str, Any, str, str, int]) -> torch.storage.TypedStorage:
        _, storage_type, key, _, _ = pid
        dtype = torch.uint8 if storage_type is torch.UntypedStorage else storage_type.dtype
        return torch.storage.TypedStorage(
            wrap_storage=self._storages[int(key)], dtype=dtype, _internal=True
        )
