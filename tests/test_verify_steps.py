"""`fastckpt.verify` of steps and directories: what is missing, and what is looked at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.verified_files import WTE_BYTES, flip_payload, shard, write_step

import fastckpt
from fastckpt import _native
from fastckpt._steps.survey import StepFiles, StepName, parse_name
from fastckpt._verify.report import Status

# Steps


def test_complete_steps(tmp_path: Path) -> None:
    write_step(tmp_path, 100, ranks=(0, 1))
    write_step(tmp_path, 1_000_000)

    report = fastckpt.verify(tmp_path)

    first, second = report.steps
    assert report.ok
    assert (first.step, first.ranks, first.status) == (100, (0, 1), Status.GOOD)
    assert [Path(file.path).name for file in first.files] == [
        "model_000100.pt",
        "meta_000100.json",
        "optim_000100_rank0.pt",
        "optim_000100_rank1.pt",
    ]
    assert (second.step, second.ranks) == (1_000_000, ())
    assert report.newest_good_steps == {str(tmp_path): 1_000_000}


@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        ("meta_000100.json", "meta_000100.json"),
        ("model_000100.pt", "model_000100.pt"),
        ("optim_000100_rank0.pt", "optim_000100_rank0.pt"),
        ("optim_000100_rank1.pt", "optim_000100_rank1.pt"),
        # How many ranks there were, the names do not say.
        ("optim_000100_rank2.pt", None),
    ],
)
def test_incomplete_steps(tmp_path: Path, gone: str, missing: str | None) -> None:
    write_step(tmp_path, 100, ranks=(0, 1, 2))
    write_step(tmp_path, 50)
    (tmp_path / gone).unlink()
    report = fastckpt.verify(tmp_path)
    assert report.steps[1].missing == ((missing,) if missing else ())
    assert report.exit_code == (3 if missing else 0)
    assert report.newest_good_steps == {str(tmp_path): 50 if missing else 100}


def test_a_dangling_link_is_a_missing_file(tmp_path: Path) -> None:
    write_step(tmp_path, 100)
    (tmp_path / "model_000100.pt").unlink()
    (tmp_path / "model_000100.pt").symlink_to(tmp_path / "gone.pt")
    report = fastckpt.verify(tmp_path)
    assert report.exit_code == 3
    assert report.steps[0].missing == ("model_000100.pt",)


def test_a_rank_of_any_size_ends_soon(tmp_path: Path) -> None:
    write_step(tmp_path, 1)
    shard(tmp_path, 1, 10**17).write_bytes((tmp_path / "model_000001.pt").read_bytes())
    (step,) = fastckpt.verify(tmp_path, quick=True).steps
    assert len(step.missing) == 9
    assert step.missing[0] == "optim_000001_rank0.pt"
    assert step.missing[-1] == f"optim_000001_rank*.pt of {10**17 - 8} more ranks"


@given(
    model=st.booleans(),
    meta=st.booleans(),
    ranks=st.sets(st.integers(0, 6)),
    step=st.integers(0, 10**7),
)
def test_missing_files_are_those_of_a_naive_count(
    model: bool, meta: bool, ranks: set[int], step: int
) -> None:
    files = StepFiles(step)
    names = [f"model_{step:06d}.pt"] * model + [f"meta_{step:06d}.json"] * meta
    names += [f"optim_{step:06d}_rank{rank}.pt" for rank in ranks]
    for name in names:
        named = parse_name(name)
        assert named is not None
        assert named.step == step
        files.add(name, named)
    wanted = {f"model_{step:06d}.pt", f"meta_{step:06d}.json"}
    wanted |= {f"optim_{step:06d}_rank{rank}.pt" for rank in range(max(ranks, default=-1) + 1)}
    assert set(files.missing()) == wanted - set(names)
    assert set(files.names()) == set(names)


@pytest.mark.parametrize(
    "name",
    [
        "model_00100.pt",
        "model_0000100.pt",
        "model_000100.pt.bak",
        "tmp_model_000100.pt",
        "model_-00100.pt",
        "model_\u0660\u0660\u0660\u0661\u0660\u0660.pt",
        "optim_000100_rank01.pt",
        "optim_000100.pt",
        "meta_000100.pt",
        "model_000100.pt\n",
    ],
)
def test_names_that_no_loader_would_open(name: str) -> None:
    assert parse_name(name) is None


def test_names() -> None:
    assert parse_name("model_000100.pt") == StepName("model", 100)
    assert parse_name("meta_1234567.json") == StepName("meta", 1234567)
    assert parse_name("optim_000000_rank12.pt") == StepName("optimizer", 0, 12)


# Directories


def test_directory_of_model_tags(tmp_path: Path) -> None:
    write_step(tmp_path / "d12", 100)
    write_step(tmp_path / "d20", 200, ranks=(0,))
    (tmp_path / "d20" / "meta_000200.json").unlink()
    report = fastckpt.verify(tmp_path)
    assert [(Path(step.directory).name, step.step) for step in report.steps] == [
        ("d12", 100),
        ("d20", 200),
    ]
    assert report.newest_good_steps == {
        str(tmp_path / "d12"): 100,
        str(tmp_path / "d20"): None,
    }
    assert report.exit_code == 3


def test_any_directory_of_anyone(tmp_path: Path) -> None:
    deep = tmp_path / "version_0" / "checkpoints"
    deep.mkdir(parents=True)
    for name in ("epoch=0-step=10.ckpt", "best.pth", "weights.pt"):
        torch.save({"w": torch.arange(64.0)}, deep / name)
    (deep / "notes.txt").write_text("not a checkpoint")
    hidden = tmp_path / ".cache"
    hidden.mkdir()
    (hidden / "broken.pt").write_bytes(b"junk")
    flip_payload(deep / "best.pth", WTE_BYTES)

    report = fastckpt.verify(tmp_path)

    statuses = {Path(file.path).name: file.status for file in report.files}
    assert statuses == {
        "best.pth": Status.DAMAGED,
        "epoch=0-step=10.ckpt": Status.GOOD,
        "weights.pt": Status.GOOD,
    }


def test_links_to_directories_are_followed_once(tmp_path: Path) -> None:
    write_step(tmp_path / "disk" / "d12", 1)
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "d12").symlink_to(tmp_path / "disk" / "d12")
    (tmp_path / "disk" / "d12" / "loop").symlink_to(runs)
    report = fastckpt.verify([runs, tmp_path / "disk"])
    assert len(report.steps) == 1
    assert report.ok


def test_temporary_files_are_left_alone(tmp_path: Path) -> None:
    write_step(tmp_path, 1)
    leftover = tmp_path / ".fastckpt-123-4.tmp"
    leftover.write_bytes(b"half a checkpoint")
    report = fastckpt.verify(tmp_path)
    assert report.ok
    assert report.leftovers == (str(leftover),)
    assert str(leftover) not in [file.path for file in report.files]


def test_a_file_named_twice_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_step(tmp_path, 1)
    model = tmp_path / "model_000001.pt"
    read = []
    real = _native.verify_file

    def count(path: str, **options: object) -> object:
        read.append(path)
        return real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(_native, "verify_file", count)
    report = fastckpt.verify([model, tmp_path, model])
    assert read == [str(model)]
    assert len(report.files) == 2
