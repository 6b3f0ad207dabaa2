"""A disk that refuses to take what was written: the save raises, and the old checkpoint is on the disk."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from tests.faults import fsync_errors
from tests.faults.disks import failing_disk, need_failing_disks
from tests.faults.numbered_saves import NumberedSaves, hidden_names
from tests.faults.requirements import on_each
from tests.faults.tracing import injecting, need_strace, traced

import fastckpt

SEED = 8
ROUNDS = 20
SYNCS = ("fsync", "fdatasync", "sync_file_range", "msync")


@on_each(fsync_errors.FILE_SYSTEMS)
def test_a_save_that_fails_leaves_the_old_checkpoint_on_the_disk(
    file_system: str, tmp_path: Path
) -> None:
    need_failing_disks(file_system)
    tally = fsync_errors.run_on(file_system, SEED, ROUNDS, tmp_path)
    print(tally)
    assert tally.failures == []
    assert tally.cases == ROUNDS
    # Directly written bytes are refused at once, those of the page cache when they are flushed.
    assert tally.outcomes[f"{file_system}: EIO while writing"] > 0
    assert tally.outcomes[f"{file_system}: EIO while flushing the file to disk (fsync)"] > 0


@on_each(fsync_errors.FILE_SYSTEMS)
def test_a_failed_fsync_is_not_tried_again(file_system: str, tmp_path: Path) -> None:
    """The kernel reports a lost page once: a second fsync of the file would seem to succeed."""
    need_failing_disks(file_system)
    need_strace()
    log = tmp_path / "strace.log"
    with failing_disk(tmp_path, file_system) as disk:
        saves = NumberedSaves(disk.path, "buffered file", numel=100_000)
        saves.save(1)
        with disk.failing("write"):
            raised = traced(lambda: saves.save(2), ["-e", f"trace={','.join(SYNCS)}"], log)
        assert raised is not None
        assert raised.errno == errno.EIO
        assert saves.find() == 1
    calls = [line for line in log.read_text().splitlines() if ".fastckpt-" in line]
    assert len(calls) == 1, calls
    assert "-1 EIO" in log.read_text()


@pytest.mark.parametrize("way", fsync_errors.WAYS)
def test_a_failed_fsync_on_any_file_system_is_not_tried_again(way: str, tmp_path: Path) -> None:
    need_strace()
    log, directory = tmp_path / "strace.log", tmp_path / "checkpoints"
    directory.mkdir()
    saves = NumberedSaves(directory, way, numel=1000)
    saves.save(1)
    raised = traced(lambda: saves.save(2), injecting(",".join(SYNCS), "EIO"), log)
    assert raised is not None
    assert raised.errno == errno.EIO
    assert log.read_text().count("INJECTED") == 1
    assert saves.find() == 1


@pytest.mark.parametrize("way", fsync_errors.WAYS)
def test_a_directory_that_cannot_be_synced(way: str, tmp_path: Path) -> None:
    """Whether what was renamed survives a power cut is not known, and said so."""
    need_strace()
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    saves = NumberedSaves(directory, way, numel=1000)
    saves.save(1)
    options = injecting("fsync", "EIO", directory)
    raised = traced(lambda: saves.save(2), options, tmp_path / "strace.log")
    assert raised is not None
    assert raised.errno == errno.EIO
    assert "flushing the directory to disk (fsync)" in raised.words
    if way == "same step":
        # Before anything was renamed: the other names of what would have been replaced are not safe.
        assert not raised.is_a(fastckpt.CommitUnknownError)
    else:
        assert raised.is_a(fastckpt.CommitUnknownError)
    # Of a step, only what comes before the model has its name.
    assert saves.find() == (1 if way.endswith("step") else 2)
    saves.save(3)
    assert saves.find() == 3
    assert hidden_names(directory) == []
