"""`fastckpt diff` of tensors whose dtype changed: their numbers, as torch has them in float64."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.elements import (
    COMPONENTS,
    FLOATING,
    INTEGER,
    POWERS_OF_TWO,
    bytes_of,
    name_of,
    of_bytes,
)
from tests.specimens import fill, quiet
from tests.test_diff import compared, saved

from fastckpt import _native
from fastckpt._diff.diff import TensorDiff, TensorLayout, diff
from fastckpt._native import PlainFile
from fastckpt.cli.app import run

DTYPES = (*FLOATING, *POWERS_OF_TWO, *INTEGER)
NUMBERS = ("max_abs", "mean_abs", "relative_norm")

# A number is a pair: every real one has an imaginary part of 0.
Number = tuple[Fraction | float, Fraction | float]


def exact(tensor: torch.Tensor) -> list[Number]:
    """Return the elements as torch converts them, without rounding any."""
    component = COMPONENTS.get(tensor.dtype)
    if component is not None:
        parts = exact(of_bytes(bytes_of(tensor), component))
        pairs = zip(parts[::2], parts[1::2], strict=True)
        return [(real[0], imaginary[0]) for real, imaginary in pairs]
    if not tensor.is_floating_point():
        return [(Fraction(int(value)), Fraction(0)) for value in tensor.tolist()]
    values = tensor.float().double() if tensor.itemsize == 1 else tensor.double()
    return [
        (Fraction(value) if math.isfinite(value) else value, Fraction(0))
        for value in values.tolist()
    ]


def is_same(one: Fraction | float, other: Fraction | float) -> bool:
    return one == other or (one != one and other != other)


def expected(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """Compute from exact numbers what comparing two tensors has to give."""
    pairs = list(zip(exact(a), exact(b), strict=True))
    differing = [pair for pair in pairs if not all(map(is_same, *pair))]
    finite = [pair for pair in pairs if all(isinstance(part, Fraction) for n in pair for part in n)]
    squares = [
        sum(((q - p) ** 2 for p, q in zip(x, y, strict=True)), Fraction(0)) for x, y in finite
    ]
    changes = [math.sqrt(square) for square in squares]
    return {
        "differing": len(differing),
        "non_finite": len([pair for pair in differing if pair not in finite]),
        "finite": len(finite),
        "max_abs": max(changes, default=0.0),
        "sum_abs": math.fsum(changes),
        "sum_squares": float(sum(squares)),
        "reference_squares": float(sum(part**2 for x, _ in finite for part in x)),
    }


def small(dtype: torch.dtype, numel: int, seed: int) -> torch.Tensor:
    """Return elements of which no square is beyond float64, special ones among them."""
    if dtype in (torch.float64, torch.complex128):
        # As many different ones as float32 has: squares of others overflow.
        narrow = torch.float32 if dtype == torch.float64 else torch.complex64
        return fill(narrow, numel, seed).to(dtype)
    return fill(dtype, numel, seed)


def converted_to(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert as torch does, by way of float32 where it has no other way."""
    with quiet():
        if tensor.dtype in COMPONENTS or dtype in COMPONENTS:
            return small(dtype, tensor.numel(), 3)
        if tensor.itemsize == 1 and tensor.is_floating_point():
            tensor = tensor.float()
        return tensor.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_numbers_of_two_dtypes_are_compared(dtype: torch.dtype, tmp_path: Path) -> None:
    """With each other dtype, halves of what torch converts and of any bits at all."""
    a: dict[str, torch.Tensor] = {}
    b: dict[str, torch.Tensor] = {}
    for number, other in enumerate(DTYPES):
        name = name_of(other)
        if other != dtype:
            a[name] = small(dtype, 60, number)
            half = bytes_of(converted_to(a[name][:30], other)) + bytes_of(small(other, 30, number))
            b[name] = of_bytes(half, other)
    file = compared(tmp_path, a, b)
    assert [tensor.name for tensor in file.converted] == list(a)
    assert [name for name, _, _ in file.reshaped] == list(a)
    for tensor in file.converted:
        one, other = a[tensor.name], b[tensor.name]
        assert tensor.layout == TensorLayout(name_of(dtype), (60,))
        assert tensor.dtype_b == tensor.name
        for key, value in expected(one, other).items():
            assert getattr(tensor, key) == pytest.approx(value, rel=1e-12), (tensor.name, key)


