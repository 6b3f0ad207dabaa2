"""Disks and quotas with too little room: none at all, not quite enough, just enough.

How much there is to spare goes in steps from nothing to 1 MB more than the save needs. Whatever
comes of it, the checkpoint that was there is there, and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.faults.children import Raised, raised_by
from tests.faults.disks import loop_disk, memory_disk
from tests.faults.disks import run as run_program
from tests.faults.harness import Tally
from tests.faults.numbered_saves import NumberedSaves, digests, hidden_names

# "ext2" cannot reserve space: there the disk is full in the middle of a file.
KINDS = ("tmpfs", "ext4", "ext2", "btrfs quota")

_WAYS = ("file", "unsynced file", "same step", "new step")
_MARGIN_NBYTES = 1 << 20
# ext2 says only while it is written that a file takes blocks to list its blocks: 9 of 1 KiB here.
_EXT2_MARGIN_NBYTES = 24 << 10
# States are numbered from here, in digits whose number stays the same: so do the sizes of files.
_FIRST = 100_000
_MODEL_NUMEL = 250_000
_SHARD_NUMEL = 100_000
# ext4 keeps 2 % for itself, of which not even root gets any: it should be less than the files.
_IMAGE_NBYTES = 48 << 20
# What a file system may take beside the bytes of the files. A quota of btrfs counts ahead.
_SLACK_NBYTES = {"tmpfs": 64 << 10, "btrfs quota": 600 << 10}
_DEFAULT_SLACK_NBYTES = 128 << 10
# In these it is names for which there is no room.
_PHASES_OF_NAMES = (
    "creating the temporary file",
    "keeping the file that is replaced",
    "renaming the temporary file",
)
# What is set aside for a manifest before it is written.
_MANIFEST_NBYTES = 4096


class Room(Protocol):
    """A directory on a file system that can be filled.

    Attributes:
        path: The directory.
    """

    path: Path

    def leave(self, nbytes: int) -> None:
        """Make this the room that is left: not less, and hardly more."""

    def left(self) -> int:
        """Return how much is left."""


@dataclass(frozen=True)
class _Case:
    number: int
    way: str
    spare_nbytes: int


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Fill each kind of disk in turn."""
    tally = Tally()
    for position, kind in enumerate(KINDS):
        tally.add(run_on(kind, seed, len(range(position, cases, len(KINDS))), directory))
    return tally


def run_on(kind: str, seed: int, cases: int, directory: Path) -> Tally:
    """Save to one kind of disk with more and more room."""
    generator = random.Random(f"{kind} {seed}")
    tally = Tally()
    with room_on(kind, directory) as room:
        all_saves = [Saves(room.path / way.replace(" ", "-"), way) for way in _WAYS]
        for number in range(cases):
            way, saves = _WAYS[number % len(_WAYS)], all_saves[number % len(_WAYS)]
            case = _Case(number, way, _spare(kind, saves.nbytes, number / cases, generator))
            try:
                outcome = _try(kind, room, saves, case)
                room.leave(4 * _MARGIN_NBYTES)
                saves.tidy()
            except Exception as error:
                tally.fail(f"{kind}, seed {seed}, {case}: {error!r}")
                room.leave(4 * _MARGIN_NBYTES)
            else:
                tally.count(f"{kind}: {outcome}")
    return tally


def _spare(kind: str, needed: int, share: float, generator: random.Random) -> int:
    """Return how much room the case leaves: a share of the range, and a little beside it."""
    start, end = 0, needed + _MARGIN_NBYTES
    if kind == "ext2":
        start, end = needed - _EXT2_MARGIN_NBYTES, needed + _EXT2_MARGIN_NBYTES
    spare = start + (end - start) * share
    return int(spare) + generator.randrange(4096)


def _try(kind: str, room: Room, saves: Saves, case: _Case) -> str:
    """Save with so much room; returns what came of it."""
    room.leave(case.spare_nbytes)
    left, free = room.left(), free_nbytes(room.path)
    before = digests(saves.directory)
    usage, changed_ns = _usage(room.path), saves.directory.stat().st_mtime_ns
    raised = raised_by(saves.save_next)
    if raised is None:
        assert saves.find() == saves.saved, "save returned, and something else is there"
        assert left >= saves.nbytes, f"{left} bytes were enough"
        return "saved"
    slack = _SLACK_NBYTES.get(kind, _DEFAULT_SLACK_NBYTES)
    assert left < saves.nbytes + slack, f"{left} bytes were not enough: {raised.words}"
    phase = _check_words(raised, saves)
    assert saves.find() == saves.saved
    if phase == "renaming the temporary file" and saves.is_step:
        # Some have their names already. What they replaced is kept, as `find` has seen.
        return f"full while {phase}"
    assert digests(saves.directory) == before, f"changed, though: {raised.words}"
    assert _usage_is(usage, room.path), f"{usage} before, {_usage(room.path)} after"
    if free < saves.nbytes and kind != "btrfs quota":
        assert phase == "checking the free space", raised.words
    if phase == "checking the free space":
        assert saves.directory.stat().st_mtime_ns == changed_ns, "something was created"
        assert figures(raised)[1] == free, f"{free} bytes are free: {raised.words}"
        return "refused before anything was written"
    return f"full while {phase}"


