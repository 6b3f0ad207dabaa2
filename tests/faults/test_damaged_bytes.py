"""Bytes that hypothesis chooses to change: it shrinks what slips through to the smallest case."""

from __future__ import annotations

import io
import random

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.faults.damage import OBJECTS, SAVERS, Judge, archive_of, fast_directory, outcome

# No file here is larger.
_NBYTES = 5000
writers = st.sampled_from(list(SAVERS))
kinds = st.sampled_from(list(OBJECTS))
positions = st.integers(0, _NBYTES)


def judge(data: bytes, damaged: bytes, expected: object) -> None:
    assume(damaged != data)
    with fast_directory() as directory:
        path = directory / "model.pt"
        path.write_bytes(damaged)
        looking = Judge(path, expected)
        looking.look("the example above")
        looking.close()


@settings(derandomize=True)
@given(kinds, writers, st.lists(st.tuples(positions, st.integers(1, 255)), min_size=1, max_size=64))
def test_scattered_bytes(kind: str, writer: str, changes: list[tuple[int, int]]) -> None:
    expected, data = archive_of(kind, writer)
    damaged = bytearray(data)
    for position, change in changes:
        damaged[position % len(data)] ^= change
    judge(data, bytes(damaged), expected)


@settings(derandomize=True)
@given(kinds, writers, positions, st.binary(min_size=1, max_size=64))
def test_a_burst(kind: str, writer: str, position: int, burst: bytes) -> None:
    expected, data = archive_of(kind, writer)
    position %= len(data)
    damaged = (data[:position] + burst + data[position + len(burst) :])[: len(data)]
    judge(data, damaged, expected)


@settings(derandomize=True)
@given(kinds, writers, positions, positions, positions)
def test_a_part_of_the_file_elsewhere_in_it(
    kind: str, writer: str, start: int, end: int, place: int
) -> None:
    """Headers are read where they do not belong, names and sizes of other records with them."""
    expected, data = archive_of(kind, writer)
    start, end = sorted((start % len(data), end % len(data)))
    place %= len(data)
    part = data[start:end]
    damaged = (data[:place] + part + data[place + len(part) :])[: len(data)]
    judge(data, damaged, expected)


def test_file_objects_are_no_exception() -> None:
    expected, data = archive_of("weights", "torch")
    generator = random.Random(1)
    seen = set()
    for _ in range(300):
        damaged = bytearray(data)
        damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        seen.add(outcome(io.BytesIO(damaged), expected))
        cut = outcome(io.BytesIO(data[: generator.randrange(len(data))]), None)
        assert cut == "FormatError"
    assert seen == {"same", "FormatError", "ChecksumError"}
