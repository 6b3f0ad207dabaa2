"""File systems that are shut down in the middle of a save: what was not on the disk is gone.

Until it is unmounted, every call on such a file system fails. Mounting it again replays the journal,
as after a power cut; a shutdown may write the journal out first, or lose that too.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import shutil
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.children import Outcome, start, wait_for
from tests.faults.disks import Disk, loop_disk
from tests.faults.harness import Tally
from tests.faults.numbered_saves import NumberedSaves, hidden_names

import fastckpt

FILE_SYSTEMS = ("ext4", "xfs")

# <linux/fs.h> EXT4_IOC_SHUTDOWN and <xfs_fs.h> XFS_IOC_GOINGDOWN are one: _IOR('X', 125, __u32).
_SHUTDOWN = 0x8004_587D
WITH_JOURNAL = 1
WITHOUT_JOURNAL = 2

_WAYS = ("file", "new step", "same step")
_NUMELS = (1000, 250_000, 1_000_000)
# Some tens of saves of the smallest, a few of the largest.
_LONGEST_DELAY_SECS = 0.1


@dataclass(frozen=True)
class _Case:
    number: int
    way: str
    numel: int
    delay_secs: float
    flag: int


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Shut file systems down while a child saves on and on; half of the cases each."""
    tally = Tally()
    for position, file_system in enumerate(FILE_SYSTEMS):
        generator = random.Random(f"{file_system} {seed}")
        with loop_disk(directory, file_system) as disk:
            for number in range(position, cases, len(FILE_SYSTEMS)):
                case = _Case(
                    number,
                    way=generator.choice(_WAYS),
                    numel=generator.choice(_NUMELS),
                    delay_secs=generator.uniform(0, _LONGEST_DELAY_SECS),
                    flag=generator.choice((WITH_JOURNAL, WITHOUT_JOURNAL)),
                )
                try:
                    tally.count(f"{file_system}: {_try(disk, case)}")
                except Exception as error:
                    tally.fail(f"{file_system}, seed {seed}, {case}: {error!r}")
                    disk.remount()
    return tally


def _try(disk: Disk, case: _Case) -> str:
    """Shut down in the middle of a save; returns whether what is found was acknowledged."""
    directory = disk.path / f"case-{case.number}"
    directory.mkdir()
    saves = NumberedSaves(directory, case.way, numel=case.numel)
    acknowledged = disk.path.with_name(f"acknowledged-{case.number}")
    saves.save(0)
    child = start(lambda: _save_on_and_on(saves, acknowledged))
    wait_for(acknowledged.exists)
    time.sleep(case.delay_secs)
    shut_down(disk, case.flag)
    _check_error(child.outcome(), directory)
    last = int(acknowledged.read_text())
    disk.remount()
    found = saves.find()
    assert found in (last, last + 1), f"{last} was acknowledged, and {found} is there"
    assert fastckpt.verify(directory).damages == ()
    saves.save(found + 1)
    disk.remount()
    assert saves.find() == found + 1
    assert hidden_names(directory) == []
    shutil.rmtree(directory)
    acknowledged.unlink()
    return "the acknowledged" if found == last else "the next"


def _save_on_and_on(saves: NumberedSaves, acknowledged: Path) -> None:
    file = os.open(acknowledged, os.O_WRONLY | os.O_CREAT)
    number = 0
    while True:
        os.pwrite(file, b"%d" % number, 0)
        number += 1
        saves.save(number)
        _remove_step(saves.directory, saves.step_of(number) - 2)


def _remove_step(directory: Path, step: int) -> None:
    """Make room: the disk is small. Errors of this are not a save's."""
    with contextlib.suppress(OSError):
        for path in directory.glob(f"*_{step:06d}*"):
            path.unlink()


def shut_down(disk: Disk, flag: int) -> None:
    """Shut a file system down; its journal is written out first, or lost with the rest."""
    root = os.open(disk.path, os.O_RDONLY)
    try:
        fcntl.ioctl(root, _SHUTDOWN, struct.pack("=I", flag))
    finally:
        os.close(root)


def _check_error(outcome: Outcome, directory: Path) -> None:
    raised = outcome.raised
    assert raised is not None, f"the saver did not raise: {outcome}"
    assert raised.is_a(OSError), raised.trace
    assert raised.errno in (errno.EIO, errno.EROFS), raised.words
    # That the directory exists is made durable in the one above it.
    assert Path(str(raised.filename)).is_relative_to(directory.parent), raised.filename
    assert ", while " in raised.words, raised.words
