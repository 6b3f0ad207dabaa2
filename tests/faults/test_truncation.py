"""Files that are too short, too long, or have a hole: never taken for what was saved."""

from __future__ import annotations

import io
import random

import pytest
from tests.faults import truncation
from tests.faults.damage import SAVERS, archive_of, damaged_copies, fast_directory, outcome

import fastckpt

# Parts in which zeros appear: what some disks write at once, and less.
BLOCKS = [64, 512, 4096]


@pytest.mark.parametrize("writer", SAVERS)
def test_every_length(writer: str) -> None:
    with damaged_copies("golden", writer) as (data, path, judge):
        for length in range(len(data)):
            path.write_bytes(data[:length])
            judge.look(f"cut at {length}")
        assert judge.tally.cases == len(data)
        assert judge.tally.outcomes["load: FormatError"] == len(data)
        assert judge.tally.outcomes["mmap: FormatError"] == len(data)


@pytest.mark.parametrize("writer", SAVERS)
def test_a_tail_of_zeros(writer: str) -> None:
    """What a power cut leaves of a file whose size was written and whose data was not."""
    with damaged_copies("golden", writer) as (data, path, judge):
        # The file itself ends in zeros.
        last = len(data.rstrip(b"\0"))
        for length in sorted({*range(0, last, 64), *range(last - 64, last)}):
            path.write_bytes(data[:length].ljust(len(data), b"\0"))
            judge.look(f"zeros from {length} on")
        assert judge.tally.outcomes["load: same"] == judge.tally.outcomes["mmap: same"] == 0


@pytest.mark.parametrize("nbytes", BLOCKS)
def test_a_hole_of_zeros(nbytes: int) -> None:
    """Blocks in the middle that never reached the disk."""
    with damaged_copies("golden", "fastckpt") as (data, path, judge):
        for start in range(0, len(data) - 32, 32):
            holed = data[:start] + bytes(min(nbytes, len(data) - start)) + data[start + nbytes :]
            if holed != data:  # padding is zeros already
                path.write_bytes(holed)
                judge.look(f"{nbytes} bytes of zeros at {start}")
        assert judge.tally.cases > 50


@pytest.mark.parametrize("nbytes", BLOCKS)
def test_a_block_that_is_left_out(nbytes: int) -> None:
    with damaged_copies("golden", "torch") as (data, path, judge):
        for start in range(0, len(data) - nbytes, 32):
            path.write_bytes(data[:start] + data[start + nbytes :])
            judge.look(f"{nbytes} bytes missing at {start}")
        # 4096 bytes: nearly all there is.
        assert judge.tally.cases > (50 if nbytes < 4096 else 0)


@pytest.mark.parametrize("writer", SAVERS)
@pytest.mark.parametrize("place", ["before", "after"])
def test_junk_around_the_archive(place: str, writer: str) -> None:
    generator = random.Random(0)
    with damaged_copies("weights", writer) as (data, path, judge):
        # A comment of a zip file has at most 65,535 bytes: with more, no reader finds the end.
        for nbytes in (1, 2, 3, 4, 21, 22, 63, 64, 512, 4096, 65_535, 65_536, 200_000):
            for junk in (generator.randbytes(nbytes), bytes(nbytes), (b"PK\5\6" * nbytes)[:nbytes]):
                path.write_bytes(junk + data if place == "before" else data + junk)
                judge.look(f"{nbytes} bytes {junk[:8]!r}... {place} the archive")
        if place == "before":
            assert judge.tally.outcomes["load: same"] == 0


def test_one_archive_after_another() -> None:
    """Two files in one, as a copy that was appended instead of written: neither is taken."""
    expected, data = archive_of("weights", "fastckpt")
    with fast_directory() as directory:
        path = directory / "model.pt"
        path.write_bytes(data + data)
        assert not fastckpt.verify(path).ok
        assert outcome(path, expected) == "FormatError"
    assert outcome(io.BytesIO(data + data), expected) == "FormatError"


def test_random_lengths_of_a_larger_file() -> None:
    with fast_directory() as directory:
        tally = truncation.run(1, 500, directory)
    print(tally.outcomes)
    assert tally.failures == []
    assert tally.cases == 500
    assert tally.outcomes["detected"] > 450
    # Without its end an archive has no directory; with zeros there, it has none either.
    assert tally.outcomes["load: FormatError"] == tally.outcomes["detected"]
