"""`fastckpt inspect`: its text, its document, its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.specimens import quiet

import fastckpt
from fastckpt._inspect.report import FileContents, TensorRow
from fastckpt.cli.app import run
from fastckpt.cli.inspect_output import file_lines
from fastckpt.cli.tables import format_number, format_value, json_number, natural_key


def gpt(layers: int = 3) -> OrderedDict[str, torch.Tensor]:
    state = OrderedDict({"transformer.wte.weight": torch.ones(64, 8, dtype=torch.bfloat16)})
    for layer in range(layers):
        state[f"transformer.h.{layer}.attn.c_q.weight"] = torch.ones(8, 8)
        state[f"transformer.h.{layer}.mlp.c_fc.weight"] = torch.ones(32, 8)
    state["lm_head.weight"] = torch.ones(64, 8)
    return state


def checkpoint(step: int = 200, **metrics: float) -> dict[str, Any]:
    weights = gpt(1)
    state = {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(64, 8)}}
    return {
        "epoch": 1,
        "global_step": step,
        "model_state_dict": weights,
        "optimizer_state_dict": {"state": state, "param_groups": [{"lr": 0.5, "params": [0]}]},
        "metrics": metrics,
        "metrics_history": [{}] * 3,
    }


@pytest.fixture(autouse=True)
def in_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in the output are short, and the width is known."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


def output(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert run(["inspect", *args]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def document(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> dict[str, Any]:
    assert run(["inspect", "--json", *args]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["command"] == "inspect"
    assert found["exit_code"] == code
    return found


# Files.


def test_text_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(checkpoint(val_loss=2.5), "a.pt")
    nbytes = Path("a.pt").stat().st_size
    assert (
        output(capsys, "a.pt")
        == f"""\
a.pt: {nbytes / 1000:.1f} kB, torch, 6 tensors, epoch 1, step 200

tensor                                            dtype     shape    elements    size
model_state_dict.transformer.wte.weight           bfloat16  (64, 8)       512  1.0 kB
model_state_dict.transformer.h.0.attn.c_q.weight  float32   (8, 8)         64   256 B
model_state_dict.transformer.h.0.mlp.c_fc.weight  float32   (32, 8)       256  1.0 kB
model_state_dict.lm_head.weight                   float32   (64, 8)       512  2.0 kB
optimizer_state_dict.state.0.step                 float32   ()              1     4 B
optimizer_state_dict.state.0.exp_avg              float32   (64, 8)       512  2.0 kB

epoch                                   1
global_step                             200
metrics.val_loss                        2.5
metrics_history                         (not shown, of length 3)
optimizer_state_dict.param_groups.0.lr  0.5

               tensors  elements    size
model                4     1,344  4.4 kB
  transformer        3       832  2.3 kB
  lm_head            1       512  2.0 kB
optimizer            2       513  2.1 kB
  step               1         1     4 B
  exp_avg            1       512  2.0 kB
total                6     1,857  6.4 kB
"""
    )


def test_the_tree_shows_blocks_that_are_alike_once(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": gpt(12)}, "a.pt")
    text = output(capsys, "a.pt", "--tree")
    assert (
        text.split("\n\n")[1]
        == """\
                         tensors     size
