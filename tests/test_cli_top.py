"""`fastckpt top`: its table, its document, its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastckpt.cli.app import run


@pytest.fixture(autouse=True)
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    losses: list[Any] = [2.5, 2.25, float("nan"), None, 2.75]
    for step, loss in enumerate(losses):
        metrics = {"acc": 0.5} if loss is None else {"val_loss": loss, "acc": 0.5}
        root = {"epoch": 0, "global_step": step, "metrics": metrics, "model": {"w": torch.ones(1)}}
        torch.save(root, f"runs/checkpoint_epoch0000_step{step:08d}.pt")


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["top", "runs", "--metric", "val_loss", "-k", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert (
        captured.out
        == """\
lowest val_loss: 2 of 5 checkpoints (1 without it)
     value  step  epoch  checkpoint
  1   2.25     1      0  runs/checkpoint_epoch0000_step00000001.pt
  2    2.5     0      0  runs/checkpoint_epoch0000_step00000000.pt
"""
    )
    assert run(["top", "runs", "--metric", "val_loss", "--mode", "max"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "highest val_loss: 4 of 5 checkpoints (1 without it)"
    assert [line.split()[1:3] for line in lines[2:]] == [
        ["2.75", "4"],
        ["2.5", "0"],
        ["2.25", "1"],
        ["nan", "2"],
    ]


def test_document(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/broken.pt").write_bytes(b"nothing")
    assert run(["top", "runs", "--metric", "val_loss", "-k", "4", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: left out: runs/broken.pt is not a checkpoint")
    document = json.loads(captured.out, parse_constant=pytest.fail)
    assert (document["command"], document["status"]) == ("top", "good")
    report = document["report"]
    assert (report["metric"], report["mode"], report["k"]) == ("val_loss", "min", 4)
    assert report["checkpoints"] == 5
    assert report["best"][0] == {
        "rank": 1,
        "path": "runs/checkpoint_epoch0000_step00000001.pt",
        "step": 1,
        "epoch": 0,
        "metric": 2.25,
        "metrics": {"val_loss": 2.25, "acc": 0.5},
    }
    assert [best["metric"] for best in report["best"]] == [2.25, 2.5, 2.75, "NaN"]
    assert [each["path"] for each in report["left_out"]] == ["runs/broken.pt"]


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (
            ["runs", "--metric", "loss"],
            "no metric 'loss' in runs (available: val_loss, acc)",
            "try --metric val_loss",
        ),
        (
            ["nothing", "--metric", "val_loss"],
            "nothing: No such file or directory",
            "give checkpoint",
        ),
        (["empty", "--metric", "val_loss"], "no checkpoint in empty", "give checkpoint"),
    ],
)
def test_nothing_found(
    args: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    assert run(["top", *args]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert first == f"error: {message}"
    assert second.startswith(f"hint: {hint}")
    assert run(["top", *args, "--json"]) == 4
    document = json.loads(capsys.readouterr().out)
    assert (document["status"], document["error"]["message"]) == ("not_found", message)


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["runs"], "--metric"),
        (["--metric", "acc"], "Missing argument"),
        (["runs", "--metric", "acc", "-k", "0"], "-k"),
        (["runs", "--metric", "acc", "--mode", "best"], "'min', 'max'"),
    ],
)
def test_usage(args: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["top", *args]) == 2
    assert word in capsys.readouterr().err


def test_no_torch_and_no_rich_is_imported() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-X", "importtime", "-m", "fastckpt"),
            *("top", "runs", "--metric", "val_loss"),
        ],
        text=True,
        capture_output=True,
        check=True,
        timeout=200,
    )
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()
    }
    assert "typer" in imported
    assert not imported & {"torch", "numpy", "rich", "pydantic"}
