"""Real file systems on a disk that takes no more writes in the middle of a save, and then does again.

The kernel reports a page that it could not write once. From then on it takes the page for clean: a
second fsync succeeds, a read through the page cache shows the new bytes, and the disk has the old
ones. So what a save left is judged after a remount, which reads the disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.children import Raised, raised_by
from tests.faults.disks import FailingDisk, failing_disk
from tests.faults.harness import Tally
from tests.faults.numbered_saves import NumberedSaves, digests, hidden_names

import fastckpt

FILE_SYSTEMS = ("ext4", "xfs", "btrfs")

WAYS = ("file", "buffered file", "new step", "same step")
# "written": when all has been written and nothing been flushed.
_MOMENTS = ("before", "written", "after a while")
# About as long as a save takes.
_LONGEST_DELAY_SECS = 0.03
_NUMELS = (1_000, 250_000, 1_000_000)

# ENOSPC: a delayed allocation that failed. EROFS, EUCLEAN: the file system has had enough.
_ERRNOS = {errno.EIO, errno.ENOSPC, errno.EROFS, errno.EUCLEAN}


@dataclass(frozen=True)
class _Case:
    number: int
    way: str
    moment: str
    delay_secs: float
    numel: int


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Let saves fail on each file system in turn."""
    tally = Tally()
    for position, file_system in enumerate(FILE_SYSTEMS):
        share = len(range(position, cases, len(FILE_SYSTEMS)))
        tally.add(run_on(file_system, seed, share, directory))
    return tally


def run_on(file_system: str, seed: int, cases: int, directory: Path) -> Tally:
    """Let saves fail on one file system."""
    generator = random.Random(f"{file_system} {seed}")
    tally = Tally()
    with failing_disk(directory, file_system) as disk:
        for number in range(cases):
            case = _Case(
                number,
                way=WAYS[number % len(WAYS)],
                moment=_MOMENTS[number // len(WAYS) % len(_MOMENTS)],
                delay_secs=generator.uniform(0, _LONGEST_DELAY_SECS),
                numel=generator.choice(_NUMELS),
            )
            try:
                tally.count(f"{file_system}: {_try(disk, case)}")
            except Exception as error:
                tally.fail(f"{file_system}, seed {seed}, {case}: {error!r}")
                disk.remount()
    return tally


def _try(disk: FailingDisk, case: _Case) -> str:
    """Save, save again on the failing disk, see what is there, save again; returns what was raised."""
    directory = disk.path / f"case-{case.number}"
    directory.mkdir()
    saves = NumberedSaves(directory, case.way, numel=case.numel)
    saves.save(1)
    before = digests(directory)
    with _failing(disk, case) as noticed:
        raised = raised_by(lambda: saves.save(2, noticed))
    works_on = _works(disk)
    left = digests(directory) if works_on else {}
    disk.remount()
    found = saves.find()
    after = digests(directory)
    if raised is None:
        assert found == 2, f"save returned, and {found} is on the disk"
    elif raised.is_a(fastckpt.CommitUnknownError):
        assert found in (1, 2), f"{found} is on the disk"
    else:
        _check_words(raised, directory)
        assert found == 1, f"{found} is on the disk, though: {raised.words}"
        assert before.items() <= after.items(), f"changed: {before} to {after}"
        # A file system that has given up takes the removal of a file no more than anything else.
        assert not works_on or left == before, f"left behind: {sorted(left)}"
    saves.save(3)
    disk.remount()
    assert saves.find() == 3
    assert hidden_names(directory) == []
    shutil.rmtree(directory)
    ending = "" if works_on else ", and the file system gave up"
    if raised is None:
        return f"saved{ending}"
    return f"{errno.errorcode[raised.errno or 0]} {_phase(raised)}{ending}"


@contextlib.contextmanager
def _failing(disk: FailingDisk, case: _Case) -> Iterator[Callable[[int, int], None]]:
    """Let the disk fail from the case's moment on; gives what is to be told of the progress."""

    def note(done_nbytes: int, total_nbytes: int) -> None:
        if case.moment == "written" and done_nbytes == total_nbytes:
            disk.fail("write")

    timer = threading.Timer(case.delay_secs, disk.fail, ["write"])
    if case.moment == "before":
        disk.fail("write")
    # A step does not say how far it is.
    elif case.moment == "after a while" or case.way.endswith("step"):
        timer.start()
    try:
        yield note
    finally:
        timer.cancel()
        if timer.ident is not None:
            timer.join()
        disk.heal()


def _check_words(raised: Raised, directory: Path) -> None:
    assert raised.is_a(OSError), raised.trace
    assert raised.errno in _ERRNOS, raised.words
    assert str(raised.filename).startswith(str(directory)), raised.filename
    assert _phase(raised), raised.words


def _phase(raised: Raised) -> str:
    found = re.search(r", (while [^:]+)", raised.words)
    return found[1] if found else ""


def _works(disk: FailingDisk) -> bool:
    """Whether the file system goes on as if nothing had happened."""
    probe = disk.path / "probe"
    try:
        with probe.open("wb") as file:
            os.fsync(file.fileno())
        probe.unlink()
    except OSError:
        return False
    return True