@pytest.mark.parametrize("other", [torch.bfloat16, torch.float16, torch.float64], ids=name_of)
def test_the_figures_are_those_of_torch_in_float64(other: torch.dtype, tmp_path: Path) -> None:
    """Of more elements than fit one piece, in any layout."""
    a = torch.randn(700, 1000)
    b = (a + torch.randn(700, 1000) / 100).to(other)
    for one, two in ((a, b), (a.t(), b.t()), (a.t().contiguous().t(), b), (a[:, 1:], b[:, 1:])):
        (tensor,) = compared(tmp_path, {"w": one}, {"w": two}).converted
        change = two.double() - one.double()
        assert tensor.differing == int((change != 0).sum())
        assert tensor.max_abs == float(change.abs().max())
        assert tensor.mean_abs == pytest.approx(float(change.abs().mean()), rel=1e-12)
        norm = float(change.norm() / one.double().norm())
        assert tensor.relative_norm == pytest.approx(norm, rel=1e-12)


INTEGERS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20)


@hypothesis.given(values=INTEGERS, change=st.integers(-2, 2))
@hypothesis.settings(
    max_examples=40, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_large_integers_are_not_rounded_to_floats(
    values: list[int], change: int, tmp_path: Path
) -> None:
    moved = [min(max(value + change, 0), 2**63 - 1) for value in values]
    a = {"u": torch.tensor(values), "f": torch.tensor(values)}
    b = {"u": torch.tensor(moved, dtype=torch.uint64), "f": torch.tensor(values).double()}
    for tensor in compared(tmp_path, a, b).converted:
        figures = expected(a[tensor.name], b[tensor.name])
        assert tensor.differing == figures["differing"]
        assert tensor.max_abs == pytest.approx(figures["max_abs"], rel=1e-12)
        assert tensor.sum_abs == pytest.approx(figures["sum_abs"], rel=1e-12)


def test_what_was_only_converted_has_the_same_numbers(tmp_path: Path) -> None:
    special = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1.5])
    a = {"w": special, "mask": torch.tensor([True, False]), "c": torch.ones(2)}
    b = {"w": special.double(), "mask": torch.tensor([1, 0]), "c": torch.ones(2) + 0j}
    file = compared(tmp_path, a, b)
    assert [tensor.differing for tensor in file.converted] == [0, 0, 0]
    # Their dtypes are a difference all the same.
    assert not file.is_same
    assert (file.tensors, file.differing) == ((), ())


def test_non_finite_numbers_are_counted_and_not_measured(tmp_path: Path) -> None:
    a = {"w": torch.tensor([1.0, math.nan, math.inf, 70000.0, 2.0])}
    b = {"w": torch.tensor([1.0, math.nan, 5.0, math.inf, 2.5], dtype=torch.float16)}
    (tensor,) = compared(tmp_path, a, b).converted
    assert (tensor.differing, tensor.non_finite, tensor.finite) == (3, 2, 2)
    assert (tensor.max_abs, tensor.mean_abs) == (0.5, 0.25)


def test_the_same_bytes_as_another_dtype_are_read(tmp_path: Path) -> None:
    ones = torch.ones(8)
    (tensor,) = compared(tmp_path, {"w": ones}, {"w": ones.view(torch.int32)}).converted
    assert tensor.differing == 8
    assert tensor.max_abs == 0x3F800000 - 1


