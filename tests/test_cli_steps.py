"""DIR@STEP, in every command that takes a checkpoint, and in its function."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.command_line import run_json
from tests.files_by_verdict import damage

import fastckpt
from fastckpt._named_step import split_step
from fastckpt.cli.app import run

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for step in (100, 200):
        model = {"w": torch.full((100,), float(step))}
        optimizer = {"state": {0: {"exp_avg": torch.ones(100)}}, "param_groups": []}
        fastckpt.save_checkpoint("run", step, model, optimizer, {"step": step, "val_bpb": step})
    os.mkdir("managed")
    for step in (1, 2):
        root = {
            "epoch": 0,
            "global_step": step,
            "model_state_dict": {"w": torch.full((100,), float(step))},
            "metrics": {"val_loss": float(step)},
        }
        torch.save(root, f"managed/checkpoint_epoch0000_step{step:08d}.pt")


def test_verify(capsys: Captured) -> None:
    damage(Path("run/model_000200.pt"))
    report = run_json(capsys, "verify", "run@100", status="good")["report"]
    assert ([step["step"] for step in report["steps"]], len(report["files"])) == ([100], 4)
    run_json(capsys, "verify", "run@200", status="damaged", code=1)
    report = run_json(capsys, "verify", "managed@2", status="good")["report"]
    assert [file["path"] for file in report["files"]] == [
        "managed/checkpoint_epoch0000_step00000002.pt"
    ]
    os.unlink("run/meta_000100.json")
    run_json(capsys, "verify", "run@100", status="incomplete", code=3)


def test_inspect(capsys: Captured) -> None:
    report = run_json(capsys, "inspect", "run@200", status="good")["report"]
    assert (report["path"], report["step"]) == ("run/model_000200.pt", 200)
    report = run_json(capsys, "inspect", "managed@2", status="good")["report"]
    assert report["metrics"] == {"val_loss": 2.0}


def test_diff(capsys: Captured) -> None:
    found = run_json(capsys, "diff", "run@100", "run@200", status="different", code=1)["report"]
    of_steps = run_json(capsys, "diff", "run", "--steps", "100", "200", status="different", code=1)[
        "report"
    ]
    assert found == of_steps
    assert [os.path.basename(file["a"]) for file in found["files"]] == [
        "model_000100.pt",
        "meta_000100.json",
        "optim_000100_rank0.pt",
    ]
    run_json(capsys, "diff", "managed@1", "managed@2", status="different", code=1)
    report = run_json(capsys, "diff", "run@100", "run/model_000100.pt", status="same")["report"]
    assert len(report["files"]) == 1


def test_average_top_export_and_copy(capsys: Captured) -> None:
    assert run(["average", "run@100", "run@200", "--to", "mean.pt"]) == 0
    assert torch.load("mean.pt")["w"].tolist() == [150.0] * 100
    assert run(["average", "managed@1", "managed@2", "--to", "mean2.pt"]) == 0
    assert torch.load("mean2.pt")["w"].tolist() == [1.5] * 100
    report = run_json(capsys, "top", "run@200", "--metric", "val_bpb", status="good")["report"]
    assert [best["step"] for best in report["best"]] == [200]
    assert run(["export", "run@200", "weights.pt"]) == 0
    assert torch.load("weights.pt")["model_state_dict"]["w"][0] == 200.0
    assert run(["copy", "run@200", "copied"]) == 0
    assert len(os.listdir("copied")) == 4


def test_repair_takes_the_only_file_of_a_step(capsys: Captured) -> None:
    assert run(["repair", "managed@1", "new.pt"]) == 0
    assert run(["repair", "run@100", "new2.pt"]) == 2
    assert "has 2 .pt files, and repair takes one" in capsys.readouterr().err
    assert not Path("new2.pt").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["verify"],
        ["inspect"],
        ["diff", "run@100"],
        ["average", "--to", "x.pt"],
        ["top", "--metric", "val_bpb"],
        ["export", "--to", "x.pt"],
        ["copy", "--to", "x"],
        ["repair", "--to", "x.pt"],
    ],
    ids=lambda args: args[0],
)
@pytest.mark.parametrize("path", ["run@7", "managed@7", "nothing@7"])
def test_a_step_that_is_not_there(args: list[str], path: str, capsys: Captured) -> None:
    assert run([*args, path, "--json"]) == 4
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["status"] == "not_found"
    if args[0] != "copy" and path == "run@7":
        assert "no step 7 (the steps there: 100, 200)" in captured.err
    assert not Path("x.pt").exists()


@pytest.mark.parametrize("args", [["prune", "--keep", "1"], ["gc"]], ids=lambda args: args[0])
def test_what_works_on_directories_says_so(args: list[str], capsys: Captured) -> None:
    assert run([*args, "run@100"]) == 4
    assert "hint: this command takes a directory, not a step: run\n" in capsys.readouterr().err


def test_the_functions_take_steps_too() -> None:
    assert [step.step for step in fastckpt.verify("run@100").steps] == [100]
    assert fastckpt.inspect_checkpoint(Path("run@200")).path == "run/model_000200.pt"
    assert len(fastckpt.diff("run@100", "run@200").files) == 3
    assert fastckpt.average_checkpoints(["run@100", "run@200"])["w"][0] == 150.0
    assert [each.step for each in fastckpt.top(["run@100", "run@200"], "val_bpb")] == [100, 200]
    assert fastckpt.export_checkpoint("run@100", "w.pt").source == "run/model_000100.pt"
    assert fastckpt.copy_checkpoint("run@100", "copied").ok
    with pytest.raises(FileNotFoundError, match="no step 7"):
        fastckpt.inspect_checkpoint("run@7")


def test_two_checkpoints_of_one_step_are_told_apart_by_name() -> None:
    os.link(
        "managed/checkpoint_epoch0000_step00000002.pt",
        "managed/checkpoint_epoch0001_step00000002.pt",
    )
    with pytest.raises(ValueError, match="has 2 checkpoints of step 2: name the file"):
        fastckpt.inspect_checkpoint("managed@2")


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("run@100", ("run", 100)),
        ("a/b@c@007", ("a/b@c", 7)),
        ("model.pt", None),
        ("run@", None),
        ("@7", None),
        ("run@-1", None),
        ("run@1e3", None),
    ],
)
def test_what_names_a_step(path: str, parts: Any) -> None:
    assert split_step(path) == parts


def test_a_file_of_that_name_is_the_file(capsys: Captured) -> None:
    torch.save({"w": torch.ones(1)}, "x@7")
    assert split_step("x@7") is None
    assert run(["verify", "x@7"]) == 0
