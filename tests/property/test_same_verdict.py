"""Thousands of changed archives: ours, Python's zipfile and torch understand each in the same way."""

from __future__ import annotations

import pytest
from tests.faults.damage import fast_directory
from tests.property.same_verdict import run

CASES = 5000
SEED = 20261


@pytest.mark.timeout(300)
def test_what_is_accepted_is_accepted_by_others_and_equal() -> None:
    with fast_directory() as directory:
        tally = run(SEED, CASES, directory)
    print(tally)
    assert tally.failures == []
    assert tally.cases == CASES
    for way in ("damaged", "rewritten", "zipped", "forged"):
        # Each way of changing leads to files that load and to files that do not.
        assert tally.outcomes[f"{way}: equal"] > 10
        assert tally.outcomes[f"{way}: FormatError"] > 20
    for way in ("rewritten", "zipped"):
        assert tally.outcomes[f"{way}: UnsafePickleError"] > 20
    # What the checksums are for.
    assert tally.outcomes["damaged: ChecksumError, loaded by torch"] > 10