model                         26  18.4 kB
  transformer                 25  16.4 kB
    wte.weight                     1.0 kB  bfloat16 (64, 8)
    h                         24  15.4 kB
      0-11                    24  15.4 kB  12 alike, 1.3 kB each
        attn.c_q.weight             256 B  float32 (8, 8)
        mlp.c_fc.weight            1.0 kB  float32 (32, 8)
  lm_head.weight                   2.0 kB  float32 (64, 8)"""
    )


def test_blocks_that_differ_are_shown_each(capsys: pytest.CaptureFixture[str]) -> None:
    state = {f"h.{n}.w": torch.ones(2 if n == 2 else 1) for n in range(5)}
    torch.save(state, "a.pt")
    tree = output(capsys, "a.pt", "--tree").split("\n\n")[1]
    assert [line.split()[0] for line in tree.splitlines()[1:]] == ["h", "0-1.w", "2.w", "3-4.w"]
    by_size = output(capsys, "a.pt", "--tree", "--sort", "size").split("\n\n")[1]
    names = [line.split()[0] for line in by_size.splitlines()[1:]]
    assert names == ["h", "2.w", "0...4.w"]


def test_a_tensor_and_a_module_of_one_name(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": torch.ones(1), "a.b": torch.ones(2), "c.d": torch.ones(1)}, "a.pt")
    tree = output(capsys, "a.pt", "--tree").split("\n\n")[1]
    assert "(2,)" in tree
    assert tree.count("(1,)") == 2


def test_order(capsys: pytest.CaptureFixture[str]) -> None:
    state = {"h.10": torch.ones(3), "h.9": torch.ones(1), "a": torch.ones(2)}
    torch.save(state, "a.pt")

    def listed(*args: str) -> list[str]:
        return [line.split()[0] for line in output(capsys, "a.pt", *args).splitlines()[3:6]]

    assert listed() == ["h.10", "h.9", "a"]
    assert listed("--sort", "size") == ["h.10", "a", "h.9"]
    assert listed("--sort", "name") == ["a", "h.9", "h.10"]
    tensors = document(capsys, "a.pt", "--sort", "size")["report"]["tensors"]
    assert [tensor["name"] for tensor in tensors] == ["h.10", "a", "h.9"]


def test_memory_that_is_shared_shows_in_both_figures(capsys: pytest.CaptureFixture[str]) -> None:
    tied = torch.ones(1000)
    with quiet():
        torch.save({"wte": tied, "head": tied, "sparse": torch.eye(3).to_sparse()}, "a.pt")
    text = output(capsys, "a.pt")
    assert "head    float32  (1000,)     1,000  4.0 kB  shares memory with wte" in text
    assert "sparse  float32  (3, 3)          9    60 B  sparse" in text
    total = next(line for line in text.splitlines() if line.startswith("model"))
    assert total.split() == ["model", "3", "2,009", "8.1", "kB", "4.1", "kB"]
    assert "in the file" in text


def test_document_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(checkpoint(val_loss=float("nan"), acc=float("-inf")), "a.pt")
    found = document(capsys, "a.pt")
    report = found["report"]
    assert (found["status"], found["ok"], report["kind"]) == ("good", True, "file")
    assert report["nbytes"] == Path("a.pt").stat().st_size
    assert (report["step"], report["epoch"]) == (200, 1)
    # Strict JSON has neither NaN nor infinities.
    assert report["metrics"] == {"val_loss": "NaN", "acc": "-Infinity"}
    assert report["omitted"] == {"metrics_history": 3}
    assert report["tensors"][0] == {
        "name": "model_state_dict.transformer.wte.weight",
        "group": "model",
        "module": "transformer",
        "kind": "tensor",
        "dtype": "bfloat16",
        "shape": [64, 8],
        "nbytes": 1024,
        "storages": ["0"],
        "shares_with": None,
        "numel": 512,
    }
    assert [group["name"] for group in report["groups"]] == ["model", "optimizer"]
    assert report["groups"][0]["modules"][1] == {
        "name": "lm_head",
        "tensors": 1,
        "numel": 512,
        "nbytes": 2048,
        "storage_nbytes": 2048,
    }
    assert report["total"]["tensors"] == len(report["tensors"]) == 6


def test_long_listings_are_cut_but_for_the_tensors(capsys: pytest.CaptureFixture[str]) -> None:
    state = {f"m{n}.w": torch.ones(1) for n in range(1500)}
    config = {f"key{n}": n for n in range(500)}
    torch.save({"model": state, "config": config}, "a.pt")
    lines = output(capsys, "a.pt").splitlines()
    assert sum(line.startswith("model.m") for line in lines) == 1500
    assert "and 440 more values (see --json)" in lines
    assert lines[-1] == "and 1,460 more parts (see --json)"
    assert lines[0].endswith("torch, 1,500 tensors")
    assert len(document(capsys, "a.pt")["report"]["values"]) == 500


def test_a_broken_meta_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    fastckpt.save_checkpoint(".", 100, gpt(), None, {"step": 100})
    assert "from meta_000100.json:" in output(capsys, "model_000100.pt")
    Path("meta_000100.json").write_text("{")
    assert run(["inspect", "model_000100.pt"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: meta_000100.json is not a meta file: ")
    assert "lm_head.weight" in captured.out


def test_hostile_names_reach_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "w\x1b[2J\r\n\u202eeight"
    torch.save({"model": {evil: torch.ones(1)}, evil: evil, "metrics": {evil: 1.0}}, "a.pt")
    Path("runs").mkdir()
    os.link("a.pt", "runs/a.pt")
    for args in (["a.pt"], ["a.pt", "--tree"], ["a.pt", "--json"], ["runs"], ["runs", "--json"]):
        assert run(["inspect", *args]) == 0
        shown = capsys.readouterr()
        assert [
            char for char in shown.out + shown.err if char != "\n" and not char.isprintable()
        ] == []
        assert "w\\x1b[2J" in shown.out or "w\\u001b[2J" in shown.out


def test_a_name_of_a_thousand_dots_is_no_tree_of_a_thousand_levels() -> None:
    name = ".".join("a" * 5000)
    row = TensorRow(name, "model", "a", "tensor", "float32", (1,), 4, ("0",))
    other = TensorRow(name + ".b", "model", "a", "tensor", "float32", (1,), 4, ("0",))
    numbers = TensorRow("9" * 5000 + ".c", "model", "a", "tensor", None, None, 4, ("0",))
    contents = FileContents(
        "a.pt", "torch", 9, (row, other, numbers), {"0": 4}, None, None, {}, {}, {}
    )
    assert len(list(file_lines(contents, tree=True, sort=None))) > 3


# What cannot be shown.


def old_format() -> None:
    torch.save({}, "a.pt", _use_new_zipfile_serialization=False)


def protocol_4() -> None:
    torch.save({"w": torch.ones(1)}, "a.pt", pickle_protocol=4)


def no_checkpoint() -> None:
    Path("a.pt").write_bytes(b"no checkpoint at all")


def nothing() -> None:
    pass


@pytest.mark.parametrize(
    ("make", "status", "code", "message", "hint"),
    [
        (old_format, "uncovered", 5, "before 1.6", "fastckpt.load reads it; saved again"),
        (protocol_4, "uncovered", 5, "protocol", "if you trust who made it"),
        (
            no_checkpoint,
            "damaged",
            1,
            "is not a checkpoint",
            "`fastckpt verify a.pt` says what is wrong",
        ),
        (nothing, "not_found", 4, "No such file", "give a .pt file"),
    ],
)
def test_errors(
    make: Any,
    status: str,
    code: int,
    message: str,
    hint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make()
    assert run(["inspect", "a.pt"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    # Long messages are folded at the width of the terminal.
    first, second = " ".join(captured.err.split()).split(" hint: ")
    assert first.startswith("error: a.pt")
    assert message in first
    assert hint in second
    found = document(capsys, "a.pt", code=code)
    assert (found["status"], found["report"]) == (status, None)
    assert hint in found["error"]["hint"]


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "a.pt", "--sort", "colour"]) == 2
    assert "'size', 'name'" in capsys.readouterr().err


# Directories.


def write_run() -> None:
    """Make a run of three steps."""
    for step, bpb in ((500, 1.25), (1000, 1.125), (1500, 1.0625)):
        meta = {
            "step": step,
            "val_bpb": bpb,
            "model_config": {"n_layer": 3},
            "total_batch_size": 524288,
            "loop_state": {"min_val_bpb": bpb, "total_training_time": step * 1.5},
        }
        state = {"state": {0: {"exp_avg": torch.ones(64, 8)}}, "param_groups": []}
        fastckpt.save_checkpoint("d4", step, gpt(), state, meta)


def test_text_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    write_run()
    step = sum(path.stat().st_size for path in Path("d4").glob("*_000500*"))
    model = Path("d4/model_000500.pt").stat().st_size
    optimizer = Path("d4/optim_000500_rank0.pt").stat().st_size
    sizes = f"{model / 1000:.1f} kB     {optimizer / 1000:.1f} kB  {step / 1000:.1f} kB"
    everything = sum(path.stat().st_size for path in Path("d4").iterdir())
    freed = sum(path.stat().st_size for path in Path("d4").iterdir() if "1500" not in path.name)
    assert (
        output(capsys, "d4")
        == f"""\
