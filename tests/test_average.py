"""`fastckpt average`: the mean in float64, rounded once; nothing that was not checked; nothing half-written."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import strategies as st
from tests import archives
from tests.command_line import run_json
from tests.faults.children import in_child, wait_for
from tests.specimens import can_save, dtypes, fill

import fastckpt
from fastckpt import _native
from fastckpt._average import average_checkpoints, average_files
from fastckpt.cli.app import run

KILLS = 8
# 16 chunks: long enough to be interrupted.
LARGE_NUMEL = 16 << 20

COMPONENTS = {
    torch.complex128: torch.float64,
    torch.complex64: torch.float32,
    torch.complex32: torch.float16,
    **({torch.bcomplex32: torch.bfloat16} if hasattr(torch, "bcomplex32") else {}),
}
SIXTEEN_BITS = (torch.float16, torch.bfloat16)
# torch rounds other numbers to its powers of two in a way of its own: see the test of them.
EIGHT_BITS = tuple(
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
)
POWERS_OF_TWO = torch.float8_e8m0fnu
FLOATING = (torch.float64, torch.float32, *SIXTEEN_BITS, *EIGHT_BITS, *COMPONENTS)
INTEGER = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool),
)

Numbers = npt.NDArray[np.float64]


# What is right: numpy's float64, and torch's own conversions


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def bytes_of(tensor: torch.Tensor) -> bytes:
    """Return the elements of a tensor, in their order."""
    flat = tensor.detach().clone(memory_format=torch.contiguous_format)
    nbytes = flat.numel() * flat.itemsize
    data = torch.empty(0, dtype=torch.uint8).set_(flat.untyped_storage(), 0, (nbytes,), (1,))
    return data.numpy().tobytes()


def of_bytes(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    numel = len(data) // dtype.itemsize
    storage = torch.UntypedStorage(len(data))
    if data:
        torch.empty(0, dtype=torch.uint8).set_(storage).copy_(
            torch.frombuffer(bytearray(data), dtype=torch.uint8)
        )
    return torch.empty(0, dtype=dtype).set_(storage, 0, (numel,), (1,))


def numbers(data: bytes, dtype: torch.dtype) -> Numbers:
    """Return components in float64, as torch converts them."""
    tensor = of_bytes(data, dtype)
    if dtype in EIGHT_BITS or dtype == POWERS_OF_TWO:
        tensor = tensor.float()  # exact
    return tensor.double().numpy()


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
    if dtype in INTEGER:
        return parts[-1]
    component = COMPONENTS.get(dtype, dtype)
    total: Numbers | None = None
    with np.errstate(all="ignore"):
        for part, weight in zip(parts, weights, strict=True):
            if weight != 0:
                product = numbers(part, component) * weight
                total = product if total is None else total + product
        assert total is not None
        sum_of_weights = 0.0
        for weight in weights:
            sum_of_weights += weight
        return rounded_once(total / sum_of_weights, component)


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


# Numbers


def test_every_dtype_is_floating_or_integer_or_neither() -> None:
    kinds = {dtype: _native.arithmetic(name_of(dtype)) for dtype in dtypes() if can_save(dtype)}
    assert {d for d, kind in kinds.items() if kind == "floating"} == {*FLOATING, POWERS_OF_TWO}
    assert {d for d, kind in kinds.items() if kind == "integer"} == set(INTEGER)


@pytest.mark.parametrize("dtype", [*SIXTEEN_BITS, *EIGHT_BITS, POWERS_OF_TWO], ids=name_of)
def test_every_value_of_a_small_float_is_torchs(dtype: torch.dtype) -> None:
    kind = np.uint16 if dtype in SIXTEEN_BITS else np.uint8
    codes = np.arange(np.iinfo(kind).max + 1).astype(kind)
    found = np.array(_native.decode_numbers(name_of(dtype), codes.tobytes()))
    expected = numbers(codes.tobytes(), dtype)
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    numeric = ~np.isnan(expected)
    assert found[numeric].tobytes() == expected[numeric].tobytes()
    encoded = np.frombuffer(_native.encode_numbers(name_of(dtype), found.tolist()), dtype=kind)
    assert np.array_equal(encoded[numeric], codes[numeric])


@pytest.mark.parametrize("dtype", [torch.float32, *SIXTEEN_BITS, *EIGHT_BITS], ids=name_of)
def test_numbers_are_rounded_to_the_nearest(dtype: torch.dtype) -> None:
    generator = np.random.default_rng(5)
    # Two numbers that are neighbours, what lies half-way between them, and what lies just beside that.
    kind = {1: np.uint8, 2: np.uint16, 4: np.uint32}[dtype.itemsize]
    codes = generator.integers(0, np.iinfo(kind).max, 20_000).astype(kind)
    with np.errstate(all="ignore"):
        one, other = (numbers(part.tobytes(), dtype) for part in (codes, codes + kind(1)))
        half_way = (one + other) / 2
    usable = np.isfinite(half_way) & (np.abs(half_way) <= torch.finfo(dtype).max)
    marks = half_way[usable]
    values = np.concatenate([one[usable], marks, marks * (1 + 2.0**-50), marks * (1 - 2.0**-50)])
    values = np.concatenate([values, values * generator.uniform(0.5, 1, values.size)])
    found = _native.encode_numbers(name_of(dtype), values.tolist())
    assert_same_numbers(found, rounded_once(values, dtype), dtype)


def test_powers_of_two_are_rounded_to_the_nearest() -> None:
    cases = {1.0: 1.0, 1.4: 1.0, 1.5: 2.0, 1.6: 2.0, 3.0: 4.0, 2.0**-127: 2.0**-127, 0.0: 2.0**-127}
    encoded = _native.encode_numbers("float8_e8m0fnu", list(cases))
    assert _native.decode_numbers("float8_e8m0fnu", encoded) == list(cases.values())
    for value in (-1.0, 2.0**128, math.inf, math.nan):
        (number,) = _native.decode_numbers(
            "float8_e8m0fnu", _native.encode_numbers("float8_e8m0fnu", [value])
        )
        assert math.isnan(number)


def test_the_mean_is_rounded_once(tmp_path: Path) -> None:
    low, high = torch.tensor([1.0]).half(), torch.tensor([1.0 + 2**-10]).half()
    paths = write(tmp_path, [{"w": low}, {"w": high}])
    weights = [1.0, 1.0 + 2**-40]
    found = average_checkpoints(paths, weights=weights)["w"]
    # A little above the middle between the two. By way of float32 it would be taken for the middle.
    assert found.item() == high.item()
    exact = (low.double() + high.double() * weights[1]) / sum(weights)
    assert exact.half().item() == low.item()


@pytest.mark.parametrize("dtype", [*FLOATING, *INTEGER], ids=name_of)
def test_means_of_random_bits_are_right_in_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    numel = 5000
    parts = [fill(dtype, numel, seed) for seed in range(3)]
    paths = write(tmp_path / "in", [{"w": part} for part in parts])
    beyond = [1.5, -0.25, 0.5]
    if dtype == torch.float8_e4m3fn:
        # What is too large is NaN here and in torch 2.6, and 448 in torch 2.15.
        beyond = [0.5, 0.25, 0.25]
    for weights in (None, [1.0, 2.0, 3.0], [0.3, 0.0, 0.1], beyond):
        found = both_ways(paths, tmp_path / "out.pt", weights=weights)
        expected = mean([bytes_of(part) for part in parts], dtype, weights or [1.0] * 3)
        for state in found:
            assert (state["w"].dtype, state["w"].shape) == (dtype, (numel,))
            assert_same_numbers(bytes_of(state["w"]), expected, dtype)


def test_the_mean_of_one_file_is_that_file(tmp_path: Path) -> None:
    tensors = {name_of(dtype): fill(dtype, 700) for dtype in (*FLOATING, *INTEGER)}
    tensors["zero"] = torch.tensor([-0.0, 0.0])
    (path,) = write(tmp_path / "in", [tensors])
    for state in both_ways([path], tmp_path / "out.pt"):
        for name, tensor in tensors.items():
            assert_same_numbers(bytes_of(state[name]), bytes_of(tensor), tensor.dtype)


def test_a_checkpoint_of_weight_zero_has_no_part(tmp_path: Path) -> None:
    states = [{"w": torch.ones(3), "n": torch.tensor(1)}, {"w": torch.full((3,), math.nan)}]
    states[1]["n"] = torch.tensor(2)
    paths = write(tmp_path, states)
    found = average_checkpoints(paths, weights=[2.0, 0.0])
    assert (found["w"].tolist(), found["n"].item()) == ([1.0] * 3, 2)


# Layouts


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """Return the same tensor in another place of another storage."""
    if layout == "transposed":
        return tensor.t().contiguous().t() if tensor.dim() == 2 else tensor.clone()
    if layout == "inside":
        around = torch.zeros(tensor.numel() + 7, dtype=tensor.dtype)
        around[3 : 3 + tensor.numel()] = tensor.reshape(-1)
        return around[3 : 3 + tensor.numel()].view(tensor.shape)
    if layout == "stepped":
        around = torch.zeros((*tensor.shape, 2), dtype=tensor.dtype)
        around[..., 1] = tensor
        return around[..., 1]
    return tensor.clone()


LAYOUTS = st.sampled_from(["plain", "transposed", "inside", "stepped"])
SHAPES = st.lists(st.integers(0, 7), max_size=3).map(tuple)


@hypothesis.settings(max_examples=40)
@hypothesis.given(data=st.data())
def test_layouts_do_not_change_the_mean(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("layouts")
    shapes = data.draw(st.lists(SHAPES, min_size=1, max_size=4))
    count = data.draw(st.integers(1, 4))
    weights = data.draw(
        st.none() | st.lists(st.floats(0.1, 10), min_size=count, max_size=count), label="weights"
    )
    same = data.draw(st.booleans(), label="same layouts")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    plain = [
        {f"t{n}": torch.randn(shape, generator=generator) for n, shape in enumerate(shapes)}
        for _ in range(count)
    ]
    chosen = [[data.draw(LAYOUTS) for _ in shapes] for _ in range(count)]
    states = [
        {
            name: laid_out(tensor, chosen[0 if same else number][position])
            for position, (name, tensor) in enumerate(state.items())
        }
        for number, state in enumerate(plain)
    ]
    paths = write(directory, states)
    for found in both_ways(paths, directory / "out.pt", weights=weights):
        assert list(found) == list(plain[0])
        for name, tensor in found.items():
            parts = [bytes_of(state[name]) for state in plain]
            assert tensor.shape == plain[0][name].shape
            expected = mean(parts, torch.float32, weights or [1.0] * count)
            assert bytes_of(tensor) == expected
            if same:
                assert tensor.stride() == states[0][name].stride()


def test_tensors_that_share_memory_everywhere_still_do(tmp_path: Path) -> None:
    states = []
    for number in range(2):
        w, flat = torch.full((3, 4), float(number)), torch.arange(10.0) + number
        untied = w if number == 0 else w.clone()
        states.append(
            {"w": w, "tied": w, "t": w.t(), "a": flat[:6], "b": flat[4:], "once": w, "x": untied}
        )
    for state in states:
        del state["once"]
    paths = write(tmp_path / "in", [{k: v for k, v in s.items() if k != "x"} for s in states])
    for found in both_ways(paths, tmp_path / "out.pt"):
        assert found["tied"].data_ptr() == found["w"].data_ptr() == found["t"].data_ptr()
        assert found["a"].untyped_storage().data_ptr() == found["b"].untyped_storage().data_ptr()
        assert torch.equal(found["a"], torch.arange(6.0) + 0.5)
        assert torch.equal(found["b"], torch.arange(4.0, 10.0) + 0.5)
        assert torch.equal(found["t"], torch.full((4, 3), 0.5))
    paths = write(tmp_path / "untied", states)
    for found in both_ways(paths, tmp_path / "out.pt"):
        # In the second checkpoint x has memory of its own.
        assert found["x"].data_ptr() != found["w"].data_ptr() == found["tied"].data_ptr()
        assert torch.equal(found["x"], torch.full((3, 4), 0.5))
        assert torch.equal(found["t"], torch.full((4, 3), 0.5))


def test_an_expanded_tensor_stays_small(tmp_path: Path) -> None:
    paths = write(tmp_path, [{"w": torch.tensor([float(n)]).expand(2**40)} for n in (1, 2)])
    to = tmp_path / "out.pt"
    average_files(paths, to)
    found = torch.load(to, weights_only=True)["w"]
    assert (found.shape, found.stride(), found[7].item()) == ((2**40,), (0,), 1.5)


def test_a_claim_of_more_than_the_disk_has_is_refused(tmp_path: Path) -> None:
    # Not laid out alike, so each element would be written.
    states = [{"w": torch.zeros(n).expand(2**44, 1)[:, :1]} for n in (1, 1)]
    states[1] = {"w": torch.zeros(2)[1:].expand(2**44, 1)}
    paths = write(tmp_path, states)
    with pytest.raises(OSError, match="bytes are needed") as caught:
        average_files(paths, tmp_path / "out.pt")
    assert caught.value.errno == errno.ENOSPC
    assert sorted(os.listdir(tmp_path)) == ["0.pt", "1.pt"]


@pytest.mark.parametrize("threads", [1, 3])
def test_many_pieces_give_the_same_whatever_the_threads(threads: int, tmp_path: Path) -> None:
    numel = 3_000_001
    parts = [fill(torch.bfloat16, numel, seed) for seed in range(2)]
    paths = write(tmp_path / "in", [{"a": part, "b": part[:5].clone()} for part in parts])
    for state in both_ways(paths, tmp_path / "out.pt", threads=threads):
        expected = mean([bytes_of(part) for part in parts], torch.bfloat16, [1.0, 1.0])
        assert_same_numbers(bytes_of(state["a"]), expected, torch.bfloat16)


# What is averaged


def test_the_state_dict_is_found_and_stands_alone_in_the_new_file(tmp_path: Path) -> None:
    states: list[dict[str, Any]] = []
    for number in range(2):
        torch.manual_seed(number)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        model(torch.randn(8, 3))
        states.append(
            {
                "epoch": number,
                "model_state_dict": model.state_dict(),
                "optimizer_state_dict": {"state": {0: torch.ones(9)}, "param_groups": []},
            }
        )
    paths = write(tmp_path / "in", states)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    found = average_checkpoints(paths, model)
    average_files(paths, tmp_path / "out.pt")
    saved = torch.load(tmp_path / "out.pt", weights_only=True)
    first, last = (state["model_state_dict"] for state in states)
    assert type(found) is OrderedDict
    assert list(found) == list(saved) == list(first)
    for name, tensor in model.state_dict().items():
        expected = last[name]
        if expected.is_floating_point():
            expected = ((first[name].double() + last[name].double()) / 2).to(expected.dtype)
        assert torch.equal(tensor, expected)
        assert torch.equal(found[name], expected)
        assert torch.equal(saved[name], expected)


def test_extra_state_is_the_last_ones(tmp_path: Path) -> None:
    states = [{"w": torch.ones(1), "_extra_state": {"n": number}} for number in range(2)]
    found = average_checkpoints(write(tmp_path, states))
    assert found["_extra_state"] == {"n": 1}


def test_what_does_not_go_together_is_named(tmp_path: Path) -> None:
    good = {f"w{n}": torch.ones(2, 3) for n in range(8)}
    others = {
        "7 keys missing (w1, w2, w3, w4, w5 and 2 more)": {"w0": torch.ones(2, 3)},
        "1 key too many (extra)": good | {"extra": torch.ones(1)},
        "1 tensor of another shape (w3: [2, 3] and [3, 2])": good | {"w3": torch.ones(3, 2)},
        "1 tensor of another dtype (w2: float32 and float16)": good
        | {"w2": torch.ones(2, 3).half()},
    }
    for words, other in others.items():
        paths = write(tmp_path, [good, other])
        with pytest.raises(ValueError, match="does not go with") as caught:
            average_files(paths, tmp_path / "out.pt")
        assert str(caught.value) == f"{paths[1]} does not go with {paths[0]}: {words}"
    assert not (tmp_path / "out.pt").exists()


def test_what_has_no_mean_is_refused(tmp_path: Path) -> None:
    for state, words in (
        ({"w": torch.ones(2, 2).to_sparse()}, "w is no plain tensor"),
        ({"w": torch.ones(2), 3: torch.ones(2)}, "the state dict has the key 3"),
        ({"w": torch.empty(2, dtype=torch.bits8)}, "w is bits8"),
        ({"state": {}, "param_groups": []}, "no state dict"),
    ):
        paths = write(tmp_path, [state, state])
        with pytest.raises(fastckpt.FormatError, match=words):
            average_checkpoints(paths)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1.0], "2 checkpoints and 1 weights"),
        ([1.0, math.nan], "finite"),
        ([1.0, math.inf], "finite"),
        ([0.0, 0.0], "add up to 0"),
        ([1.0, -1.0], "add up to 0"),
        ([1e308, 1e308], "add up to inf"),
    ],
)
def test_weights_that_cannot_be_used(weights: list[float], words: str, tmp_path: Path) -> None:
    paths = write(tmp_path, [{"w": torch.ones(1)}] * 2)
    with pytest.raises(ValueError, match=words):
        average_checkpoints(paths, weights=weights)


def test_there_has_to_be_something(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to average"):
        average_checkpoints([])
    with pytest.raises(TypeError, match="not one path"):
        average_checkpoints("model.pt")
    with pytest.raises(FileNotFoundError):
        average_checkpoints([tmp_path / "missing.pt"])


# Damage, and other ends


@pytest.mark.parametrize("layout", ["plain", "transposed", "inside"])
def test_damage_names_the_tensor_and_nothing_is_written(layout: str, tmp_path: Path) -> None:
    good = {"first": torch.ones(40, 50), "second": laid_out(torch.ones(40, 50), layout)}
    other = {"first": torch.ones(40, 50), "second": torch.ones(40, 50)}
    paths = write(tmp_path, [other, good])
    intact = Path(paths[1]).read_bytes()
    for number, name in enumerate(good):
        payload = archives.record_range(intact, f"data/{number}")
        for position in (payload.start, payload.stop - 1, random.Random(number).choice(payload)):
            changed = bytearray(intact)
            changed[position] ^= 1
            Path(paths[1]).write_bytes(changed)
            for work in (average_checkpoints, lambda p: average_files(p, tmp_path / "out.pt")):
                with pytest.raises(fastckpt.ChecksumError) as caught:
                    work(paths)
                assert caught.value.tensors == [name]
                assert caught.value.path == paths[1]
    assert sorted(os.listdir(tmp_path)) == ["0.pt", "1.pt"]


def test_a_header_that_says_another_name_is_found(tmp_path: Path) -> None:
    paths = write(tmp_path, [{"w": torch.ones(1000)}] * 2)
    intact = Path(paths[0]).read_bytes()
    name = intact.index(b"data/0")
    Path(paths[0]).write_bytes(intact[:name] + b"data/1" + intact[name + 6 :])
    with pytest.raises(fastckpt.FormatError):
        average_checkpoints(paths)


def test_a_truncated_input_is_refused(tmp_path: Path) -> None:
    paths = write(tmp_path, [{"w": torch.ones(1000)}] * 2)
    intact = Path(paths[0]).read_bytes()
    for nbytes in (0, 100, len(intact) // 2, len(intact) - 1):
        Path(paths[0]).write_bytes(intact[:nbytes])
        with pytest.raises(fastckpt.FormatError):
            average_files(paths, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_files_of_the_other_byte_order_are_refused(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [{"w": torch.ones(10)}])
    data = archives.with_records(Path(path).read_bytes(), {"byteorder": b"big"})
    Path(path).write_bytes(data)
    with pytest.raises(fastckpt.FormatError, match=r"another byte order \(big\)"):
        average_checkpoints([path])


def test_nothing_that_exists_is_touched(tmp_path: Path) -> None:
    paths = write(tmp_path, [{"w": torch.ones(10)}])
    to = tmp_path / "out.pt"
    to.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        average_files(paths, to)

    def appear(done: int, total: int) -> None:
        to.write_bytes(b"somebody else's")

    to.unlink()
    with pytest.raises(FileExistsError):
        average_files(paths, to, progress=appear)
    assert to.read_bytes() == b"somebody else's"
    assert sorted(os.listdir(tmp_path)) == ["0.pt", "out.pt"]


def test_progress_ends_at_its_end_and_may_raise(tmp_path: Path) -> None:
    paths = write(tmp_path, [{"w": torch.ones(1_000_000)}] * 2)
    seen: list[tuple[int, int]] = []
    average_files(paths, tmp_path / "out.pt", progress=lambda *figures: seen.append(figures))
    assert seen[-1] == (seen[-1][1],) * 2 == ((tmp_path / "out.pt").stat().st_size,) * 2
    (tmp_path / "out.pt").unlink()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        average_files(paths, tmp_path / "out.pt", progress=stop)
    with pytest.raises(KeyboardInterrupt):
        average_checkpoints(paths, progress=stop)
    assert sorted(os.listdir(tmp_path)) == ["0.pt", "1.pt"]


def large(directory: Path) -> list[str]:
    """Return five times the same file of 32 MB."""
    (path,) = write(directory, [{"w": torch.ones(LARGE_NUMEL).bfloat16()}])
    return [path] * 5


def test_a_kill_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    paths = large(tmp_path / "in")
    generator = random.Random(3)
    out = tmp_path / "out"
    out.mkdir()
    expected = zlib.crc32(bytes_of(torch.load(paths[0])["w"]))

    def average_on_and_on() -> None:
        for number in range(1000):
            average_files(paths, out / f"{os.getpid()}_{number}.pt")

    for _ in range(KILLS):
        child = in_child(average_on_and_on)
        wait_for(lambda: any(out.iterdir()))
        time.sleep(generator.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for path in out.iterdir():
            if not path.name.startswith(".fastckpt-"):
                assert fastckpt.verify(path).ok
                assert zlib.crc32(bytes_of(torch.load(path)["w"])) == expected
        # A later save removes what the dead one left; here the whole directory goes.
        for path in list(out.iterdir()):
            path.unlink()


# Limits are of a process, so these run in one of their own.
_LIMITED = """
import resource, signal, sys
from fastckpt._average import average_files
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
before = peak()
mode, out, *paths = sys.argv[1:]
if mode == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))
try:
    average_files(paths, out, threads=2)
