"""Single bits of larger files, a sample of them: verify finds each, and no load gives another tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.faults import bit_flips
from tests.faults.damage import fast_directory
from tests.faults.requirements import need_program

# The program that flips is built first, in the profile that is tested nowhere else.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Reading 1 MB three times takes its time.
CASES = {"64 KB": 80_000, "1 MB": 10_000}
# The two ways to load.
WAYS = ("read", "map")


@pytest.mark.parametrize("name", bit_flips.GOLDEN)
def test_flipped_bits_of_larger_files(name: str) -> None:
    need_program("cargo")
    with fast_directory() as directory:
        tally = bit_flips.flip(name, 0, CASES[name], directory)
    print(tally.outcomes)
    assert tally.failures == []
    assert tally.cases == CASES[name]
    for way in WAYS:
        seen = {key: n for key, n in tally.outcomes.items() if key.startswith(f"{way}: ")}
        assert sum(seen.values()) == CASES[name]
        # Most bits are a tensor's, some are the directory's, and a few nobody needs to load.
        assert seen[f"{way}: ChecksumError"] > 0.9 * CASES[name]
        assert seen[f"{way}: FormatError"] > 0
        assert seen[f"{way}: same"] > 0


def test_parts_of_the_bits_are_unlike_and_repeat(tmp_path: Path) -> None:
    need_program("cargo")
    first, again = (bit_flips.flip("64 KB", 3, 500, tmp_path) for _ in range(2))
    assert first == again
    assert bit_flips.flip("64 KB", 4, 500, tmp_path).outcomes != first.outcomes


def test_a_run_shares_its_cases_among_the_files(tmp_path: Path) -> None:
    need_program("cargo")
    tally = bit_flips.run(1, 400, tmp_path)
    assert tally.failures == []
    assert 398 <= tally.cases <= 400
    assert tally.outcomes["read: ChecksumError"] > 300
