"""Means where float64 ends: sums that overflow, products that underflow, weights of any size."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.average_runs import both_ways, write

import fastckpt

HUGE = 1.7e308
TINY = 5e-324


def means(
    directory: Path,
    columns: Sequence[Sequence[float]],
    weights: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float64,
) -> list[float]:
    """Average files that hold one element of each column; return the means of the columns."""
    rows = zip(*columns, strict=True)
    paths = write(directory / "in", [{"w": torch.tensor(row, dtype=dtype)} for row in rows])
    in_memory, in_file = both_ways(paths, directory / "out.pt", weights=weights)
    assert torch.equal(in_memory["w"].view(torch.uint8), in_file["w"].view(torch.uint8))
    found: list[float] = in_memory["w"].tolist()
    return found


@pytest.mark.parametrize(
    "weights", [None, [1.0, 1.0, 1.0], [0.3, 0.3, 0.3], [1e300] * 3, [1e-300] * 3]
)
def test_sums_may_overflow_where_means_do_not(tmp_path: Path, weights: list[float] | None) -> None:
    columns = [[HUGE, HUGE, HUGE], [-HUGE, -HUGE, -HUGE], [HUGE, HUGE, -HUGE], [0.0, 3.0, -0.0]]
    found = means(tmp_path, columns, weights)
    assert found == pytest.approx([HUGE, -HUGE, HUGE / 3, 1.0], rel=1e-15)
    # As far from it as the same mean of numbers that are 2^600 smaller.
    scale = 2.0**-600
    smaller = means(tmp_path, [[x * scale for x in column] for column in columns], weights)
    assert found == [x / scale for x in smaller]


def test_the_mean_of_the_largest_number_is_finite(tmp_path: Path) -> None:
    largest = torch.finfo(torch.float64).max
    assert means(tmp_path, [[largest] * 4, [-largest] * 4]) == [largest, -largest]
    for weight in (0.1, 0.3, 0.7, 1.1, 1e-300):
        found = means(tmp_path, [[largest] * 7, [-largest] * 7], [weight] * 7)
        assert found == pytest.approx([largest, -largest], rel=1e-15)


def test_components_of_complex_numbers(tmp_path: Path) -> None:
    number = torch.tensor([complex(HUGE, -1.0), complex(2.0, -HUGE)], dtype=torch.complex128)
    paths = write(tmp_path / "in", [{"w": number}] * 4)
    for found in both_ways(paths, tmp_path / "out.pt"):
        assert torch.equal(found["w"], number)


def test_a_mean_that_is_too_large_is_infinite(tmp_path: Path) -> None:
    assert means(tmp_path, [[HUGE, -HUGE], [-HUGE, HUGE]], [3.0, -2.0]) == [math.inf, -math.inf]


@pytest.mark.parametrize("extreme", [[], [HUGE, HUGE], [-HUGE, -HUGE], [HUGE, -HUGE]])
def test_an_infinity_that_comes_in_decides(tmp_path: Path, extreme: list[float]) -> None:
    columns = [
        [*extreme, math.inf, 1.0],
        [*extreme, -math.inf, 1.0],
        [*extreme, 1.0, math.inf],
        [*extreme, -math.inf, math.inf],
        [*extreme, math.nan, math.inf],
        [*extreme, 1.0, math.nan],
    ]
    found = means(tmp_path, columns)
    assert found[:3] == [math.inf, -math.inf, math.inf]
    assert all(map(math.isnan, found[3:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1e-320, 1e-300, 1e-30, 1e30, 1e300])
def test_the_size_of_the_weights_does_not_matter(
    tmp_path: Path, dtype: torch.dtype, size: float
) -> None:
    columns = [[1.0, 2.0, 4.0], [1e-4, 2e-4, 4e-4], [6e4, 5e4, 3e4], [-0.0, -0.0, -0.0]]
    expected = means(tmp_path, columns, [1.0, 2.0, 1.0], dtype)
    found = means(tmp_path, columns, [size, 2 * size, size], dtype)
    assert found == expected
    assert math.copysign(1, found[3]) == -1


def test_weights_of_very_different_sizes(tmp_path: Path) -> None:
    found = means(tmp_path, [[0.0, 1e300], [HUGE, 1.0], [TINY, HUGE]], [1e300, 1e-10])
    assert found == pytest.approx([1e-10, HUGE, 1e-310 * HUGE], rel=1e-15)


def test_weights_that_all_but_cancel(tmp_path: Path) -> None:
    """Their sum is what is divided by, in the mean as in the report."""
    weights = [1.0, 1e-17, -1.0, -1e-17]
    paths = write(tmp_path / "in", [{"w": torch.ones(1)}] * 4)
    report = fastckpt.average_files(paths, tmp_path / "out.pt", weights=weights)
    assert report.weights == tuple(weight / -1e-17 for weight in weights)


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SIZES = st.floats(min_value=1e-300, max_value=1e300)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    parts=st.integers(1, 6),
    data=st.data(),
    plain_weights=st.booleans(),
)
def test_means_are_those_of_fractions(
    tmp_path: Path, parts: int, data: st.DataObject, plain_weights: bool
) -> None:
    """As near as float64 sums can be: each operation adds half a unit in the last place at most."""
    columns = data.draw(
        st.lists(st.lists(NUMBERS, min_size=parts, max_size=parts), min_size=1, max_size=8)
    )
    sizes = st.floats(min_value=0.1, max_value=10.0) if plain_weights else SIZES
    weights = data.draw(st.lists(sizes, min_size=parts, max_size=parts))
    assume(math.isfinite(sum(weights)))
    found = means(tmp_path, columns, weights)
    total = sum(map(Fraction, weights), Fraction(0))
    for mean, column in zip(found, columns, strict=True):
        products = [
            Fraction(weight) * Fraction(x) for weight, x in zip(weights, column, strict=True)
        ]
        exact = sum(products, Fraction(0)) / total
        bound: Fraction = (
            (2 * parts + 2) * Fraction(2) ** -53 * sum(map(abs, products), Fraction(0)) / total
        )
        # Plain weights are not scaled: a product may be rounded to a multiple of the smallest number.
        bound += 2 * parts * 10 * Fraction(TINY)
        assert math.isfinite(mean)
        assert abs(Fraction(mean) - exact) <= bound
