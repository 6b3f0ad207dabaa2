"""The power goes at any moment: what was saved is there, to the bit, on real file systems.

All that a file system writes to its disk is recorded. From that, disks are made as a power cut may
leave them, and mounted: see `tests/faults/power`.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults.power import wrong_writers
from tests.faults.power.block_log import BlockLog, open_log
from tests.faults.power.crash_states import SECTOR_NBYTES, CrashState, draw_states, unflushed
from tests.faults.power.file_saves import FileSaves
from tests.faults.power.images import replaying
from tests.faults.power.mounting import mounted
from tests.faults.power.recorder import FLUSH, HEADER, WRITE, WRITE_THROUGH
from tests.faults.power.recording import (
    FILE_SYSTEMS,
    Clock,
    make_fresh,
    need_recorded_disks,
    record,
    recorded_disk,
)
from tests.faults.power.runs import run_files, run_steps
from tests.faults.power.step_saves import SAVE_KEPT, STEP_REFUSED, StepSaves
from tests.faults.power.verdicts import DAMAGED, LEFT_BEHIND, LOST, MIXED, Moment, kinds_of
from tests.faults.requirements import on_each

STATES = 100
# They fail in most states, so fewer are enough.
STATES_OF_WRONG_WRITERS = 30
SEED = 20_261_121

# Ten seconds each, or several times as much where the machine has other work.
patient = pytest.mark.timeout(400)


@patient
@on_each(FILE_SYSTEMS)
def test_a_power_cut_never_costs_a_saved_file(file_system: str, tmp_path: Path) -> None:
    need_recorded_disks(file_system)
    tally = run_files(SEED, STATES, tmp_path, file_system)
    assert tally.failures == []
    assert tally.cases == STATES
    assert {"old", "new", "acknowledged"} <= tally.outcomes.keys()


@patient
@on_each(FILE_SYSTEMS)
def test_a_power_cut_never_costs_or_mixes_a_saved_step(file_system: str, tmp_path: Path) -> None:
    need_recorded_disks(file_system)
    tally = run_steps(SEED, STATES, tmp_path, file_system)
    assert tally.failures == []
    assert tally.cases == STATES
    assert {"new", "acknowledged", SAVE_KEPT, STEP_REFUSED} <= tally.outcomes.keys()


# The harness is of worth only if it finds those who do it wrong.


@pytest.mark.slow
@patient
@pytest.mark.parametrize(
    ("writer", "kinds"),
    [
        (wrong_writers.in_place, {LOST}),
        (wrong_writers.without_sync, {LOST}),
        (wrong_writers.without_file_sync, {DAMAGED}),
        (wrong_writers.without_directory_sync, {LOST}),
        (wrong_writers.under_a_name_of_a_checkpoint, {LEFT_BEHIND}),
    ],
)
def test_a_wrong_writer_of_files_is_found(
    writer: Callable[..., None], kinds: set[str], tmp_path: Path
) -> None:
    need_recorded_disks("ext4")
    draw = functools.partial(FileSaves, writer=writer)
    tally = run_files(SEED, STATES_OF_WRONG_WRITERS, tmp_path, "ext4", draw)
    assert kinds <= kinds_of(tally.failures)


@pytest.mark.slow
@patient
def test_a_step_of_files_that_are_saved_one_by_one_is_found(tmp_path: Path) -> None:
    need_recorded_disks("ext4")
    draw = functools.partial(StepSaves, writer=wrong_writers.each_file_for_itself)
    tally = run_steps(SEED, STATES_OF_WRONG_WRITERS, tmp_path, "ext4", draw)
    assert MIXED in kinds_of(tally.failures)


# What the harness itself rests on.


@patient
@on_each(FILE_SYSTEMS)
def test_what_is_synced_is_flushed_in_the_log(file_system: str, tmp_path: Path) -> None:
    """Through file system, loop device, FUSE and NBD: no cache between swallows a flush."""
    need_recorded_disks(file_system)
    marker = random.Random(SEED).randbytes(8192)

    def write_two_files(directory: Path, clock: Clock) -> None:
        clock.begin()
        for name, synced in (("one", True), ("two", False)):
            descriptor = os.open(directory / name, os.O_CREAT | os.O_WRONLY)
            os.write(descriptor, name.encode() + marker)
            if synced:
                os.fsync(descriptor)
            os.close(descriptor)
        clock.acknowledge()

    recording = record(tmp_path / "recording", file_system, write_two_files)
    with open_log(recording.log) as log:
        acknowledged = log.count_at(recording.acknowledged[0])
        durable = log.entries[: log.count_durable(acknowledged)]
        written = b"".join(map(log.bytes_of, durable))
        assert b"one" + marker in written
        assert b"two" + marker not in written
        assert durable[-1].kind == FLUSH


@patient
@on_each(FILE_SYSTEMS)
def test_the_whole_log_makes_the_disk_that_was_recorded(file_system: str, tmp_path: Path) -> None:
    need_recorded_disks(file_system)
    fresh, disk = tmp_path / "fresh", tmp_path / "disk"
    make_fresh(fresh, file_system)
    disk.write_bytes(fresh.read_bytes())
    mount_point = tmp_path / "mounted"
    mount_point.mkdir()
    with recorded_disk(disk, tmp_path / "log") as device, mounted(device, mount_point, file_system):
        for number in range(20):
            (mount_point / str(number % 7)).write_bytes(os.urandom(100_000 * number))
    with open_log(tmp_path / "log") as log, replaying(log, fresh) as replay:
        image = replay.make(CrashState(cut=len(log.entries), lost=frozenset()))
        assert os.pread(image, disk.stat().st_size, 0) == disk.read_bytes()


def test_a_crash_state_has_all_that_was_flushed_and_any_part_of_the_rest(tmp_path: Path) -> None:
    """On a disk that holds zeros, write number i puts bytes i into two sectors, and some again."""
    fresh, path = tmp_path / "fresh", tmp_path / "log"
    fresh.write_bytes(bytes(64 * SECTOR_NBYTES))
    with path.open("wb") as file:
        for i in range(1, 30):
            kind = WRITE_THROUGH if i % 9 == 0 else FLUSH if i % 7 == 0 else WRITE
            data = b"" if kind == FLUSH else bytes([i]) * (2 * SECTOR_NBYTES)
            file.write(HEADER.pack(kind, i % 20 * 2 * SECTOR_NBYTES, len(data)) + data)
    seen = set()
    with open_log(path) as log, replaying(log, fresh) as replay:
        states = draw_states(log, [0, len(log.entries)], 300, random.Random(SEED))
        assert len(set(states)) == 300
        for state in states:
            descriptor = replay.make(state)
            sectors = [os.pread(descriptor, SECTOR_NBYTES, i * SECTOR_NBYTES) for i in range(64)]
            seen |= {judge_sector(log, state, i, sector) for i, sector in enumerate(sectors)}
    assert seen == {
        "never written",
        "flushed",
        "not flushed",
        "lost",
        "torn away",
        "written through",
    }


def judge_sector(log: BlockLog, state: CrashState, sector: int, found: bytes) -> str:
    """Check a sector by going through the log without any of the harness's own replay."""
    expected, fate = 0, "never written"
    durable = log.count_durable(state.cut)
    losable = unflushed(log, state.cut)
    assert set(losable) <= set(range(durable, state.cut))
    for i, entry in enumerate(log.entries[: state.cut]):
        if entry.kind == FLUSH or entry.offset // SECTOR_NBYTES not in (sector, sector - 1):
            continue
        is_first = entry.offset == sector * SECTOR_NBYTES
        tear = state.tear
        if i in state.lost:
            fate = "lost"
        elif tear is not None and tear.entry == i and tear.keeps_beginning != is_first:
            fate = "torn away"
        else:
            expected = i + 1
            fate = "flushed" if i < durable else "not flushed"
            if i not in losable and i >= durable:
                fate = "written through"
    assert found == bytes([expected]) * SECTOR_NBYTES, (state, sector)
    return fate


@patient
def test_an_interruption_leaves_no_mount_device_or_process(tmp_path: Path) -> None:
    need_recorded_disks("ext4")

    def interrupt(directory: Path, clock: Clock) -> None:
        (directory / "open").open("wb")
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "recording", "ext4", interrupt)
    assert left_behind(tmp_path) == []


@patient
def test_a_look_that_is_interrupted_leaves_no_mount_or_device(tmp_path: Path) -> None:
    need_recorded_disks("ext4")

    class Interrupted(FileSaves):
        def check(self, directory: Path, moment: Moment) -> str:
            assert left_behind(tmp_path) != []
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_files(SEED, 1, tmp_path, "ext4", Interrupted)
    assert left_behind(tmp_path) == []


def left_behind(directory: Path) -> list[str]:
    """Return mounts, loop devices and processes that have to do with a directory."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    backing = [read_or_nothing(path) for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    commands = [read_or_nothing(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    return [line for line in mounts + backing + commands if str(directory) in line]


def read_or_nothing(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # it has ended meanwhile
        return ""
