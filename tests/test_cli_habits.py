"""What all commands have in common: help, quiet, where they write, what they say of a failure."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.command_line import run_json
from tests.files_by_verdict import damage, write_step

from fastckpt import errors
from fastckpt.cli import exit_codes
from fastckpt.cli.app import app, run
from fastckpt.cli.failures import judge

Captured = pytest.CaptureFixture[str]
COMMANDS = [info.name or "" for info in app.registered_commands]


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("a", 1.0), ("b", 2.0)):
        torch.save({"w": torch.full((64,), value), "v": torch.zeros(4000)}, f"{name}.pt")


def bad() -> str:
    torch.save({"w": torch.ones(64), "v": torch.zeros(4000)}, "bad.pt")
    damage(Path("bad.pt"))
    return "bad.pt"


def test_the_name_alone_prints_the_help(capsys: Captured) -> None:
    assert run([]) == 0
    alone = capsys.readouterr()
    assert alone.err == ""
    assert run(["--help"]) == 0
    assert alone.out == capsys.readouterr().out
    for command in COMMANDS:
        assert command in alone.out


# --quiet


@pytest.mark.parametrize(
    ("args", "code", "error"),
    [
        (["verify", "a.pt"], 0, ""),
        (["verify", "bad.pt"], 1, "error: DAMAGED: 1 of 1 file"),
        (["inspect", "a.pt"], 0, ""),
        (["diff", "a.pt", "a.pt"], 0, ""),
        (["diff", "a.pt", "b.pt"], 1, ""),
        (["average", "a.pt", "b.pt", "--to", "mean.pt"], 0, ""),
        (["export", "a.pt", "weights.pt"], 0, ""),
        (["copy", "a.pt", "copies"], 0, ""),
        (["copy", "bad.pt", "copies"], 1, "error: DAMAGED: 0 of 1 checkpoint"),
        (["gc", "."], 0, ""),
        (["prune", "empty", "--keep", "1"], 4, "error: NOT FOUND: no checkpoints in empty"),
        (["repair", "bad.pt", "new.pt"], 1, "error: SALVAGED IN PART: new.pt"),
        (["inspect", "nothing"], 4, "error: nothing: No such file"),
    ],
)
@pytest.mark.parametrize("option", ["-q", "--quiet"])
def test_quiet(args: list[str], code: int, error: str, option: str, capsys: Captured) -> None:
    bad()
    Path("empty").mkdir()
    assert run([*args, option]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(error)
    assert bool(captured.err) == bool(error)
    assert "note:" not in captured.err


def test_quiet_leaves_the_document(capsys: Captured) -> None:
    assert run(["verify", "a.pt", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "good"


# Where they write


@pytest.mark.parametrize("command", ["copy", "export", "repair"])
@pytest.mark.parametrize(
    "destination", [["new.pt"], ["--to", "new.pt"], ["--output", "new.pt"], ["-o", "new.pt"]]
)
def test_the_destination_is_the_last_argument_or_an_option(
    command: str, destination: list[str], capsys: Captured
) -> None:
    assert run([command, "a.pt", *destination]) == 0
    assert torch.load("new.pt") is not None
    capsys.readouterr()
    before = Path("b.pt").read_bytes()
    assert run([command, "a.pt", "b.pt"]) == 2
    assert Path("b.pt").read_bytes() == before


@pytest.mark.parametrize("command", ["copy", "export", "repair"])
def test_the_destination_is_named_once(command: str, capsys: Captured) -> None:
    assert run([command, "a.pt"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: Missing ")
    assert "name it last or after --to" in captured.err
    assert run([command, "a.pt", "x.pt", "--to", "y.pt"]) == 2
    assert "is named twice, 'x.pt' and 'y.pt'" in capsys.readouterr().err
    assert sorted(os.listdir()) == ["a.pt", "b.pt"]


def test_copy_writes_a_file_to_a_file_name_and_into_a_directory(capsys: Captured) -> None:
    data = Path("a.pt").read_bytes()
    Path("there").mkdir()
    Path("there.pt").mkdir()
    for destination, path in (
        ("new.pt", "new.pt"),
        ("there", "there/a.pt"),
        ("there/other.pt", "there/other.pt"),
        ("there.pt", "there.pt/a.pt"),
        ("made", "made/a.pt"),
        ("made.pt/", "made.pt/a.pt"),
        ("made/deep/x.pth", "made/deep/x.pth"),
    ):
        assert run(["copy", "a.pt", "--to", destination]) == 0, destination
        assert Path(path).read_bytes() == data
    document = run_json(capsys, "copy", "a.pt", "new2.pt", status="good")
    assert document["report"]["checkpoints"][0]["files"][0]["path"] == "./new2.pt"
    # The same again is there already; something else is never overwritten.
    assert run(["copy", "a.pt", "new.pt"]) == 0
    assert capsys.readouterr().out.startswith("ALL THERE")
    assert run(["copy", "b.pt", "new.pt"]) == 2
    assert capsys.readouterr().out.startswith("IN THE WAY")
    assert Path("new.pt").read_bytes() == data
    assert run(["copy", "a.pt", "a.pt"]) == 2
    assert run(["copy", "a.pt", "."]) == 2
    assert "is where the source is" in capsys.readouterr().err


def test_a_damaged_file_is_not_copied_to_a_new_name(capsys: Captured) -> None:
    assert run(["copy", bad(), "new.pt"]) == 1
    assert not Path("new.pt").exists()


# What they say of a failure


def test_no_message_calls_damaged_what_no_checksum_calls_so(capsys: Captured) -> None:
    torch.save({"step": 1}, "none.pt")
    for args in (["average", "none.pt", "--to", "x.pt"], ["export", "none.pt", "x.pt"]):
        assert run([*args, "--json"]) == 1
        captured = capsys.readouterr()
        assert json.loads(captured.out)["status"] == "unusable"
        assert "damaged" not in captured.err
        assert "repair" not in captured.err


def test_a_refusal_is_not_damage(capsys: Captured) -> None:
    torch.save({"w": torch.ones(2), "path": Path("x")}, "foreign.pt")
    assert run(["export", "foreign.pt", "x.pt", "--json"]) in {1, 5}
    captured = capsys.readouterr()
    assert json.loads(captured.out)["status"] in {"refused", "unusable"}
    assert "repair" not in captured.err
    assert "hint: the file is not damaged" in captured.err or "unusable" in captured.out


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.ChecksumError("x", path="a.pt"), "damaged", 1),
        (errors.FormatError("x", path="a.pt"), "damaged", 1),
        (errors.ContentsError("x"), "unusable", 1),
        (errors.UncoveredFormatError("x", hint="do that"), "uncovered", 5),
        (errors.TorchScriptError("x"), "uncovered", 5),
        (errors.UnsafePickleError("x"), "refused", 5),
        (errors.IncompleteCheckpointError("x"), "incomplete", 3),
        (FileNotFoundError(2, "No such file or directory", "a.pt"), "not_found", 4),
        (NotADirectoryError(20, "Not a directory", "a.pt/b"), "not_found", 4),
        (FileExistsError(17, "File exists", "a.pt"), "usage", 2),
        (errors.UnknownMetricError("x", ["y"], "runs"), "not_found", 4),
        (PermissionError(13, "Permission denied", "a.pt"), "io_error", 6),
        (errors.CommitUnknownError(5, "Input/output error", "a.pt"), "io_error", 6),
        (ValueError("x"), "usage", 2),
        (MemoryError(), "io_error", 6),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "usage", 2),
    ],
)
def test_one_table_for_all_commands(error: Exception, status: str, code: int) -> None:
    for command in COMMANDS:
        failure = judge(error, command)
        assert failure is not None
        assert failure.status == status
        is_diffs = command == "diff" and code == 1
        assert failure.exit_code == (exit_codes.IO_ERROR if is_diffs else code)
        assert failure.message


@pytest.mark.parametrize(
    "error", [KeyError("x"), RuntimeError("x"), json.JSONDecodeError("x", "y", 0), ImportError("x")]
)
def test_what_only_a_bug_raises_is_not_in_the_table(error: Exception) -> None:
    assert judge(error, "verify") is None


# repair is mentioned where it helps


def truncated() -> None:
    data = Path("a.pt").read_bytes()
    Path("x.pt").write_bytes(data[: len(data) - 700])


def without_its_directory() -> None:
    data = bytearray(Path("a.pt").read_bytes())
    data[-3] ^= 1
    Path("x.pt").write_bytes(data)


def one_tensor() -> None:
    os.rename(bad(), "x.pt")


def only_tensor() -> None:
    torch.save({"v": torch.zeros(4000)}, "x.pt")
    damage(Path("x.pt"))


def junk() -> None:
    Path("x.pt").write_bytes(b"junk" * 100)


def empty() -> None:
    Path("x.pt").touch()


def beginning() -> None:
    Path("x.pt").write_bytes(Path("a.pt").read_bytes()[:100])


def other_archive() -> None:
    import zipfile

    with zipfile.ZipFile("x.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    data = bytearray(Path("x.pt").read_bytes())
    data[data.index(b"hello")] ^= 1
    Path("x.pt").write_bytes(data)


@pytest.mark.parametrize("make", [truncated, without_its_directory, one_tensor])
def test_verify_mentions_repair_where_it_helps(make: Any, capsys: Captured) -> None:
    make()
    assert run(["verify", "x.pt"]) == 1
    assert "`fastckpt repair x.pt --to NEW` recovers" in capsys.readouterr().out
    document = run_json(capsys, "verify", "x.pt", status="damaged", code=1)
    assert document["report"]["files"][0]["repairable"] is True
    run(["repair", "x.pt", "new.pt"])
    assert len(torch.load("new.pt")) > 0


@pytest.mark.parametrize("make", [only_tensor, junk, empty, beginning, other_archive])
def test_verify_does_not_mention_repair_where_it_does_not_help(make: Any, capsys: Captured) -> None:
    make()
    assert run(["verify", "x.pt"]) == 1
    captured = capsys.readouterr()
    assert "repair" not in captured.out + captured.err
    assert "restore x.pt from a copy" in captured.out
    document = run_json(capsys, "verify", "x.pt", status="damaged", code=1)
    assert document["report"]["files"][0]["repairable"] is False


def test_repair_is_no_advice_for_a_damaged_meta(capsys: Captured) -> None:
    write_step(Path("run"), 1)
    Path("run/meta_000001.json").write_text("{")
    assert run(["verify", "run"]) == 1
    captured = capsys.readouterr()
    assert "repair" not in captured.out + captured.err


# Deleting


def managed(value: float, step: int) -> None:
    Path("run").mkdir(exist_ok=True)
    root = {
        "epoch": 0,
        "global_step": step,
        "model_state_dict": {"w": torch.ones(2)},
        "metrics": {"val_loss": value, "val_acc": 1 - value},
        "config": {"metric_name": "val_loss", "metric_mode": "min"},
        "best_metric": 0.1,
    }
    torch.save(root, f"run/checkpoint_epoch0000_step{step:08d}.pt")


def steps_left() -> list[int]:
    return sorted(int(name[-11:-3]) for name in os.listdir("run"))


@pytest.mark.parametrize("option", ["-n", "--dry-run"])
def test_a_dry_run_does_not_say_that_it_was_done(option: str, capsys: Captured) -> None:
    for step, value in enumerate((0.5, 0.1, 0.3)):
        managed(value, step)
    report = run_json(capsys, "prune", "run", "--keep", "1", option, status="good")["report"]
    gone = "run/checkpoint_epoch0000_step00000000.pt"
    assert (report["dry_run"], report["deleted"], report["would_delete"]) == (True, [], [gone])
    assert [each["fate"] for each in report["checkpoints"]] == ["would_delete", "kept", "kept"]
    assert report["freed_nbytes"] == 0
    assert report["would_free_nbytes"] == Path(gone).stat().st_size
    assert run(["prune", "run", "--keep", "1", option]) == 0
    assert "  would delete  " in capsys.readouterr().out
    assert steps_left() == [0, 1, 2]

    report = run_json(capsys, "prune", "run", "--keep", "1", status="good")["report"]
    assert (report["dry_run"], report["deleted"], report["would_delete"]) == (False, [gone], [])
    assert [each["fate"] for each in report["checkpoints"]] == ["removed", "kept", "kept"]
    assert (report["freed_nbytes"] > 0, report["would_free_nbytes"]) == (True, 0)

    Path("run/.fastckpt-1-1.tmp").touch()
    report = run_json(capsys, "gc", "run", option, status="good")["report"]
    assert (report["deleted"], report["would_delete"]) == ([], ["run/.fastckpt-1-1.tmp"])
    assert Path("run/.fastckpt-1-1.tmp").exists()


def test_prune_keeps_the_best(capsys: Captured) -> None:
    for step, value in enumerate((0.5, 0.1, 0.3, 0.2, 0.6, 0.7)):
        managed(value, step)
    # By the metric of the configuration; without --keep the newest stays.
    assert run(["prune", "run", "--keep-best", "3"]) == 0
    assert steps_left() == [1, 2, 3, 5]
    assert run(["prune", "run", "--keep-best", "2", "--metric", "val_acc", "--mode", "max"]) == 0
    assert steps_left() == [1, 3, 5]
    assert run(["prune", "run"]) == 2
    assert "Missing option '--keep'" in capsys.readouterr().err


def test_prune_needs_a_metric_for_the_best_of_steps_that_name_none(capsys: Captured) -> None:
    for step in (1, 2, 3):
        write_step(Path("run"), step)
        Path(f"run/meta_{step:06d}.json").write_text(json.dumps({"val_bpb": step, "acc": step}))
    assert run(["prune", "run", "--keep-best", "2"]) == 2
    assert "--keep-best needs --metric" in capsys.readouterr().err
    assert run(["prune", "run", "--keep", "1", "--metric", "acc"]) == 2
    assert "say --mode max" in capsys.readouterr().err
    assert run(["prune", "run", "--keep", "1", "--metric", "nope"]) == 4
    assert "no metric 'nope' in run (available: " in capsys.readouterr().err
    assert len(os.listdir("run")) == 6
    assert run(["prune", "run", "--keep-best", "2", "--metric-name", "val_bpb"]) == 0
    assert len(os.listdir("run")) == 6


def test_what_is_not_recursive_says_where_the_checkpoints_are(capsys: Captured) -> None:
    write_step(Path("runs/d12"), 1)
    for args in (["prune", "runs", "--keep", "1"], ["copy", "runs", "to"]):
        assert run(args) == 4
        assert "not recursive: give the directory itself: runs/d12" in capsys.readouterr().err


def test_inspect_points_to_prune(capsys: Captured) -> None:
    for step in (1, 2):
        write_step(Path("run"), step)
    assert run(["inspect", "run"]) == 0
    assert "(with `fastckpt prune run --keep 1`)" in capsys.readouterr().out


# top


def test_top_offers_real_metrics_the_nearest_first(capsys: Captured) -> None:
    managed(0.5, 1)
    assert run(["top", "run", "--metric", "loss"]) == 4
    assert capsys.readouterr().err == (
        "error: no metric 'loss' in run (available: val_loss, val_acc)\nhint: try --metric val_loss\n"
    )


def test_top_ranks_nothing_without_the_metric(capsys: Captured) -> None:
    managed(0.5, 1)
    managed(0.25, 2)
    torch.save({"step": 3, "w": torch.ones(1)}, "run/other.pt")
    report = run_json(capsys, "top", "run", "--metric", "val_loss", status="good")["report"]
    assert [best["step"] for best in report["best"]] == [2, 1]
    assert report["checkpoints"] == 3


@pytest.mark.parametrize("name", ["val_acc", "Accuracy", "eval.BLEU", "f1", "valAcc", "top1_acc"])
def test_top_asks_which_end_of_an_accuracy_is_best(name: str, capsys: Captured) -> None:
    managed(0.5, 1)
    assert run(["top", "run", "--metric", name]) == 2
    assert "say --mode max, or --mode min" in capsys.readouterr().err
    assert run(["top", "run", "--metric", "val_acc", "--mode", "max"]) == 0
    assert capsys.readouterr().out.startswith("highest val_acc: 1 of 1 checkpoint\n")