def _check_words(raised: Raised, saves: Saves) -> str:
    """Check what is said of a save that failed; returns what was being done."""
    assert raised.is_a(OSError), raised.trace
    assert raised.errno in (errno.ENOSPC, errno.EDQUOT), raised.words
    assert str(raised.filename).startswith(str(saves.directory)), raised.filename
    found = re.search(r", while ([^:]+)", raised.words)
    assert found is not None, raised.words
    phase = found[1]
    needed, free = figures(raised)
    if phase in _PHASES_OF_NAMES:
        assert needed is None, raised.words
    elif phase == "checking the free space":
        assert needed is not None
        assert saves.nbytes <= needed <= saves.nbytes + _MANIFEST_NBYTES, raised.words
    else:
        assert needed in saves.file_nbytes, f"{saves.file_nbytes}: {raised.words}"
        assert (free is None) == (raised.errno == errno.EDQUOT), raised.words
    return phase


def figures(raised: Raised) -> tuple[int | None, int | None]:
    """Return how many bytes were needed and how many were free, as far as that is said."""
    found = re.search(
        r": ([\d,]+) bytes are needed(?: and ([\d,]+) are free)?, while ", raised.words
    )
    if found is None:
        return None, None
    free = None if found[2] is None else int(found[2].replace(",", ""))
    return int(found[1].replace(",", "")), free


class Saves(NumberedSaves):
    """Saves that all have one size.

    Attributes:
        saved: Which was saved last.
        nbytes: Size of what one writes, in bytes.
        file_nbytes: Size of each of its files.
    """

    def __init__(
        self,
        directory: Path,
        way: str,
        *,
        numel: int = _MODEL_NUMEL,
        shard_numel: int = _SHARD_NUMEL,
    ) -> None:
        super().__init__(directory, way, numel=numel, shard_numel=shard_numel)
        directory.mkdir()
        self.saved = _FIRST
        self.save(self.saved)
        self.file_nbytes = sorted(path.stat().st_size for path in directory.iterdir())
        self.nbytes = sum(self.file_nbytes)

    def save_next(self) -> None:
        """Save the next number; it is the last that was saved if that succeeds."""
        self.save(self.saved + 1)
        self.saved += 1

    def tidy(self) -> None:
        """Remove the steps but the last, and what a save has left that could not finish."""
        for path in self.directory.glob("*_*"):
            if f"_{self.step_of(self.saved):06d}" not in path.name:
                path.unlink()
        if hidden_names(self.directory):
            self.save_next()
        assert hidden_names(self.directory) == []
        assert self.find() == self.saved


@contextlib.contextmanager
def room_on(kind: str, directory: Path) -> Iterator[Room]:
    """Make a file system that can be filled."""
    if kind == "tmpfs":
        with memory_disk(directory, "tmpfs", "size=64m") as path:
            yield _Tmpfs(path)
    elif kind == "btrfs quota":
        with loop_disk(directory, "btrfs") as disk:
            yield _BtrfsQuota(disk.path)
    else:
        with loop_disk(directory, kind, _IMAGE_NBYTES) as disk:
            yield _Filled(disk.path)


class _Tmpfs:
    """Its size can be changed while it is mounted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def leave(self, nbytes: int) -> None:
        found = os.statvfs(self.path)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        run_program("mount", "-o", f"remount,size={used + nbytes}", self.path)

    def left(self) -> int:
        return free_nbytes(self.path)


class _Filled:
    """A file takes the room that is not left."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"
        self._filler.touch()

    def leave(self, nbytes: int) -> None:
        # The blocks that list its blocks, and those that the file system keeps, come into it.
        for _ in range(20):
            surplus = self.left() - nbytes
            if 0 <= surplus < 4096:
                return
            self._resize(surplus)
        raise AssertionError(f"{self.left()} bytes are left, and not {nbytes}")

    def _resize(self, by_nbytes: int) -> None:
        now = self._filler.stat().st_size
        with self._filler.open("r+b", buffering=0) as file:
            if by_nbytes < 0:
                file.truncate(max(0, now + by_nbytes - 1024))
            else:
                # Written, since ext2 reserves nothing.
                with contextlib.suppress(OSError):
                    os.pwrite(file.fileno(), bytes(by_nbytes), now)
            os.fsync(file.fileno())

    def left(self) -> int:
        return available_nbytes(self.path)


class _BtrfsQuota:
    """A limit on a subvolume. The file system has room enough, and says so."""

    def __init__(self, path: Path) -> None:
        self._root = path
        run_program("btrfs", "quota", "enable", path)
        run_program("btrfs", "subvolume", "create", path / "limited")
        self.path = path / "limited"
        self._limit = 0

    def leave(self, nbytes: int) -> None:
        self._group()
        group, used = self._group()
        self._limit = used + nbytes
        # By its number and on the whole file system: this has to work where nothing is left.
        run_program("btrfs", "qgroup", "limit", str(self._limit), group, self._root)

    def left(self) -> int:
        return self._limit - self._group()[1]

    def _group(self) -> tuple[str, int]:
        run_program("btrfs", "filesystem", "sync", self._root)
        shown = run_program("btrfs", "qgroup", "show", "--raw", "-f", self.path)
        group, referenced = shown.splitlines()[-1].split()[:2]
        return group, int(referenced)


def free_nbytes(path: Path) -> int:
    """Return how much root is told to be free."""
    found = os.statvfs(path)
    return found.f_bfree * found.f_frsize


def available_nbytes(path: Path) -> int:
    """Return how much can be had: without what the file system keeps for itself."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _usage(path: Path) -> tuple[int, int]:
    found = os.statvfs(path)
    return found.f_bfree, found.f_ffree


def _usage_is(expected: tuple[int, int], path: Path) -> bool:
    """Whether as much is free as before; some file systems take a while over it."""
    ends = time.monotonic() + 60
    while _usage(path) != expected:
        if time.monotonic() > ends:
            return False
        run_program("sync", "-f", path)
        time.sleep(0.02)
    return True
