"""Disks without room: what is short is said before anything is written, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults import full_disks
from tests.faults.children import raised_by
from tests.faults.disks import loop_image, memory_disk, need_loop_disks, need_memory_disks
from tests.faults.full_disks import Saves, free_nbytes
from tests.faults.harness import Tally
from tests.faults.numbered_saves import digests
from tests.faults.requirements import need_program

SEED = 15
# A quarter of them each: a file, one without fsync, a new step, a step in the place of an old one.
CASES = {"tmpfs": 400, "ext4": 100, "ext2": 60, "btrfs quota": 100}


def swept(kind: str, directory: Path) -> Tally:
    tally = full_disks.run_on(kind, SEED, CASES[kind], directory)
    print(tally)
    assert tally.failures == []
    assert tally.cases == CASES[kind]
    assert tally.outcomes[f"{kind}: saved"] > 0
    return tally


@pytest.mark.slow
def test_a_file_system_of_every_size(tmp_path: Path) -> None:
    need_memory_disks()
    tally = swept("tmpfs", tmp_path)
    assert tally.outcomes["tmpfs: refused before anything was written"] > CASES["tmpfs"] // 3


def test_a_disk_that_keeps_room_for_itself(tmp_path: Path) -> None:
    need_loop_disks("ext4")
    tally = swept("ext4", tmp_path)
    # ext4 says that what it keeps for itself is free, and then refuses to reserve it.
    assert tally.outcomes["ext4: refused before anything was written"] > 0
    assert tally.outcomes["ext4: full while reserving disk space"] > 0


@pytest.mark.slow
def test_a_disk_that_is_full_in_the_middle_of_a_file(tmp_path: Path) -> None:
    need_loop_disks("ext2")
    assert swept("ext2", tmp_path).outcomes["ext2: full while writing"] > 0


@pytest.mark.slow
def test_a_quota(tmp_path: Path) -> None:
    need_loop_disks("btrfs")
    need_program("btrfs")
    outcomes = swept("btrfs quota", tmp_path).outcomes
    assert outcomes["btrfs quota: full while reserving disk space"] > 0


@pytest.mark.parametrize("way", ["file", "same step", "new step"])
def test_room_that_somebody_else_takes_in_the_middle(way: str, tmp_path: Path) -> None:
    need_loop_disks("ext4")
    with loop_image(tmp_path, "ext4") as disk:
        # Two large files, in the order in which they are written: the shard, the model.
        saves = Saves(disk / "saves", way, numel=10_000_000, shard_numel=10_000_000)
        before, free = digests(saves.directory), free_nbytes(disk)
        with taking_room(disk, leave_nbytes=30 << 20):
            raised = raised_by(saves.save_next)
            taken = (disk / "taken").stat().st_blocks * 512
        if way == "file":
            # Its room was reserved before.
            assert raised is None
            return
        assert raised is not None
        assert raised.errno == errno.ENOSPC
        assert Path(raised.filename or "").name.startswith("model_")
        needed, free_then = full_disks.figures(raised)
        assert needed in saves.file_nbytes
        assert free_then is not None
        assert free_then < needed
        assert digests(saves.directory) == before
        assert abs(free_nbytes(disk) + taken - free) < 1 << 16
        (disk / "taken").unlink()
        saves.save_next()
        saves.tidy()


class taking_room:
    """Take all but so much room once the first large file of a save has its own."""

    def __init__(self, disk: Path, *, leave_nbytes: int) -> None:
        self._disk = disk
        self._leave_nbytes = leave_nbytes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        enough = self._leave_nbytes
        while not self._stop.is_set():
            if any(nbytes > enough for nbytes in self._temporary_nbytes()):
                with (self._disk / "taken").open("wb") as file:
                    nbytes = full_disks.available_nbytes(self._disk) - self._leave_nbytes
                    os.posix_fallocate(file.fileno(), 0, nbytes)
                return
            time.sleep(0.0005)

    def _temporary_nbytes(self) -> Iterator[int]:
        for path in (self._disk / "saves").glob(".fastckpt-*.tmp"):
            try:
                yield path.stat().st_blocks * 512
            except FileNotFoundError:
                continue


def filled_with_names(disk: Path) -> list[Path]:
    paths = [disk / f"name-{number}" for number in range(os.statvfs(disk).f_ffree)]
    for path in paths:
        path.touch()
    return paths


@pytest.mark.parametrize("way", ["file", "same step", "new step"])
def test_a_file_system_without_room_for_names(way: str, tmp_path: Path) -> None:
    """Each name takes an inode here: of new files, and those that keep what is replaced."""
    need_memory_disks()
    phases = set()
    with memory_disk(tmp_path, "tmpfs", "size=64m,nr_inodes=100") as disk:
        saves = Saves(disk / "saves", way, numel=1000, shard_numel=1000)
        for path in filled_with_names(disk):
            before, free = digests(saves.directory), os.statvfs(disk).f_ffree
            raised = raised_by(saves.save_next)
            if raised is None:
                break
            assert raised.errno == errno.ENOSPC
            assert str(raised.filename).startswith(str(saves.directory))
            assert "are needed" not in raised.words
            phases.add(raised.words.partition(", while ")[2].partition(":")[0])
            assert digests(saves.directory) == before
            assert os.statvfs(disk).f_ffree == free
            path.unlink()
        else:
            pytest.fail("no room, whatever was removed")
        saves.tidy()
    expected = {"creating the temporary file"}
    if way == "same step":
        expected.add("keeping the file that is replaced")
    assert phases == expected
