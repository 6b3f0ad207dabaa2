"""`fastckpt copy`: the same bytes at the destination, verified, or nothing that looks like a checkpoint."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.faults.disks import memory_disk, need_memory_disks
from tests.faults.disks import run as run_program

import fastckpt
from fastckpt import copy_checkpoint
from fastckpt._copy import files
from fastckpt._copy.copy import Outcome
from fastckpt._steps.survey import kept_name
from fastckpt.cli.app import run
from fastckpt.nanochat import save_id as save_id_module

RANKS = 2
FILES_OF_A_STEP = 5


def save_step(
    directory: Path, step: int, save_id: int, ranks: tuple[int, ...] = (1, 0), numel: int = 8
) -> None:
    """Save a step of two ranks; those that are left out never come to it."""
    with save_id_module.agreed(save_id, RANKS):
        for rank in ranks:
            weights = {"w": torch.full((numel,), float(save_id))}
            state = {"moment": torch.full((numel,), float(save_id + rank))}
            fastckpt.save_checkpoint(directory, step, weights, state, {"step": step}, rank=rank)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


def of_step(directory: Path, step: int) -> set[str]:
    return {name for name in names(directory) if f"_{step:06d}" in name}


def sums(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()
    }


def whole(directory: Path, step: int) -> float:
    """Load a step, which has to be whole; return the save id that its weights say."""
    for rank in range(RANKS):
        loaded = fastckpt.load_checkpoint(directory, step, "cpu", load_optimizer=True, rank=rank)
        assert loaded[1] is not None
        assert float(loaded[1]["moment"][0]) == float(loaded[0]["w"][0]) + rank
    return float(loaded[0]["w"][0])


def flip(path: Path, position: int | None = None, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    if position is None:
        # In the payload of the first tensor, which lies behind a header with padding.
        position = data.index(b"FB", data.index(b"data/0FB")) + 80
    data[position] ^= 1 << bit
    path.write_bytes(data)


def outcomes(report: fastckpt.CopyReport) -> dict[str, Outcome]:
    return {each.name: each.outcome for each in report.checkpoints}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Steps 1, 2 and 3 of two ranks."""
    directory = tmp_path / "runs"
    for step in (1, 2, 3):
        save_step(directory, step, 10 + step)
    return directory


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "to"


# What is copied


def test_a_run_is_copied_byte_for_byte(runs: Path, to: Path) -> None:
    report = copy_checkpoint(runs, to)
    assert sums(to) == sums(runs)
    assert [whole(to, step) for step in (1, 2, 3)] == [11, 12, 13]
    assert outcomes(report) == dict.fromkeys(("step 1", "step 2", "step 3"), Outcome.COPIED)
    assert report.copied_nbytes == sum(path.stat().st_size for path in runs.iterdir())
    assert [Path(file.path).name for file in report.checkpoints[0].files] == [
        "optim_000001_rank0.pt",
        "optim_000001_rank1.pt",
        "manifest_000001.json",
        "meta_000001.json",
        "model_000001.pt",
    ]
    assert fastckpt.verify(to).ok


def test_modes_and_times_are_kept(runs: Path, to: Path) -> None:
    for number, path in enumerate(sorted(runs.iterdir())):
        path.chmod([0o600, 0o640, 0o444][number % 3])
        os.utime(path, ns=(1, 10**18 + number))
    assert copy_checkpoint(runs, to).ok
    for path in runs.iterdir():
        was, found = path.stat(), (to / path.name).stat()
        assert (found.st_mode, found.st_mtime_ns) == (was.st_mode, was.st_mtime_ns)


@pytest.mark.parametrize(
    ("at", "options", "expected"),
    [
        ("@2", {}, {2}),
        ("@000002", {}, {2}),
        ("", {"steps": [1, 3]}, {1, 3}),
        ("@1", {"steps": [3]}, {1, 3}),
        ("", {"newest": True}, {3}),
    ],
)
def test_single_steps(
    runs: Path, to: Path, at: str, options: dict[str, Any], expected: set[int]
) -> None:
    assert copy_checkpoint(f"{runs}{at}", to, **options).ok
    assert names(to) == {name for step in expected for name in of_step(runs, step)}


