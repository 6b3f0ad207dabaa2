"""Scattered bytes, bursts and sectors of a file, damaged at random: all found, and none loaded."""

from __future__ import annotations

import pytest
from tests.faults import sector_damage
from tests.faults.damage import fast_directory

CASES = 10_000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_damage_of_many_kinds() -> None:
    with fast_directory() as directory:
        tally = sector_damage.run(1, CASES, directory)
    print(dict(sorted(tally.outcomes.items())))
    assert tally.failures == []
    assert tally.cases == CASES
    # Each kind has had its share, and few cases were none.
    for kind in sector_damage.DAMAGES:
        assert tally.outcomes[kind] > CASES / 2 / len(sector_damage.DAMAGES), kind
    assert tally.outcomes["nothing changed"] < CASES / 20
    assert tally.outcomes["load: ChecksumError"] > CASES / 4
    assert tally.outcomes["load: FormatError"] > CASES / 20
    # One that hits nothing but padding does no harm.
    assert tally.outcomes["load: same"] > 0


def test_the_same_seed_gives_the_same_cases() -> None:
    with fast_directory() as directory:
        first, again, other = (sector_damage.run(seed, 60, directory) for seed in (2, 2, 3))
    assert first == again
    assert first.outcomes != other.outcomes
