"""A file system that is shut down during a save: an error, and the last acknowledged save or the next."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest
from tests.faults import shut_downs
from tests.faults.children import wait_for
from tests.faults.disks import Disk, loop_disk, need_loop_disks
from tests.faults.numbered_saves import NumberedSaves
from tests.faults.tracing import need_strace, traced

import fastckpt

SEED = 26
CASES = 50
# Within this time the file system is shut down, once a file has been renamed.
DELAY_MICROSECS = 3_000_000


@pytest.mark.slow
def test_a_shutdown_costs_no_acknowledged_save(tmp_path: Path) -> None:
    need_loop_disks(*shut_downs.FILE_SYSTEMS)
    tally = shut_downs.run(SEED, CASES, tmp_path)
    print(tally)
    assert tally.failures == []
    assert tally.cases == CASES
    for file_system in shut_downs.FILE_SYSTEMS:
        # The save that was interrupted had mostly not come so far as to be there.
        assert tally.outcomes[f"{file_system}: the acknowledged"] > 0


@pytest.mark.parametrize("flag", [shut_downs.WITH_JOURNAL, shut_downs.WITHOUT_JOURNAL])
@pytest.mark.parametrize("file_system", shut_downs.FILE_SYSTEMS)
def test_a_shutdown_between_the_rename_and_its_fsync(
    file_system: str, flag: int, tmp_path: Path
) -> None:
    """The new file is there to see, but whether it will be after a mount is not known."""
    need_loop_disks(file_system)
    need_strace()
    with loop_disk(tmp_path, file_system) as disk:
        saves = NumberedSaves(disk.path, "file", numel=1000)
        saves.save(1)
        shutting = threading.Thread(target=shut_down_after_rename, args=(disk, flag))
        shutting.start()
        delay = ["-e", "trace=fsync", "-e", f"inject=fsync:delay_enter={DELAY_MICROSECS}"]
        raised = traced(lambda: saves.save(2), [*delay, "-P", str(disk.path)], tmp_path / "log")
        shutting.join()
        disk.remount()
        found = saves.find()
        assert found == (2 if flag == shut_downs.WITH_JOURNAL else 1)
        assert raised is not None, f"save returned, and {found} is on the disk"
        assert raised.is_a(fastckpt.CommitUnknownError)
        assert raised.errno == errno.EIO
        saves.save(3)
        disk.remount()
        assert saves.find() == 3


def shut_down_after_rename(disk: Disk, flag: int) -> None:
    path = disk.path / "model.pt"
    before = path.stat().st_ino
    wait_for(lambda: path.stat().st_ino != before)
    shut_downs.shut_down(disk, flag)
