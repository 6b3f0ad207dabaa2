"""What `fastckpt.diff` found: how two checkpoints differ. Imports nothing of the core."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from fastckpt._verdict import Judged


@dataclass(frozen=True)
class TensorLayout:
    """What is known of a tensor without its elements."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class TensorDiff:
    """How far a tensor of one name and shape is from the other.

    Its bytes differ, or its dtype does. Of two dtypes the numbers are compared: a real one has an imaginary
    part of 0, True is 1, and a NaN is a NaN whatever its bits.

    The figures are in float64 and of the elements that are finite on both sides (of complex ones the
    modulus). An element that differs and is NaN or infinite on one side at least is counted in
    `non_finite`; a NaN with the same bits on both sides does not differ.

    Attributes:
        name: The keys that lead to it, with dots between.
        layout: Its dtype and shape in A.
        numel: Number of elements; those of a dimension that is expanded on both sides count once.
        differing: Elements whose bytes differ; of two dtypes, whose numbers do.
        non_finite: Those of them that the figures leave out.
        finite: Elements that the figures are of.
        max_abs: The largest absolute change.
        sum_abs: The sum of the absolute changes.
        sum_squares: The sum of their squares.
        reference_squares: The sum of the squares of the elements in A.
        dtype_b: Its dtype in B, where that is another one.
    """

    name: str
    layout: TensorLayout
    numel: int
    differing: int
    non_finite: int
    finite: int
    max_abs: float
    sum_abs: float
    sum_squares: float
    reference_squares: float
    dtype_b: str | None = None

    @property
    def mean_abs(self) -> float:
        """The mean absolute change; NaN where no element is finite on both sides."""
        return self.sum_abs / self.finite if self.finite else math.nan

    @property
    def relative_norm(self) -> float:
        """``||b - a|| / ||a||``; infinite where `a` is zero, NaN where no element is finite."""
        return relative_norm([self])


@dataclass(frozen=True)
class LayerDiff:
    """The tensors of one layer that differ.

    Attributes:
        name: What the names of its tensors have in common: up to the first number ("transformer.h.3"),
            else up to the last dot.
        tensors: How many tensors both sides have of it.
        differing: Those that differ; the figures are theirs.
    """

    name: str
    tensors: int
    differing: tuple[TensorDiff, ...]

    @property
    def max_abs(self) -> float:
        """The largest absolute change."""
        return max(tensor.max_abs for tensor in self.differing)

    @property
    def mean_abs(self) -> float:
        """The mean absolute change."""
        finite = sum(tensor.finite for tensor in self.differing)
        if not finite:
            return math.nan
        try:
            return math.fsum(tensor.sum_abs for tensor in self.differing) / finite
        except OverflowError:
            # Elements of float64 near the end of its range: their mean may lie in it.
            return math.fsum(tensor.sum_abs / finite for tensor in self.differing)

    @property
    def relative_norm(self) -> float:
        """``||b - a|| / ||a||`` over all their elements."""
        return relative_norm(self.differing)


@dataclass(frozen=True)
class ValueDiff:
    """A value other than a tensor that differs; None for what one side does not have."""

    name: str
    a: str | None
    b: str | None


@dataclass(frozen=True)
class FileDiff:
    """Two files that were compared.

    Attributes:
        a: The one that changes are counted from.
        b: The other.
        added: Tensors that only B has.
        removed: Tensors that only A has.
        reshaped: Tensors with another dtype or shape, as (name, in A, in B).
        converted: Those of them of which the dtype alone changed, from numbers to numbers: how far their
            numbers are apart, which may be not at all. The elements of the others were not compared.
        tensors: Names that both have, with the same dtype and shape.
        differing: Those of them that differ, in the order of A.
        unread: Those of them that are the same by size and CRC-32, and were not read.
        unchecked: Names whose bytes could not be compared with a CRC-32 on both sides.
        values: Values other than tensors that differ.
        notes: What else there is to know, in sentences.
    """

    a: str
    b: str
    added: tuple[tuple[str, TensorLayout], ...] = ()
    removed: tuple[tuple[str, TensorLayout], ...] = ()
    reshaped: tuple[tuple[str, TensorLayout, TensorLayout], ...] = ()
    tensors: tuple[str, ...] = ()
    differing: tuple[TensorDiff, ...] = ()
    converted: tuple[TensorDiff, ...] = ()
    unread: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    values: tuple[ValueDiff, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_same(self) -> bool:
        """Whether nothing differs."""
        return not (self.added or self.removed or self.reshaped or self.differing or self.values)

    @property
    def layers(self) -> tuple[LayerDiff, ...]:
        """The layers in which something differs, in the order of A."""
        counts: dict[str, int] = {}
        for name in self.tensors:
            counts[layer_of(name)] = counts.get(layer_of(name), 0) + 1
        differing: dict[str, list[TensorDiff]] = {}
        for tensor in self.differing:
            differing.setdefault(layer_of(tensor.name), []).append(tensor)
        return tuple(
            LayerDiff(name, counts[name], tuple(tensors)) for name, tensors in differing.items()
        )


@dataclass(frozen=True)
class DiffReport(Judged):
    """How two checkpoints differ.

    Attributes:
        a: What changes are counted from.
        b: The other.
        files: What was compared, pair by pair.
        only_a: Files that B has no counterpart of.
        only_b: Files that A has no counterpart of.
    """

    a: str
    b: str
    files: tuple[FileDiff, ...]
    only_a: tuple[str, ...] = field(default=())
    only_b: tuple[str, ...] = field(default=())

    @property
    def is_same(self) -> bool:
        """Whether nothing differs."""
        return not (self.only_a or self.only_b) and all(file.is_same for file in self.files)

    @property
    def status(self) -> str:
        """The verdict: "same" or "different"."""
        return "same" if self.is_same else "different"


def layer_of(name: str) -> str:
    """Return the layer that a tensor belongs to, by its name.

    Example:
        >>> layer_of("transformer.h.3.mlp.c_fc.weight"), layer_of("lm_head.weight"), layer_of("w")
        ('transformer.h.3', 'lm_head', 'w')
    """
    parts = name.split(".")
    for position, part in enumerate(parts[:-1]):
        if part.isdigit():
            return ".".join(parts[: position + 1])
    return ".".join(parts[:-1]) or name


def relative_norm(tensors: Iterable[TensorDiff]) -> float:
    """Return ``||b - a|| / ||a||`` over all elements of these tensors."""
    tensors = list(tensors)
    change = math.sqrt(_sum(tensor.sum_squares for tensor in tensors))
    reference = math.sqrt(_sum(tensor.reference_squares for tensor in tensors))
    if not any(tensor.finite for tensor in tensors):
        return math.nan
    if reference == 0.0:
        return 0.0 if change == 0.0 else math.inf
    return change / reference


def _sum(numbers: Iterable[float]) -> float:
    # fsum raises where float64 elements are so large that their squares are infinite.
    return sum(numbers, 0.0)
