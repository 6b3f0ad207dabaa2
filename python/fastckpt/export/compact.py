"""Copy tensors out of large storages, and keep the memory that they share.

torch.save writes a slice of a large storage with the entire storage. Here slices that do not overlap get
storages of their own. Slices that overlap stay views of one storage, which is cut to what they cover.
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastckpt._contents.views import distinct_elements

#: The most bytes by which a dense copy may be larger than the storage it comes from.
INFLATION_NBYTES_MAX = 64 << 20
# The average number of looks at each element of a storage, to find tensors that do not overlap.
_LOOKS_MAX = 16


def compact(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same names, with tensors that are copied out of their storages where necessary.

    Values, shapes and dtypes stay. Strides stay too, except for a tensor that shares its memory with no other
    one and has gaps in it. Anything but an ordinary tensor is passed through.
    """
    by_storage: dict[int, list[str]] = defaultdict(list)
    result = dict(tensors)
    for name, value in tensors.items():
        if is_ordinary(value):
            if value.is_conj() or value.is_neg():
                result[name] = changed(value, lambda one: one.resolve_conj().resolve_neg(), name)
            by_storage[result[name].untyped_storage()._cdata].append(name)
    for names in by_storage.values():
        storage_nbytes = result[names[0]].untyped_storage().nbytes()
        groups = _overlapping({name: result[name] for name in names}, storage_nbytes)
        if len(groups) == 1 and _range(list(groups[0].values())) == (0, storage_nbytes):
            continue
        # Parts that lie between each other may be larger, all together, than what they are cut from.
        if sum(map(_cut_nbytes, groups)) <= storage_nbytes:
            for group in groups:
                result.update(_cut(group))
    return result


def is_ordinary(value: Any) -> bool:
    """Whether this is a dense tensor with data: not sparse, quantized, nested or on the meta device."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
        and not value.is_nested
        and value.device.type != "meta"
    )


def same_view(tensor: Tensor) -> str:
    """Return a text that two tensors have in common if they are the same view of the same memory.

    It is a text because a hostile file could choose numbers whose hashes collide.
    """
    if not is_ordinary(tensor) or tensor.numel() == 0:
        return f"object {id(tensor)}"
    storage, offset = tensor.untyped_storage()._cdata, int(tensor.storage_offset())
    return repr((storage, offset, tuple(tensor.shape), tensor.stride(), tensor.dtype))


def changed(tensor: Tensor, change: Callable[[Tensor], Tensor], name: str) -> Tensor:
    """Change each element of a tensor once: expanded dimensions stay expanded.

    Raises:
        ValueError: The tensor overlaps itself in another way, and a copy would be far larger.
    """
    once = tensor[tuple(slice(None) if step else slice(1) for step in tensor.stride())]
    if is_inflated(once):
        raise ValueError(
            f"{name!r} overlaps itself in memory: {tensor.untyped_storage().nbytes()} bytes would become "
            f"{once.nbytes} in a dense copy; save a clone() of it instead"
        )
    result = change(once)
    return result if once.shape == tensor.shape else result.expand(tensor.shape)


def is_inflated(tensor: Tensor) -> bool:
    """Whether a dense copy takes far more than the storage has: a small file could ask for any amount."""
    return tensor.nbytes > tensor.untyped_storage().nbytes() + INFLATION_NBYTES_MAX


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Return the first and the last byte offset of a tensor in its storage."""
    first = int(tensor.storage_offset()) * tensor.itemsize
    if tensor.numel() == 0:
        return first, first
    steps = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (steps + 1) * tensor.itemsize


def _range(tensors: list[Tensor]) -> tuple[int, int]:
    extents = [_extent(tensor) for tensor in tensors]
    return min(first for first, _ in extents), max(last for _, last in extents)


def _overlapping(tensors: dict[str, Tensor], storage_nbytes: int) -> list[dict[str, Tensor]]:
    """Divide tensors of one storage into groups that share no element."""
    groups: list[dict[str, Tensor]] = []
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: _extent(item[1])):
        first, last = _extent(tensor)
        if not groups or first >= end:
            groups.append({})
        groups[-1][name] = tensor
        end = max(end, last)
    looks = [sum(math.prod(_once(tensor)[0]) for tensor in group.values()) for group in groups]
    if sum(looks) > _LOOKS_MAX * storage_nbytes:
        # Too many views of the same memory to look at each element.
        return groups
    return [part for group in groups for part in _interleaved(group)]


def _once(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return distinct_elements(tuple(tensor.shape), tensor.stride())


def _interleaved(group: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Divide tensors whose extents overlap: two columns of a matrix share no element."""
    if len({same_view(tensor) for tensor in group.values()}) == 1:
        return [group]
    first, last = _range(list(group.values()))
    itemsize = next(iter(group.values())).itemsize
    # The last tensor in which each element was seen.
    seen_in = torch.full(((last - first) // itemsize,), -1, dtype=torch.int32)
    # For each tensor an earlier one that it has to stay with, or itself.
    leads: list[int] = []
    for i, tensor in enumerate(group.values()):
        shape, stride = _once(tensor)
        offset = tensor.storage_offset() - first // itemsize
        elements = seen_in.as_strided(shape, stride, offset if tensor.numel() else 0)
        leads.append(i)
        for j in elements.unique().tolist():
            if j >= 0:
                # The smaller leads, so that the order of the group stays.
                one, other = sorted((_lead_of(leads, i), _lead_of(leads, j)))
                leads[other] = one
        elements.fill_(i)
    parts: dict[int, dict[str, Tensor]] = {}
    for i, (name, tensor) in enumerate(group.items()):
        parts.setdefault(_lead_of(leads, i), {})[name] = tensor
    return list(parts.values())


def _lead_of(leads: list[int], i: int) -> int:
    """Find the first tensor of a group by following its members, and shorten the way for the next time."""
    while leads[i] != i:
        leads[i] = leads[leads[i]]
        i = leads[i]
    return i


def _cut_nbytes(group: dict[str, Tensor]) -> int:
    """Return how many bytes `_cut` copies."""
    first, last = _range(list(group.values()))
    if len(group) == 1:
        return min(last - first, next(iter(group.values())).nbytes)
    return last - first


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
