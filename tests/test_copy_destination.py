"""What is at the destination of a copy already, fills up, changes meanwhile or is killed."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.copied_runs import (
    CHILD,
    flip,
    make_runs,
    managed,
    names,
    of_step,
    outcomes,
    save_step,
    sums,
    whole,
)
from tests.faults.children import wait_for
from tests.faults.disks import memory_disk, need_memory_disks
from tests.faults.disks import run as run_program

import fastckpt
from fastckpt import copy_checkpoint
from fastckpt._copy import files
from fastckpt._copy.copy import Outcome
from fastckpt._steps.survey import kept_name


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return make_runs(tmp_path / "runs")


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "to"


# The destination


def test_another_file_is_never_overwritten(runs: Path, to: Path) -> None:
    to.mkdir()
    (to / "meta_000001.json").write_text("{}")
    shutil.copy(runs / "model_000001.pt", to / "model_000002.pt")
    (to / "optim_000003_rank7.pt").write_bytes(b"another rank")
    before = sums(to)
    report = copy_checkpoint(runs, to)
    assert outcomes(report) == dict.fromkeys(("step 1", "step 2", "step 3"), Outcome.CONFLICT)
    assert sums(to) == before
    assert (report.status, report.exit_code) == ("conflict", 2)
    messages = [file.message for file in report.files if file.outcome is Outcome.CONFLICT]
    size = (runs / "meta_000001.json").stat().st_size
    assert messages == [f"a file of 2 bytes, and this one has {size}", "a file with other contents"]
    assert "optim_000003_rank7.pt" in (report.checkpoints[2].message or "")


def test_a_copy_that_has_been_damaged_since_is_not_taken_for_one(runs: Path, to: Path) -> None:
    assert copy_checkpoint(runs, to).ok
    flip(to / "optim_000002_rank1.pt")
    report = copy_checkpoint(runs, to)
    assert outcomes(report)["step 2"] is Outcome.CONFLICT
    (conflict,) = [file for file in report.files if file.outcome is Outcome.CONFLICT]
    assert conflict.message == "a damaged copy of it (checksum mismatch)"


def copied_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note which files are copied from here on."""
    noted: list[str] = []
    real = files.FileCopier.copy

    def copy(self: Any, commit: Any, piece: Any) -> Any:
        noted.append(piece.name)
        return real(self, commit, piece)

    monkeypatch.setattr(files.FileCopier, "copy", copy)
    return noted


