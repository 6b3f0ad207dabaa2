"""`fastckpt copy`: text, JSON and exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.command_line import run_json
from tests.copied_runs import CHILD, flip, make_runs, of_step, save_step, sums, whole

from fastckpt import copy_checkpoint
from fastckpt.cli.app import run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return make_runs(tmp_path / "runs")


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "to"


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
        "step 1 there 5",
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
        f"hint: `fastckpt verify {runs}` lists what is damaged; copy another step\n"
        f"note: skipped 1 entry that is not a checkpoint: tokenizer.json\n"
    )


def test_the_hint_names_what_verify_takes(
    runs: Path, to: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(runs / "model_000001.pt")
    assert run(["copy", f"{runs}@1", "--to", str(to)]) == 1
    hint = f"hint: `fastckpt verify {runs}` lists what is damaged; copy another step\n"
    assert capsys.readouterr().err == hint


def test_json(runs: Path, to: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = run_json(capsys, "copy", f"{runs}@2", "--to", str(to), status="good")
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
    assert captured.err.startswith("hint: copy to another place, or remove what is in the way")
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
    run_json(capsys, "copy", *arguments, status=status, code=code)


def test_a_name_with_an_at_sign_is_taken_as_it_is(tmp_path: Path, to: Path) -> None:
    save_step(tmp_path / "run@2", 1, 11)
    assert copy_checkpoint(tmp_path / "run@2", to).ok
    assert copy_checkpoint(f"{tmp_path}/run@2@1", to).ok
    assert whole(to, 1) == 11


def test_it_needs_no_torch(runs: Path, to: Path) -> None:
    command = [sys.executable, "-c", CHILD, "copy", str(runs), "--to", str(to)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert sums(to) == sums(runs)
