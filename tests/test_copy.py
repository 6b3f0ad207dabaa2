"""`copy_checkpoint`: the same bytes at the destination, verified, or nothing that looks like a checkpoint."""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.copied_runs import (
    FILES_OF_A_STEP,
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

import fastckpt
from fastckpt import copy_checkpoint
from fastckpt._copy.copy import Outcome


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return make_runs(tmp_path / "runs")


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
    with pytest.raises(
        ValueError, match="name steps by number, or ask for the newest one, not both"
    ):
        copy_checkpoint(runs, to, steps=[1], newest=True)
    with pytest.raises(ValueError, match="only a directory has steps"):
        copy_checkpoint(runs / "model_000001.pt", to, steps=[1])
    with pytest.raises(ValueError, match="threads"):
        copy_checkpoint(runs, to, threads=0)
    with pytest.raises(FileNotFoundError):
        copy_checkpoint(runs / "nothing", to)
    assert not to.exists()


# A CheckpointManager's directory


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
