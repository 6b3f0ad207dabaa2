"""Views of a storage: which of its elements a tensor has, and which of these more than once. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence


def distinct_elements(
    shape: Sequence[int], stride: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape and strides of a view with the same elements of the storage, each once.

    That is the view itself where it has none twice. Expanded dimensions (stride 0) become one element
    long; dimensions that overlap, such as those of sliding windows, become one. Where strides are no
    multiples of each other, elements may be left in it twice.

    Example:
        >>> distinct_elements((3, 1000), (1, 0))
        ((3, 1), (1, 0))
        >>> distinct_elements((4, 3), (1, 1))  # windows of 3 elements, of which there are 6 in all
        ((6,), (1,))
    """
    once = tuple(
        length if step else min(length, 1) for length, step in zip(shape, stride, strict=True)
    )
    if 0 in once:
        return once, tuple(stride)
    steps: list[int] = []
    lengths: list[int] = []
    for step, length in sorted(zip(stride, once, strict=True)):
        if length == 1:
            continue
        if steps and step % steps[-1] == 0 and step <= steps[-1] * lengths[-1]:
            # It begins within what the one before it covers, or right behind it.
            lengths[-1] += step // steps[-1] * (length - 1)
        else:
            steps.append(step)
            lengths.append(length)
    if math.prod(lengths) == math.prod(once):
        return once, tuple(stride)
    return tuple(reversed(lengths)), tuple(reversed(steps))