def test_what_is_no_number_is_not_compared(tmp_path: Path) -> None:
    a: dict[str, Any] = {"w": torch.ones(2), "v": torch.ones(4)}
    with quiet():
        b = {"w": torch.zeros(2, dtype=torch.bits8), "v": torch.ones(2, 2, dtype=torch.float16)}
        file = compared(tmp_path, a, b)
    assert [name for name, _, _ in file.reshaped] == ["w", "v"]
    assert file.converted == ()
    path = tmp_path / "plain"
    path.write_bytes(bytes(16))
    plain = PlainFile.open(path)
    with pytest.raises(ValueError, match="float32 and bits8 have no numbers that could be compar"):
        _native.compare_tensors(plain, plain, [("float32", "bits8", 4, 0, 0)])


def write_safetensors(path: Path, dtype: str, shape: list[int], data: bytes) -> Path:
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}
    text = json.dumps({"w": entry}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_a_dtype_of_safetensors_alone_is_compared_by_its_bytes(tmp_path: Path) -> None:
    a = write_safetensors(tmp_path / "a.safetensors", "F4", [2, 2], b"\1\2")
    b = write_safetensors(tmp_path / "b.safetensors", "F4", [2, 2], b"\1\3")
    assert diff(a, a).is_same
    (tensor,) = diff(a, b).files[0].differing
    assert (tensor.layout, tensor.numel) == (TensorLayout("float4", (2, 2)), 2)
    assert (tensor.differing, tensor.finite) == (1, 0)
    c = write_safetensors(tmp_path / "c.safetensors", "U8", [2, 2], b"\1\2\0\0")
    (file,) = diff(a, c).files
    assert [name for name, _, _ in file.reshaped] == ["w"]
    assert file.converted == ()


def test_damage_is_found_in_what_was_converted(tmp_path: Path) -> None:
    a, b = saved(tmp_path, {"w": torch.full((1000,), 0.5)}, {"w": torch.ones(1000).half()})
    data = bytearray(Path(a).read_bytes())
    data[data.index(torch.full((4,), 0.5).numpy().tobytes())] ^= 1
    Path(a).write_bytes(data)
    with pytest.raises(RuntimeError, match="checksum mismatch in tensor 'w'"):
        diff(a, b)


def test_a_safetensors_file_of_another_dtype_is_compared(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "a.pt")
    save_file({"w": torch.full((3,), 1.5, dtype=torch.bfloat16)}, tmp_path / "b.safetensors")
    (file,) = diff(tmp_path / "a.pt", tmp_path / "b.safetensors").files
    assert (file.converted[0].differing, file.converted[0].max_abs) == (3, 0.5)
    assert file.unchecked == ("w",)


def test_a_report_shows_how_far_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = saved(
        tmp_path,
        {"w": torch.full((2,), 2.0), "same": torch.ones(1), "shape": torch.ones(1)},
        {"w": torch.tensor([2.5, 2.0]).half(), "same": torch.ones(1).int(), "shape": torch.ones(2)},
    )
    assert run(["diff", a, b]) == 1
    figures = "max change 0.5, mean change 0.25, relative norm 0.177"
    assert capsys.readouterr().out.splitlines()[2:] == [
        f"  changed  w  float32 [2] -> float16 [2]  ({figures})",
        "  changed  same  float32 [1] -> int32 [1]  (the same numbers)",
        "  changed  shape  float32 [1] -> float32 [2]",
    ]
    assert run(["diff", "--md", a, b]) == 1
    row = f"| w | changed: {figures} | float32 \\[2\\] | float16 \\[2\\] |"
    assert row in capsys.readouterr().out.splitlines()
    assert run(["diff", "--json", a, b]) == 1
    changed = json.loads(capsys.readouterr().out)["report"]["files"][0]["changed"]
    assert [entry["numbers"] and entry["numbers"]["differing"] for entry in changed] == [1, 0, None]
    assert [changed[0]["numbers"][key] for key in NUMBERS] == [0.5, 0.25, pytest.approx(2**-2.5)]


def test_a_tensor_diff_without_another_dtype() -> None:
    tensor = TensorDiff("w", TensorLayout("float32", (2,)), 2, 1, 0, 2, 3.0, 3.0, 9.0, 4.0)
    assert tensor.dtype_b is None
