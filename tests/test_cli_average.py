"""`fastckpt average`: what it says, and its exit codes."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests import archives
from tests.average_runs import write
from tests.command_line import run_json

import fastckpt
from fastckpt._average.average import average_checkpoints
from fastckpt.cli.app import run


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write(tmp_path, [{"w": torch.full((2,), n), "n": torch.tensor(1)} for n in (1.0, 4.0)])
    to = str(tmp_path / "out.pt")
    assert run(["average", *paths, "--to", to, "--weights", "2,1"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith(f"AVERAGED: 2 checkpoints into {to}, ")
    assert lines[1:] == [f"    0.6667  {paths[0]}", f"    0.3333  {paths[1]}"]
    assert captured.err == f"note: 1 integer tensor is taken from the last file, {paths[1]}\n"
    assert torch.load(to)["w"].tolist() == [2.0, 2.0]


def test_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write(tmp_path, [{"w": torch.ones(2)}] * 2)
    to = tmp_path / "out.pt"
    document = run_json(capsys, "average", *paths, "--to", str(to), status="written")
    assert document["report"] == {
        "path": str(to),
        "nbytes": to.stat().st_size,
        "checkpoints": [{"path": path, "weight": 0.5} for path in paths],
        "tensors": 1,
        "averaged": 1,
        "unchecked": [],
    }


def test_files_without_checksums_are_averaged_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(archives.without_checksums({"w": torch.ones(10)}))
    with pytest.warns(fastckpt.MissingChecksumWarning, match="has no checksums"):
        assert average_checkpoints([path])["w"].tolist() == [1.0] * 10
    assert run(["average", str(path), "--to", str(tmp_path / "out.pt")]) == 0
    assert capsys.readouterr().err == (
        f"warning: {path} has no checksums: it was averaged unchecked\n"
    )


@pytest.mark.parametrize("as_json", [False, True])
def test_exit_codes(as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--json"] if as_json else []
    good, other, junk = write(tmp_path, [{"w": torch.ones(9)}, {"v": torch.ones(9)}, {}])
    Path(junk).write_bytes(b"junk")
    to = str(tmp_path / "out.pt")
    steps = tmp_path / "steps"
    steps.mkdir()
    for step in (1, 2):
        torch.save({"w": torch.ones(9)}, steps / f"model_{step:06d}.pt")
    for paths, out, more, code, status in (
        ([good, other], to, [], 2, "usage"),
        ([good, good], good, [], 2, "usage"),
        ([good, good], to, ["--weights", "1,x"], 2, "usage"),
        ([good, good], to, ["--weights", "1"], 2, "usage"),
        ([good, str(steps)], to, [], 2, "usage"),
        ([good, junk], to, [], 1, "damaged"),
        ([good, str(tmp_path / "missing.pt")], to, [], 4, "not_found"),
        ([good], str(tmp_path / "no" / "directory.pt"), [], 4, "not_found"),
    ):
        assert run(["average", *paths, "--to", out, *more, *options]) == code
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert "Traceback" not in captured.err
        if as_json:
            assert json.loads(captured.out)["status"] == status
    assert not os.path.exists(to)


def test_a_directory_stands_for_its_only_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        (tmp_path / f"run{step}").mkdir()
        path = tmp_path / f"run{step}" / f"model_{step:06d}.pt"
        torch.save({"w": torch.full((1,), float(step))}, path)
    directories = [str(tmp_path / f"run{step}") for step in (1, 2)]
    to = tmp_path / "out.pt"
    assert run(["average", *directories, "--to", str(to)]) == 0
    assert torch.load(to)["w"].tolist() == [1.5]
    torch.save({"w": torch.ones(1)}, tmp_path / "run1" / "model_000009.pt")
    to.unlink()
    assert run(["average", *directories, "--to", str(to)]) == 2
    assert f"2 model files: name its steps, as {tmp_path}/run1@9" in capsys.readouterr().err


def test_torch_is_needed_and_said_to_be(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from fastckpt.cli.app import run\n"
        "sys.exit(run(['average', 'a.pt', '--to', 'b.pt']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, text=True, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: average needs torch\nhint: pip install torch\n"