d4: 3 checkpoints, {everything / 1000:.1f} kB
  step  state    model  optimizer    total  ranks  val_bpb  min_val_bpb  total_training_time
   500  whole  {sizes}      1     1.25         1.25                  750
  1000  whole  {sizes}      1    1.125        1.125                 1500
  1500  whole  {sizes}      1   1.0625       1.0625                 2250
  deleting all older than step 1500 would free {freed / 1000:.1f} kB (with `fastckpt prune d4 --keep 1`)
"""
    )


def test_columns_fit_the_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run()
    monkeypatch.setenv("COLUMNS", "80")
    lines = output(capsys, "d4").splitlines()
    assert max(map(len, lines[1:5])) <= 80
    assert "min_val_bpb" in lines[1]
    assert "  not shown, see --json: loop_state.total_training_time" in lines
    row = document(capsys, "d4")["report"]["runs"][0]["checkpoints"][0]
    assert row["metrics"]["loop_state.total_training_time"] == 750.0


def test_several_runs_torn_steps_and_leftovers(capsys: pytest.CaptureFixture[str]) -> None:
    write_run()
    Path("d4/optim_001500_rank0.pt").unlink()
    Path("d4/.fastckpt-1-1.tmp").touch()
    Path("other").mkdir()
    torch.save(checkpoint(val_loss=2.5), "other/checkpoint_epoch0001_step00000200.pt")
    os.link("other/checkpoint_epoch0001_step00000200.pt", "other/best_model.pt")
    assert run(["inspect", "."]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith(".: 2 directories with 4 checkpoints, ")
    assert lines[6].startswith("  1500  TORN ")
    assert lines[7].startswith("  step 1500: ./d4/optim_001500_rank0.pt is missing: ")
    assert " ".join(lines[7:9]).endswith("load it with       load_optimizer=False)")
    assert lines[9].startswith("  deleting all older than step 1000 would free ")
    assert lines[-1].endswith("      2.5  = best_model.pt")
    assert captured.err.splitlines() == [
        "hint: `fastckpt verify .` says what is wrong, byte by byte",
        (
            "note: 1 temporary file of running or interrupted saves (`fastckpt gc`): "
            "./d4/.fastckpt-1-1.tmp"
        ),
    ]


def test_files_are_named_where_their_names_say_more_than_the_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.save(checkpoint(val_loss=2.5), "checkpoint_epoch0001_step00000200.pt")
    assert "file" not in output(capsys, ".")
    torch.save(checkpoint(300, val_loss=2.5), "mine.ckpt")
    lines = output(capsys, ".").splitlines()
    assert lines[1].split()[-2:] == ["val_loss", "file"]
    assert [line.split()[-1] for line in lines[2:4]] == [
        "checkpoint_epoch0001_step00000200.pt",
        "mine.ckpt",
    ]


def test_document_of_a_directory(capsys: pytest.CaptureFixture[str]) -> None:
    write_run()
    report = document(capsys, "d4")["report"]
    assert report["kind"] == "directory"
    (found,) = report["runs"]
    assert (found["directory"], found["newest"]) == ("d4", 1500)
    assert found["nbytes"] == report["nbytes"]
    assert found["checkpoints"][2] == {
        "name": "model_001500.pt",
        "step": 1500,
        "epoch": None,
        "state": "whole",
        "problem": None,
        "nbytes": sum(path.stat().st_size for path in Path("d4").glob("*_001500*")),
        "model_nbytes": Path("d4/model_001500.pt").stat().st_size,
        "optimizer_nbytes": Path("d4/optim_001500_rank0.pt").stat().st_size,
        "ranks": 1,
        "metrics": {
            "val_bpb": 1.0625,
            "loop_state.min_val_bpb": 1.0625,
            "loop_state.total_training_time": 2250.0,
        },
        "files": [
            "model_001500.pt",
            "meta_001500.json",
            "manifest_001500.json",
            "optim_001500_rank0.pt",
        ],
        "is_best": False,
    }


def test_a_directory_without_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert run(["inspect", "empty"]) == 4
    captured = capsys.readouterr()
    assert captured.out == "NOT FOUND: no checkpoint in empty\n"
    assert (
        captured.err
        == "hint: give a .pt file, a step (runs/d12@1200), a checkpoint directory or a parent of one\n"
    )
    assert document(capsys, "empty", code=4)["status"] == "not_found"


# Parts.


def test_no_torch_and_no_rich_is_imported() -> None:
    write_run()
    for path in ("d4", "d4/model_000500.pt"):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "fastckpt", "inspect", path],
            text=True,
            capture_output=True,
            check=True,
            timeout=200,
        )
        imported = {
            line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()
        }
        assert "typer" in imported
        assert not imported & {"torch", "numpy", "rich", "pydantic", "safetensors"}


def test_numbers_and_values() -> None:
    assert format_number(1234567) == "1,234,567"
    assert format_number(0.123456789) == "0.123457"
    assert format_number(float("nan")) == "nan"
    assert format_number(2**2000).startswith("0x1000")
    assert format_value(["a\n", 1, None]) == "[a\\n, 1, None]"
    assert format_value("x" * 1000) == "x" * 160 + "..."
    assert json_number([1.5, float("inf")]) == [1.5, "Infinity"]
    assert sorted(["h.10", "h.9", "a", "h.09b", "h."], key=natural_key) == [
        "a",
        "h.",
        "h.9",
        "h.09b",
        "h.10",
    ]