def test_steps_that_are_not_there_are_named(runs: Path, to: Path) -> None:
    report = copy_checkpoint(runs, to, steps=[2, 7])
    assert outcomes(report) == {"step 2": Outcome.COPIED, "step 7": Outcome.NOT_FOUND}
    assert (report.status, report.exit_code) == ("not_found", 4)


def test_torn_steps_are_left_out_of_a_run_and_refused_by_name(runs: Path, to: Path) -> None:
    (runs / "optim_000003_rank1.pt").unlink()
    report = copy_checkpoint(runs, to)
    assert (report.ok, outcomes(report)["step 3"]) == (True, Outcome.SKIPPED)
    assert "optim_000003_rank1.pt is missing" in (report.checkpoints[2].message or "")
    assert of_step(to, 3) == set()
    assert outcomes(copy_checkpoint(runs, to / "newest", newest=True)) == {"step 2": Outcome.COPIED}
    report = copy_checkpoint(runs, to, steps=[3])
    assert (report.status, report.exit_code) == ("incomplete", 3)
    assert of_step(to, 3) == set()


def test_a_run_without_a_whole_step_is_not_copied_and_not_good(runs: Path, to: Path) -> None:
    for path in runs.glob("meta_*"):
        path.unlink()
    report = copy_checkpoint(runs, to)
    assert {each.outcome for each in report.checkpoints} == {Outcome.SKIPPED}
    assert (report.status, report.exit_code, names(to)) == ("incomplete", 3, set())


def test_a_step_whose_files_are_kept_under_other_names_gets_its_own(
    runs: Path, to: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs, tmp_path / "before")
    # Rank 1 never comes to its part of the next save: the last whole one is under hidden names.
    save_step(runs, 2, 99, ranks=(0,))
    assert any(name.endswith(".kept") for name in names(runs))
    (runs / ".fastckpt-1-1.tmp").write_bytes(b"half")
    assert copy_checkpoint(runs, to).ok
    assert sums(to) == sums(tmp_path / "before")
    assert whole(to, 2) == 12


