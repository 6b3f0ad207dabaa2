"""Larger damage: bytes, sectors, the end of a file, and what stands before or after it."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.faults.damage import (
    SAVERS,
    Tally,
    archive_of,
    damaged_copies,
    fast_directory,
    outcome,
)
from tests.specimens import fill

import fastckpt

SECTORS = [512, 4096]


def large_enough_for_sectors() -> dict[str, torch.Tensor]:
    return {f"layer.{i}": fill(torch.float32, 1000 + i, seed=i).nan_to_num() for i in range(6)}


def zeroed(data: bytes, start: int, other: int, nbytes: int) -> bytes:
    return data[:start] + bytes(len(data[start : start + nbytes])) + data[start + nbytes :]


def duplicated(data: bytes, start: int, other: int, nbytes: int) -> bytes:
    copy = data[other : other + nbytes]
    return data[:start] + copy + data[start + len(copy) :]


def swapped(data: bytes, start: int, other: int, nbytes: int) -> bytes:
    start, other = sorted((start, other))
    one, two = data[start : start + nbytes], data[other : other + nbytes]
    result = data[:start] + two + data[start + nbytes : other] + one + data[other + nbytes :]
    return result[: len(data)]


def judge(data: bytes, damaged: bytes, expected: object) -> None:
    assume(damaged != data)
    with fast_directory() as directory:
        path = directory / "model.pt"
        path.write_bytes(damaged)
        tally = Tally(path, expected)
        tally.look("this")
        tally.close()


@settings(derandomize=True)
@given(
    st.sampled_from(list(SAVERS)),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 255)), min_size=1, max_size=64),
)
def test_scattered_bytes(writer: str, changes: list[tuple[int, int]]) -> None:
    expected, data = archive_of("weights", writer)
    damaged = bytearray(data)
    for position, change in changes:
        damaged[position % len(data)] ^= change
    judge(data, bytes(damaged), expected)


@settings(derandomize=True)
@given(st.integers(0, 5000), st.binary(min_size=1, max_size=64))
def test_a_burst(position: int, burst: bytes) -> None:
    expected, data = archive_of("weights", "fastckpt")
    position %= len(data)
    damaged = (data[:position] + burst + data[position + len(burst) :])[: len(data)]
    judge(data, damaged, expected)


@pytest.mark.parametrize("damage", [zeroed, duplicated, swapped])
@settings(derandomize=True)
@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from(SECTORS))
def test_sectors(
    damage: Callable[[bytes, int, int, int], bytes], sector: int, other: int, nbytes: int
) -> None:
    expected, file = large_enough_for_sectors(), io.BytesIO()
    fastckpt.save(expected, file)
    data = file.getvalue()
    sectors = -(-len(data) // nbytes)
    damaged = damage(data, sector % sectors * nbytes, other % sectors * nbytes, nbytes)
    judge(data, damaged, expected)


@pytest.mark.parametrize("writer", SAVERS)
def test_every_length(writer: str) -> None:
    with damaged_copies("optimizer", writer) as (data, path, tally):
        for length in range(len(data)):
            path.write_bytes(data[:length])
            tally.look(length)
        assert tally.counts["load: same"] == tally.counts["mmap: same"] == 0


@pytest.mark.parametrize("writer", SAVERS)
def test_a_tail_of_zeros(writer: str) -> None:
    """What a power cut leaves of a file whose size was written and whose data was not."""
    with damaged_copies("weights", writer) as (data, path, tally):
        # The file itself ends in zeros.
        for length in range(0, len(data.rstrip(b"\0")), 3):
            path.write_bytes(data[:length].ljust(len(data), b"\0"))
            tally.look(length)
        assert tally.counts["load: same"] == tally.counts["mmap: same"] == 0


@pytest.mark.parametrize("writer", SAVERS)
@pytest.mark.parametrize("place", ["before", "after"])
def test_junk_around_the_archive(place: str, writer: str) -> None:
    generator = random.Random(0)
    with damaged_copies("weights", writer) as (data, path, tally):
        # A comment of a zip file has at most 65,535 bytes: with more, no reader finds the end.
        for nbytes in (1, 2, 3, 4, 21, 22, 63, 64, 512, 4096, 65_535, 65_536, 200_000):
            for junk in (generator.randbytes(nbytes), bytes(nbytes), (b"PK\5\6" * nbytes)[:nbytes]):
                path.write_bytes(junk + data if place == "before" else data + junk)
                tally.look((nbytes, junk[:8]))
        if place == "before":
            assert tally.counts["load: same"] == 0


def test_one_archive_after_another() -> None:
    """Two files in one, as a copy that was appended instead of written: neither is taken."""
    expected, data = archive_of("weights", "fastckpt")
    with fast_directory() as directory:
        path = directory / "model.pt"
        path.write_bytes(data + data)
        assert not fastckpt.verify(path).ok
        assert outcome(path, expected) == "FormatError"


def test_file_objects_are_no_exception() -> None:
    expected, data = archive_of("weights", "torch")
    generator = random.Random(1)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        outcome(io.BytesIO(damaged), expected)
        outcome(io.BytesIO(data[: generator.randrange(len(data))]), None)
