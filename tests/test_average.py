"""`fastckpt average`: the mean in float64, rounded once; nothing that was not checked; nothing half-written."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import errno
import math
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import archives
from tests.average_runs import assert_same_numbers, both_ways, mean, rounded_once, write
from tests.elements import (
    EIGHT_BITS,
    FLOATING,
    INTEGER,
    POWERS_OF_TWO,
    SIXTEEN_BITS,
    bytes_of,
    laid_out,
    name_of,
    numbers,
)
from tests.faults.children import in_child, wait_for
from tests.specimens import can_save, dtypes, fill

import fastckpt
from fastckpt import _native
from fastckpt._average.average import average_checkpoints, average_files

KILLS = 8
# 16 chunks: long enough to be interrupted.
LARGE_NUMEL = 16 << 20


# Numbers


def test_every_dtype_is_floating_or_integer_or_neither() -> None:
    kinds = {dtype: _native.arithmetic(name_of(dtype)) for dtype in dtypes() if can_save(dtype)}
    assert {d for d, kind in kinds.items() if kind == "floating"} == {*FLOATING, *POWERS_OF_TWO}
    assert {d for d, kind in kinds.items() if kind == "integer"} == set(INTEGER)


@pytest.mark.parametrize("dtype", [*SIXTEEN_BITS, *EIGHT_BITS, *POWERS_OF_TWO], ids=name_of)
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


def test_what_appears_after_the_last_look_is_not_touched_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write(tmp_path, [{"w": torch.ones(10)}])
    to = tmp_path / "out.pt"
    looks: list[str] = []

    def look(path: str) -> None:
        looks.append(path)
        if len(looks) == 2:
            to.write_bytes(b"somebody else's")

    monkeypatch.setattr("fastckpt._average.average._refuse_existing", look)
    with pytest.raises(FileExistsError):
        average_files(paths, to)
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
from fastckpt._average.average import average_files
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