def test_single_files_of_every_format(to: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    torch.save({"w": torch.ones(1000)}, source / "torch.pt")
    torch.save({"w": torch.ones(9)}, source / "old.pt", _use_new_zipfile_serialization=False)
    fastckpt.save([torch.ones(3), 1], source / "ours.ckpt")
    for name in names(source):
        assert copy_checkpoint(source / name, to).ok
    assert sums(to) == sums(source)
    report = copy_checkpoint(source / "old.pt", to / "again")
    (file,) = report.files
    assert (file.message or "").endswith("no checksums in this format, copied as it is")


def test_torchscript_is_no_damage_and_is_verified(to: Path, tmp_path: Path) -> None:
    class Scale(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    path = tmp_path / "script.pt"
    with warnings.catch_warnings():
        # torch deprecates TorchScript; the files are there.
        warnings.simplefilter("ignore")
        module = torch.jit.trace(Scale(), torch.ones(64))  # type: ignore[no-untyped-call]
        module.save(str(path))
    report = copy_checkpoint(path, to)
    assert report.ok
    assert filecmp.cmp(path, to / "script.pt", shallow=False)
    assert copy_checkpoint(path, to).checkpoints[0].outcome is Outcome.PRESENT


def test_progress_ends_at_the_bytes_there_are(runs: Path, to: Path) -> None:
    seen: list[tuple[int, int]] = []
    copy_checkpoint(runs, to, progress=lambda done, total: seen.append((done, total)))
    nbytes = sum(path.stat().st_size for path in runs.iterdir())
    assert {total for _, total in seen} == {nbytes}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (nbytes, nbytes)


def test_what_progress_raises_ends_the_copy_and_leaves_no_temporary_file(
    runs: Path, to: Path
) -> None:
    class Enough(Exception):
        pass

    def progress(done: int, total: int) -> None:
        if done * 2 > total:
            raise Enough

    with pytest.raises(Enough):
        copy_checkpoint(runs, to, progress=progress)
    assert not [name for name in names(to) if name.startswith(".")]
    assert copy_checkpoint(runs, to).ok
    assert sums(to) == sums(runs)


def test_arguments_that_contradict_each_other(runs: Path, to: Path) -> None:
    with pytest.raises(ValueError, match="where the source is"):
        copy_checkpoint(runs, runs)
    with pytest.raises(ValueError, match="either the newest step, or steps by number"):
        copy_checkpoint(runs, to, steps=[1], newest=True)
    with pytest.raises(ValueError, match="only a directory has steps"):
        copy_checkpoint(runs / "model_000001.pt", to, steps=[1])
    with pytest.raises(ValueError, match="threads"):
        copy_checkpoint(runs, to, threads=0)
    with pytest.raises(FileNotFoundError):
        copy_checkpoint(runs / "nothing", to)
    assert not to.exists()


# A CheckpointManager's directory


def managed(directory: Path, *steps: int, best: int | None = None) -> None:
    directory.mkdir(exist_ok=True)
    for step in steps:
        path = directory / f"checkpoint_epoch0001_step{step:08d}.pt"
        torch.save({"global_step": step, "model_state_dict": {"w": torch.ones(100) * step}}, path)
        torch.save({"rank": 1}, path.with_name(f"{path.stem}_rank1.pt"))
    if best is not None:
        (directory / "best_model.pt").unlink(missing_ok=True)
        path = directory / f"checkpoint_epoch0001_step{best:08d}.pt"
        os.link(path, directory / "best_model.pt")


def test_the_best_of_a_manager_is_a_second_name_at_the_destination_too(
    to: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    managed(source, 1, 2, best=1)
    (source / "log.txt").write_text("")
    report = copy_checkpoint(source, to)
    assert report.others == ("log.txt",)
    assert outcomes(report)["best_model.pt"] is Outcome.LINKED
    assert names(to) == names(source) - {"log.txt"}
    assert os.path.samefile(to / "best_model.pt", to / "checkpoint_epoch0001_step00000001.pt")
    # Training goes on, and another one is the best: the copy of the name follows.
    managed(source, 3, best=3)
    report = copy_checkpoint(source, to)
    assert report.ok
    assert os.path.samefile(to / "best_model.pt", to / "checkpoint_epoch0001_step00000003.pt")
    assert {name: value for name, value in sums(source).items() if name != "log.txt"} == sums(to)


def test_a_best_model_that_is_a_file_of_its_own_is_copied_and_never_overwritten(
    to: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    managed(source, 1, 2)
    torch.save({"global_step": 0}, source / "best_model.pt")
    assert copy_checkpoint(source, to).ok
    assert sums(to) == sums(source)
    torch.save({"global_step": 5}, source / "best_model.pt")
    before = sums(to)
    report = copy_checkpoint(source, to)
    assert (report.status, outcomes(report)["best_model.pt"]) == ("conflict", Outcome.CONFLICT)
    assert sums(to) == before


def test_steps_of_a_managers_directory(to: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    managed(source, 1, 20, 300, best=20)
    assert copy_checkpoint(f"{source}@20", to).ok
    stem = "checkpoint_epoch0001_step00000020"
    assert names(to) == {f"{stem}.pt", f"{stem}_rank1.pt"}
    assert copy_checkpoint(source, to, newest=True).ok
    assert "checkpoint_epoch0001_step00000300.pt" in names(to)


# Damage


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("optim_000002_rank0.pt", "moment"),
        ("optim_000002_rank1.pt", "moment"),
        ("model_000002.pt", "w"),
    ],
)
def test_of_a_damaged_step_nothing_is_copied_and_the_others_are(
    runs: Path, to: Path, name: str, tensor: str
) -> None:
    flip(runs / name)
    report = copy_checkpoint(runs, to)
    assert names(to) == names(runs) - of_step(runs, 2)
    assert (report.status, report.exit_code) == ("damaged", 1)
    (damaged,) = [file for file in report.files if file.outcome is Outcome.DAMAGED]
    assert (Path(damaged.source).name, damaged.damages[0].tensors) == (name, (tensor,))
    assert damaged.damages[0].detail == "checksum mismatch"
    others = {file.outcome for file in report.checkpoints[1].files if file is not damaged}
    assert others == {Outcome.NOT_REACHED}
    assert (whole(to, 1), whole(to, 3)) == (11, 13)


@settings(max_examples=60, deadline=None)
@given(file=st.integers(0, FILES_OF_A_STEP - 1), where=st.floats(0, 1), bit=st.integers(0, 7))
def test_whatever_bit_is_flipped_no_step_comes_of_it(file: int, where: float, bit: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        source, to = Path(name, "source"), Path(name, "to")
        save_step(source, 1, 11)
        path = sorted(source.iterdir())[file]
        flip(path, min(int(where * path.stat().st_size), path.stat().st_size - 1), bit)
        report = copy_checkpoint(source, to, steps=[1])
        assert (report.ok, names(to)) == (False, set()), path.name


@pytest.mark.parametrize("data", [b"", b"{", b"\xff"])
def test_files_that_are_no_checkpoints_are_refused(to: Path, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(data)
    report = copy_checkpoint(tmp_path / "x.pt", to)
    assert (report.status, names(to)) == ("damaged", set())
    torch.save({"w": torch.ones(2)}, tmp_path / "model_000001.pt")
    (tmp_path / "meta_000001.json").write_bytes(data)
    report = copy_checkpoint(tmp_path, to)
    assert (report.status, names(to)) == ("damaged", set())


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


# Kills

CHILD = (
    "import sys\n"
    "from fastckpt.cli.app import run\n"
    "import fastckpt._copy.copy\n"
    "print('go', flush=True)\n"
    "code = run(sys.argv[1:])\n"
    "assert 'torch' not in sys.modules\n"
    "sys.exit(code)\n"
)


def test_kills_at_random_moments_leave_whole_steps_and_copying_goes_on(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for step in (1, 2, 3):
        save_step(source, step, 10 + step, numel=1_000_000)
    managed(source, 4, 5, best=4)
    expected = sums(source)
    rng = random.Random(5)
    seconds = 0.0
    stages = set()
    for case in range(5):
        to = tmp_path / f"to{case}"
        command = [sys.executable, "-c", CHILD, "copy", str(source), "--to", str(to)]
        # Killed twice, so that leftovers of one meet the next; the first run is not killed.
        for _ in range(2 if case else 1):
            with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
                assert child.stdout is not None
                assert child.stdout.readline() == b"go\n"
                started = time.monotonic()
                if case:
                    time.sleep(rng.uniform(0, seconds * 0.7))
                    child.send_signal(signal.SIGKILL)
                child.wait(60)
                seconds = seconds or time.monotonic() - started
            visible = {int(path.stem[-6:]) for path in to.glob("model_*.pt")}
            assert all(whole(to, step) == 10 + step for step in visible)
            for path in to.iterdir() if to.exists() else ():
                if not path.name.startswith("."):
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                    assert digest == expected[path.name], path.name
            stages.add(len([name for name in names(to) if not name.startswith(".")]))
        report = copy_checkpoint(source, to)
        assert report.ok
        fastckpt.collect_garbage(to)
        assert sums(to) == expected
        assert os.path.samefile(to / "best_model.pt", to / "checkpoint_epoch0001_step00000004.pt")
        shutil.rmtree(to)
    assert len(stages) > 2


# The command


def test_text(runs: Path, to: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "tokenizer.json").write_text("{}")
    assert run(["copy", str(runs), "--to", str(to), "--step", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    nbytes = sum((runs / name).stat().st_size for name in of_step(runs, 1))
    assert lines[0].startswith(
        f"COPIED: 1 checkpoint, {nbytes / 1000:.1f} kB copied and verified ("
    )
    assert lines[1] == str(to)
    assert lines[2].split() == ["step", "1", "copied", "5", "files", f"{nbytes / 1000:.1f}", "kB"]
    flip(runs / "model_000003.pt")
    assert run(["copy", str(runs), "--to", str(to)]) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith("DAMAGED: 2 of 3 checkpoints at the destination, ")
    assert [" ".join(line.split()[:4]) for line in lines[2:5]] == [
        "step 1 was there",
        "step 2 copied 5",
        "step 3 DAMAGED 5",
    ]
    assert lines[6:10] == [
        f"damaged: {runs / 'model_000003.pt'}",
        "  what      checksum mismatch",
        "  tensor    w",
        "  record    data/0",
    ]
    assert captured.err == (
        f"hint: fastckpt verify {runs} lists all that is damaged; copy another step\n"
        f"note: 1 other name in {runs}, not of a checkpoint, not copied: tokenizer.json\n"
    )


def test_the_hint_names_what_verify_takes(
    runs: Path, to: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(runs / "model_000001.pt")
    assert run(["copy", f"{runs}@1", "--to", str(to)]) == 1
    hint = f"hint: fastckpt verify {runs} lists all that is damaged; copy another step\n"
    assert capsys.readouterr().err == hint


def test_json(runs: Path, to: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["copy", f"{runs}@2", "--to", str(to), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["command"], document["status"], document["ok"]) == ("copy", "good", True)
    (checkpoint,) = document["report"]["checkpoints"]
    assert (checkpoint["step"], checkpoint["outcome"]) == (2, "copied")
    assert [os.path.basename(file["path"]) for file in checkpoint["files"]][-1] == "model_000002.pt"
    assert document["report"]["copied_nbytes"] == checkpoint["nbytes"]


def test_what_is_in_the_way_is_said_with_a_hint(
    runs: Path, to: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to.mkdir()
    (to / "model_000001.pt").write_bytes(b"mine")
    assert run(["copy", str(runs), "--to", str(to), "--step", "1"]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("IN THE WAY: 0 of 1 checkpoint at the destination")
    assert f"in the way: {to / 'model_000001.pt'}\n  what      a file of 4 bytes" in captured.out
    assert captured.err.startswith("hint: copy to another directory, or remove what is in the way")
    assert (to / "model_000001.pt").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("arguments", "code", "status"),
    [
        (["nothing", "--to", "to"], 4, "not_found"),
        (["empty", "--to", "to"], 4, "not_found"),
        (["empty", "--to", "to", "--step", "1"], 4, "not_found"),
        (["empty@1", "--to", "to"], 4, "not_found"),
        (["empty", "--to", "empty"], 2, "usage"),
        (["empty", "--to", "to", "--step", "1", "--newest"], 2, "usage"),
        (["empty"], 2, "usage"),
    ],
)
def test_other_exit_codes(
    tmp_path: Path,
    arguments: list[str],
    code: int,
    status: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run(["copy", *arguments]) == code
    capsys.readouterr()
    assert run(["copy", *arguments, "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    found = (document["command"], document["exit_code"], document["status"])
    assert found == ("copy", code, status)


def test_a_name_with_an_at_sign_is_taken_as_it_is(tmp_path: Path, to: Path) -> None:
    save_step(tmp_path / "run@2", 1, 11)
    assert copy_checkpoint(tmp_path / "run@2", to).ok
    assert copy_checkpoint(f"{tmp_path}/run@2@1", to).ok
    assert whole(to, 1) == 11


def test_it_needs_no_torch(runs: Path, to: Path) -> None:
    command = [sys.executable, "-c", CHILD, "copy", str(runs), "--to", str(to)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert sums(to) == sums(runs)


def test_hidden_names_of_the_destination_belong_to_its_own_saves(runs: Path, to: Path) -> None:
    to.mkdir()
    (to / kept_name(5, "model_000001.pt")).write_bytes(b"kept")
    report = copy_checkpoint(runs, to)
    assert outcomes(report)["step 1"] is Outcome.CONFLICT
    assert (whole(to, 2), whole(to, 3)) == (12, 13)
