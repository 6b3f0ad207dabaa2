"""A disk that cannot be read: an error that says so, never a signal, and never other tensors."""

from __future__ import annotations

from pathlib import Path

from tests.faults import read_errors
from tests.faults.disks import need_failing_disks
from tests.faults.requirements import on_each

SEED = 25
ROUNDS = 20


@on_each(read_errors.FILE_SYSTEMS)
def test_what_cannot_be_read_is_an_error_and_good_again_when_it_can(
    file_system: str, tmp_path: Path
) -> None:
    need_failing_disks(file_system)
    tally = read_errors.run_on(file_system, SEED, ROUNDS, tmp_path)
    print(tally)
    assert tally.failures == []
    assert tally.cases == ROUNDS
    # In the middle, and not at all: what is cached needs no disk. Whether opening needs it too is the
    # file system's affair.
    assert tally.outcomes[f"{file_system}: EIO while reading"] > 0
    assert tally.outcomes[f"{file_system}: loaded"] > 0
