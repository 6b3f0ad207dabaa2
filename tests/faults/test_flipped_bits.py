"""Every single bit of a file, flipped."""

from __future__ import annotations

import os

import pytest
from tests.faults.damage import OBJECTS, SAVERS, damaged_copies

CASES = [
    pytest.param(kind, writer, marks=[pytest.mark.slow] if kind == "optimizer" else [])
    for kind in OBJECTS
    for writer in SAVERS
]


@pytest.mark.parametrize(("kind", "writer"), CASES)
def test_every_bit(kind: str, writer: str) -> None:
    with damaged_copies(kind, writer) as (data, path, tally):
        file = os.open(path, os.O_WRONLY)
        for position, byte in enumerate(data):
            for bit in range(8):
                os.pwrite(file, bytes([byte ^ 1 << bit]), position)
                tally.look((position, bit))
            os.pwrite(file, bytes([byte]), position)
        os.close(file)
        assert tally.counts["damages"] == 8 * len(data)
