"""What the tests of averages share: what is right, files, and both ways to their mean."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.elements import COMPONENTS, INTEGER, Numbers, bytes_of, numbers

import fastckpt
from fastckpt._average.average import average_checkpoints, average_files


def rounded_once(values: Numbers, dtype: torch.dtype) -> bytes:
    """Round to a dtype by torch, which rounds twice on the way from float64 to fewer than 32 bits.

    The first rounding is made harmless: it leaves a mark in the last bit of float32 (round to odd).
    """
    if dtype in (torch.float64, torch.float32):
        return bytes_of(torch.from_numpy(values).to(dtype))
    with np.errstate(over="ignore", invalid="ignore"):
        nearest = values.astype(np.float32)
    back = nearest.astype(np.float64)
    bits = nearest.view(np.uint32)
    odd = (bits - (np.abs(back) > np.abs(values)).astype(np.uint32)) | (back != values).astype(
        np.uint32
    )
    odd = np.where(np.isnan(values), bits, odd)
    return bytes_of(torch.from_numpy(odd.view(np.float32)).to(dtype))


def mean(parts: Sequence[bytes], dtype: torch.dtype, weights: Sequence[float]) -> bytes:
    """Average by numpy in float64; where its range ends, from numbers that are 2^600 smaller."""
    if dtype in INTEGER:
        return parts[-1]
    component = COMPONENTS.get(dtype, dtype)
    used = [
        (numbers(part, component), weight)
        for part, weight in zip(parts, weights, strict=True)
        if weight != 0
    ]
    scale = 2.0**-600
    with np.errstate(all="ignore"):
        plain, smaller = _weighted_sum(used), _weighted_sum([(n * scale, w) for n, w in used])
        is_finite = np.all([np.isfinite(values) for values, _ in used], axis=0)
        overflows = is_finite & ~np.isfinite(plain)
        sum_of_weights = 0.0
        for weight in weights:
            sum_of_weights += weight
        means = plain / sum_of_weights
        means[overflows] = (smaller / sum_of_weights / scale)[overflows]
        return rounded_once(means, component)


def _weighted_sum(used: Sequence[tuple[Numbers, float]]) -> Numbers:
    (first, weight), *others = used
    total = first * weight
    for values, weight in others:
        total = total + values * weight
    return total


def assert_same_numbers(found: bytes, expected: bytes, dtype: torch.dtype) -> None:
    """Compare bit for bit; of a NaN, that it is one."""
    if found == expected:
        return
    assert dtype not in INTEGER
    component = COMPONENTS.get(dtype, dtype)
    one, other = numbers(found, component), numbers(expected, component)
    assert np.array_equal(np.isnan(one), np.isnan(other))
    numeric = ~np.isnan(one)
    assert one[numeric].tobytes() == other[numeric].tobytes()


def write(directory: Path, states: Sequence[Any]) -> list[str]:
    directory.mkdir(exist_ok=True)
    paths = [str(directory / f"{number}.pt") for number in range(len(states))]
    for path, state in zip(paths, states, strict=True):
        torch.save(state, path)
    return paths


def both_ways(
    paths: Sequence[str], to: Path, **options: Any
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Average in memory and into a file; return both."""
    to.unlink(missing_ok=True)
    in_memory = average_checkpoints(paths, **options)
    average_files(paths, to, **options)
    assert fastckpt.verify(to).ok
    return in_memory, torch.load(to, weights_only=True)
