"""Give tensors storages that hold nothing else, and keep what they share.

A tensor that is a slice of a large storage is saved with all of it. Tensors whose bytes overlap stay
views of one storage, cut to what they cover; slices of one storage that do not overlap part.
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# What tells one view of memory from another: storage, offset, shape, strides, dtype.
View = tuple[int, int, tuple[int, ...], tuple[int, ...], torch.dtype]


def compact(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same names, where necessary with tensors that are copied out of their storages.

    Values, shapes and dtypes stay; so do the strides, but for a tensor that leaves holes in what it
    covers and shares it with nobody. What is no ordinary tensor is passed through.
    """
    by_storage: dict[int, list[str]] = defaultdict(list)
    result = dict(tensors)
    for name, value in tensors.items():
        if is_ordinary(value):
            result[name] = value.resolve_conj().resolve_neg()
            by_storage[result[name].untyped_storage()._cdata].append(name)
    for names in by_storage.values():
        groups = _overlapping({name: result[name] for name in names})
        for group in groups:
            storage_nbytes = result[names[0]].untyped_storage().nbytes()
            if len(groups) == 1 and _range(list(group.values())) == (0, storage_nbytes):
                continue
            result.update(_cut(group))
    return result


def is_ordinary(value: Any) -> bool:
    """Whether this is a tensor with elements in a storage: not sparse, quantized or without data."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
        and not value.is_nested
        and value.device.type != "meta"
    )


def same_view(tensor: Tensor) -> View | int:
    """Return what two tensors have in common if they are the same view of the same memory."""
    if not is_ordinary(tensor) or tensor.numel() == 0:
        return id(tensor)
    storage = tensor.untyped_storage()._cdata
    return storage, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Return the bytes of its storage between which a tensor lies."""
    first = int(tensor.storage_offset()) * tensor.itemsize
    if tensor.numel() == 0:
        return first, first
    steps = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (steps + 1) * tensor.itemsize


def _range(tensors: list[Tensor]) -> tuple[int, int]:
    extents = [_extent(tensor) for tensor in tensors]
    return min(first for first, _ in extents), max(last for _, last in extents)


def _overlapping(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Divide tensors of one storage into groups that have no element in common."""
    groups: list[dict[str, Tensor]] = []
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: _extent(item[1])):
        first, last = _extent(tensor)
        if not groups or first >= end:
            groups.append({})
        groups[-1][name] = tensor
        end = max(end, last)
    return [part for group in groups for part in _interleaved(group)]


def _interleaved(group: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Divide tensors whose extents overlap: two columns of a matrix have no element in common."""
    if len({same_view(tensor) for tensor in group.values()}) == 1:
        return [group]
    tensors = list(group.values())
    first, last = _range(tensors)
    itemsize = tensors[0].itemsize
    # Which tensor an element was seen in last.
    seen_in = torch.full(((last - first) // itemsize,), -1, dtype=torch.int32)
    names = list(group)
    parts: list[dict[str, Tensor]] = []
    for i, (name, tensor) in enumerate(group.items()):
        # A dimension of stride 0 is the same elements over and over.
        shape = [
            1 if not step else n for n, step in zip(tensor.shape, tensor.stride(), strict=True)
        ]
        offset = tensor.storage_offset() - first // itemsize
        elements = seen_in.as_strided(shape, tensor.stride(), offset if tensor.numel() else 0)
        others = {names[j] for j in elements.unique().tolist() if j >= 0}
        elements.fill_(i)
        joined = {name: tensor}
        apart = []
        for part in parts:
            if others & part.keys():
                joined = {**part, **joined}
            else:
                apart.append(part)
        parts = [*apart, joined]
    return parts


def _cut(group: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy the bytes that a group covers to a storage of their own."""
    first, last = _range(list(group.values()))
    if len(group) == 1:
        ((name, tensor),) = group.items()
        if last - first > tensor.nbytes:
            return {name: tensor.clone(memory_format=torch.contiguous_format)}
    whole = torch.empty(0, dtype=torch.uint8).set_(next(iter(group.values())).untyped_storage())
    storage = whole[first:last].clone().untyped_storage()
    return {
        name: torch.empty(0, dtype=tensor.dtype).set_(
            storage,
            tensor.storage_offset() - first // tensor.itemsize,
            tensor.shape,
            tensor.stride(),
        )
        for name, tensor in group.items()
    }