def test_what_is_there_already_is_verified_there_and_not_copied_again(
    runs: Path, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert copy_checkpoint(runs, to, steps=[1]).ok
    shutil.copy(runs / "optim_000002_rank0.pt", to)
    shutil.copy(runs / "manifest_000002.json", to)
    noted = copied_names(monkeypatch)
    report = copy_checkpoint(runs, to)
    assert noted == [
        "optim_000002_rank1.pt",
        "meta_000002.json",
        "model_000002.pt",
        "optim_000003_rank0.pt",
        "optim_000003_rank1.pt",
        "manifest_000003.json",
        "meta_000003.json",
        "model_000003.pt",
    ]
    assert outcomes(report) == {
        "step 1": Outcome.PRESENT,
        "step 2": Outcome.COPIED,
        "step 3": Outcome.COPIED,
    }
    assert sums(to) == sums(runs)
    assert copy_checkpoint(runs, to).copied_nbytes == 0


def test_what_is_there_already_is_flushed_to_the_disk_or_it_is_an_error(
    runs: Path, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(runs, to)
    flushed: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        if flushed[-1].endswith("optim_000002_rank1.pt"):
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    report = copy_checkpoint(runs, to)
    assert outcomes(report) == {
        "step 1": Outcome.PRESENT,
        "step 2": Outcome.IO_ERROR,
        "step 3": Outcome.PRESENT,
    }
    words = "Input/output error, while flushing the file to disk (fsync)"
    assert report.checkpoints[1].message == f"[Errno 5] {words}: '{to}/optim_000002_rank1.pt'"
    assert {*flushed} >= {str(to / name) for name in of_step(to, 1) | of_step(to, 3)}


def test_a_source_that_is_saved_again_meanwhile_is_copied_again_whole(
    runs: Path, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.FileCopier.copy
    saves = iter([(91, (1,)), (91, (0,))])

    def copy(self: Any, commit: Any, piece: Any) -> Any:
        copied = real(self, commit, piece)
        if piece.name.endswith("_rank0.pt"):
            for save_id, ranks in saves:
                save_step(runs, 1, save_id, ranks=ranks)
        return copied

    monkeypatch.setattr(files.FileCopier, "copy", copy)
    assert copy_checkpoint(runs, to, steps=[1]).ok
    assert whole(to, 1) == 91
    assert of_step(to, 1) == of_step(runs, 1)
    for name in of_step(runs, 1):
        assert filecmp.cmp(runs / name, to / name, shallow=False)


def test_a_source_that_never_rests_is_given_up_and_leaves_nothing(
    runs: Path, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.FileCopier.copy
    numbers = iter(range(50, 99))

    def copy(self: Any, commit: Any, piece: Any) -> Any:
        copied = real(self, commit, piece)
        if piece.role == "model":
            save_step(runs, 1, next(numbers))
        return copied

    monkeypatch.setattr(files.FileCopier, "copy", copy)
    report = copy_checkpoint(runs, to, steps=[1])
    assert (report.status, report.exit_code) == ("incomplete", 3)
    assert "step 1 is being saved" in (report.checkpoints[0].message or "")
    assert names(to) == set()


def test_a_destination_without_room_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    need_memory_disks()
    source = tmp_path / "source"
    for step in (1, 2, 3):
        save_step(source, step, 10 + step, numel=100_000)
    nbytes = sum(path.stat().st_size for path in source.iterdir())
    with memory_disk(tmp_path, "tmpfs", "size=2m") as disk:
        with pytest.raises(OSError, match=f"{nbytes:,} bytes are needed") as caught:
            copy_checkpoint(source, disk / "to")
        assert caught.value.errno == errno.ENOSPC
        assert names(disk / "to") == set()


def test_a_destination_that_fills_up_keeps_what_is_whole_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else takes the room: the step that it ends in is no step, the ones before are."""
    need_memory_disks()
    source = tmp_path / "source"
    for step in (1, 2, 3, 4):
        save_step(source, step, 10 + step, numel=100_000)
    with memory_disk(tmp_path, "tmpfs", "size=8m") as disk:
        to = disk / "to"
        real = files.FileCopier.copy

        def copy(self: Any, commit: Any, piece: Any) -> Any:
            if piece.name == "optim_000002_rank1.pt":
                (disk / "other").write_bytes(bytes(int(os.statvfs(disk).f_bavail) * 4096 - 200_000))
            return real(self, commit, piece)

        monkeypatch.setattr(files.FileCopier, "copy", copy)
        report = copy_checkpoint(source, to)
        assert outcomes(report) == {
            "step 1": Outcome.COPIED,
            "step 2": Outcome.IO_ERROR,
            "step 3": Outcome.NOT_REACHED,
            "step 4": Outcome.NOT_REACHED,
        }
        assert "No space left on device" in (report.checkpoints[1].message or "")
        assert (report.status, report.exit_code) == ("io_error", 6)
        assert names(to) == {*of_step(source, 1), "optim_000002_rank0.pt"}
        assert whole(to, 1) == 11
        monkeypatch.undo()
        (disk / "other").unlink()
        assert copy_checkpoint(source, to).ok
        assert sums(to) == sums(source)
        run_program("sync")


def test_a_directory_that_takes_no_files_is_an_error(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="creating the directory"):
        copy_checkpoint(runs, tmp_path / "file" / "to")


def test_hidden_names_of_the_destination_belong_to_its_own_saves(runs: Path, to: Path) -> None:
    to.mkdir()
    (to / kept_name(5, "model_000001.pt")).write_bytes(b"kept")
    report = copy_checkpoint(runs, to)
    assert outcomes(report)["step 1"] is Outcome.CONFLICT
    assert (whole(to, 2), whole(to, 3)) == (12, 13)


# Kills


def has_come_to(count: int, to: Path, child: subprocess.Popen[bytes]) -> bool:
    return child.poll() is not None or visible_names(to) >= count


def visible_names(to: Path) -> int:
    """Count the files that have been given their names."""
    return sum(not name.startswith(".") for name in names(to))


def test_kills_at_random_moments_leave_whole_steps_and_copying_goes_on(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for step in (1, 2, 3):
        save_step(source, step, 10 + step, numel=1_000_000)
    managed(source, 4, 5, best=4)
    expected = sums(source)
    rng = random.Random(5)
    stages = set()
    for case in range(5):
        to = tmp_path / f"to{case}"
        command = [sys.executable, "-c", CHILD, "copy", str(source), "--to", str(to)]
        # Killed twice, so that leftovers of one meet the next; the first run is not killed.
        for _ in range(2 if case else 1):
            with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
                assert child.stdout is not None
                assert child.stdout.readline() == b"go\n"
                if case:
                    # Somewhere in the copy of one of its files.
                    there = visible_names(to) + rng.randrange(6)
                    wait_for(partial(has_come_to, there, to, child))
                    time.sleep(rng.uniform(0, 0.01))
                    child.send_signal(signal.SIGKILL)
                child.wait(200)
            visible = {int(path.stem[-6:]) for path in to.glob("model_*.pt")}
            assert all(whole(to, step) == 10 + step for step in visible)
            for path in to.iterdir() if to.exists() else ():
                if not path.name.startswith("."):
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                    assert digest == expected[path.name], path.name
            stages.add(visible_names(to))
        report = copy_checkpoint(source, to)
        assert report.ok
        fastckpt.collect_garbage(to)
        assert sums(to) == expected
        assert os.path.samefile(to / "best_model.pt", to / "checkpoint_epoch0001_step00000004.pt")
        shutil.rmtree(to)
    assert len(stages) > 2
