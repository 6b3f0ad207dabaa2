"""Move averages towards values, in fused calls for one device and dtype each."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

# Weights whose averages have another dtype or device are converted in pieces of this size. A piece is still in
# the processor's cache when it is averaged, and an update does not make a float32 copy of a bfloat16 model.
_CONVERTED_NBYTES = 1 << 20

# What `torch.optim.swa_utils.get_ema_multi_avg_fn` returns: averages, values, and a count that it ignores.
Move = Callable[[list[Tensor], list[Tensor], None], object]


def mover(decay: float) -> Move:
    """Return what moves averages: torch's own function, except at decay 0 and 1.

    At these torch multiplies a difference by 0, and an infinite difference would become NaN.
    """
    if decay == 0.0:
        return lambda averages, values, _count: torch._foreach_copy_(averages, values)
    if decay == 1.0:
        return lambda _averages, _values, _count: None
    move: Move = get_ema_multi_avg_fn(decay)
    return move


def first_average(value: Tensor, device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
    """Return the first average of a weight: a copy of its value.

    Args:
        value: The weight, or a buffer.
        device: Where the average lives; None: where the weight is.
        dtype: Floating dtype; None: the weight's own, or float32 where that is narrower. Integer and complex
            values keep their own.
    """
    return value.detach().to(
        value.device if device is None else device, _dtype_for(value, dtype), copy=True
    )


def _dtype_for(value: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    if not value.dtype.is_floating_point:
        return value.dtype
    if dtype is not None:
        return dtype
    return value.dtype if value.dtype.itemsize >= torch.float32.itemsize else torch.float32


def move_averages(averages: Mapping[str, Tensor], values: Mapping[str, Tensor], move: Move) -> None:
    """Move each average, in place, towards the value with the same name."""
    for old, new in _groups(averages, values):
        if (old[0].device, old[0].dtype) == (new[0].device, new[0].dtype):
            move(old, new, None)
            continue
        for first, last in _pieces(old):
            # lerp takes one dtype and one device only.
            converted = [value.to(old[0].device, old[0].dtype) for value in new[first:last]]
            move(old[first:last], converted, None)


def move_buffers(averages: Mapping[str, Tensor], values: Mapping[str, Tensor], move: Move) -> None:
    """Move the averages of floating buffers as `move_averages` does, and copy the values of all others."""
    floating = {name: value for name, value in values.items() if _is_averaged(value)}
    moved = {name: averages[name] for name in floating}
    before = {name: average.clone() for name, average in moved.items()}
    move_averages(moved, floating, move)
    # Infinities, as in an attention mask, would become NaN: inf - inf. A value that has not changed is its
    # own average.
    for name, average in moved.items():
        same = before[name] == floating[name].to(average.device, average.dtype)
        average.copy_(torch.where(same, before[name], average))
    rest = {name: value for name, value in values.items() if name not in floating}
    copy_values({name: averages[name] for name in rest}, rest)


def _is_averaged(buffer: Tensor) -> bool:
    return buffer.dtype.is_floating_point or buffer.dtype.is_complex


def copy_values(to: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy the values with the same names."""
    for old, new in _groups(to, values):
        torch._foreach_copy_(old, new)


def _groups(
    averages: Mapping[str, Tensor], values: Mapping[str, Tensor]
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Yield lists of tensors of one device and dtype each, as a fused operation takes them."""
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    for name, average in averages.items():
        value = values[name]
        old, new = groups[average.device, average.dtype, value.device, value.dtype]
        old.append(average)
        new.append(value)
    yield from groups.values()


def _pieces(tensors: list[Tensor]) -> Iterator[tuple[int, int]]:
    """Yield the bounds of runs of at most `_CONVERTED_NBYTES`, or of one larger tensor."""
    first, nbytes = 0, 0
    for i, tensor in enumerate(tensors):
        if i > first and nbytes + tensor.nbytes > _CONVERTED_NBYTES:
            yield first, i
            first, nbytes = i, 0
        nbytes += tensor.nbytes
    yield first, len(tensors)