except OSError as error:
    print(error.errno)
else:
    print(peak() - before)
"""


def limited(mode: str, out: Path, paths: Sequence[str]) -> int:
    command = [sys.executable, "-c", _LIMITED, mode, str(out), *paths]
    done = subprocess.run(command, text=True, capture_output=True, check=True)
    return int(done.stdout)


def test_a_disk_that_takes_no_more_leaves_nothing(tmp_path: Path) -> None:
    paths = large(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    assert limited("full", out / "out.pt", paths) == errno.EFBIG
    assert list(out.iterdir()) == []


def test_memory_is_that_of_pieces(tmp_path: Path) -> None:
    paths = large(tmp_path / "in")
    grown_nbytes = limited("", tmp_path / "out.pt", paths)
    # Two workers, each with five windows of 2 MiB and a chunk of the new file, and what the rest of the
    # process takes; the five inputs have 168 MB.
    assert grown_nbytes < 60_000_000


def test_ctrl_c(tmp_path: Path) -> None:
    paths = large(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    # Forty inputs: it is never done by the time that the signal arrives.
    command = [sys.executable, "-m", "fastckpt", "average", *paths * 8, "--to", str(out / "out.pt")]
    process = subprocess.Popen(
        [*command, "--threads", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: any(out.iterdir()))
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout, stderr) == (130, "", "error: interrupted\n")
    assert list(out.iterdir()) == []


# The command


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write(tmp_path, [{"w": torch.full((2,), n), "n": torch.tensor(1)} for n in (1.0, 4.0)])
    to = str(tmp_path / "out.pt")
    assert run(["average", *paths, "--to", to, "--weights", "2,1"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith(f"AVERAGED: 2 checkpoints into {to}, ")
    assert lines[1:] == [f"    0.6667  {paths[0]}", f"    0.3333  {paths[1]}"]
    assert captured.err == f"note: 1 integer tensor is of the last file, {paths[1]}\n"
    assert torch.load(to)["w"].tolist() == [2.0, 2.0]


def test_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write(tmp_path, [{"w": torch.ones(2)}] * 2)
    to = tmp_path / "out.pt"
    document = run_json(capsys, "average", *paths, "--to", str(to), status="written")
    assert document["report"] == {
        "path": str(to),
        "nbytes": to.stat().st_size,
        "checkpoints": [{"path": path, "weight": 0.5} for path in paths],
        "tensors": 1,
        "averaged": 1,
        "unchecked": [],
    }


def test_files_without_checksums_are_averaged_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(archives.without_checksums({"w": torch.ones(10)}))
    with pytest.warns(fastckpt.MissingChecksumWarning, match="has no checksums"):
        assert average_checkpoints([path])["w"].tolist() == [1.0] * 10
    assert run(["average", str(path), "--to", str(tmp_path / "out.pt")]) == 0
    assert capsys.readouterr().err == (
        f"warning: {path} has no checksums: its bytes were averaged unchecked\n"
    )


@pytest.mark.parametrize("as_json", [False, True])
def test_exit_codes(as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--json"] if as_json else []
    good, other, junk = write(tmp_path, [{"w": torch.ones(9)}, {"v": torch.ones(9)}, {}])
    Path(junk).write_bytes(b"junk")
    to = str(tmp_path / "out.pt")
    steps = tmp_path / "steps"
    steps.mkdir()
    for step in (1, 2):
        torch.save({"w": torch.ones(9)}, steps / f"model_{step:06d}.pt")
    for paths, out, more, code, status in (
        ([good, other], to, [], 2, "usage"),
        ([good, good], good, [], 2, "usage"),
        ([good, good], to, ["--weights", "1,x"], 2, "usage"),
        ([good, good], to, ["--weights", "1"], 2, "usage"),
        ([good, str(steps)], to, [], 2, "usage"),
        ([good, junk], to, [], 1, "damaged"),
        ([good, str(tmp_path / "missing.pt")], to, [], 4, "not_found"),
        ([good], str(tmp_path / "no" / "directory.pt"), [], 4, "not_found"),
    ):
        assert run(["average", *paths, "--to", out, *more, *options]) == code
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert "Traceback" not in captured.err
        if as_json:
            assert json.loads(captured.out)["status"] == status
    assert not os.path.exists(to)


def test_a_directory_stands_for_its_only_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        (tmp_path / f"run{step}").mkdir()
        path = tmp_path / f"run{step}" / f"model_{step:06d}.pt"
        torch.save({"w": torch.full((1,), float(step))}, path)
    directories = [str(tmp_path / f"run{step}") for step in (1, 2)]
    to = tmp_path / "out.pt"
    assert run(["average", *directories, "--to", str(to)]) == 0
    assert torch.load(to)["w"].tolist() == [1.5]
    torch.save({"w": torch.ones(1)}, tmp_path / "run1" / "model_000009.pt")
    to.unlink()
    assert run(["average", *directories, "--to", str(to)]) == 2
    assert "2 model files: name the files themselves" in capsys.readouterr().err


def test_torch_is_needed_and_said_to_be(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from fastckpt.cli.app import run\n"
        "sys.exit(run(['average', 'a.pt', '--to', 'b.pt']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, text=True, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: average needs torch\nhint: pip install torch\n"
