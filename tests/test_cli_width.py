"""Nothing is wider than the terminal: help, reports and messages at 60 columns, and the bar."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
import torch
from tests.command_line import in_terminal
from tests.files_by_verdict import damage

import fastckpt
from fastckpt.cli import progress
from fastckpt.cli.app import app, run
from fastckpt.cli.output import Output
from fastckpt.cli.width import fold

Captured = pytest.CaptureFixture[str]
COMMANDS = [info.name or "" for info in app.registered_commands]
WIDTH = 60


def too_wide(text: str) -> list[str]:
    """Return the lines that are too wide and that could be broken: a name is never torn apart."""
    return [line for line in text.splitlines() if len(line) > WIDTH and " " in line.strip()]


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    for number in range(2):
        state = {
            f"transformer.layers.{layer}.attention.query_projection.weight": torch.full(
                (300, 200), float(number)
            )
            for layer in range(2)
        }
        metrics = {"validation_loss": 2.5 - number, "validation_accuracy": 0.5}
        root = {"epoch": 0, "global_step": number, "metrics": metrics, "model_state_dict": state}
        torch.save(root, f"{number}.pt")
        meta = {"step": number, "val_bpb": 1.5 - number, "loop_state": {"smooth_train_loss": 2.0}}
        optimizer = {"state": {0: {"exp_avg": torch.ones(300)}}, "param_groups": []}
        fastckpt.save_checkpoint("runs/d12", number, state, optimizer, meta)
    Path("runs/d12/tokenizer.json").touch()
    Path("runs/d12/.fastckpt-1-1.tmp").touch()
    os.makedirs("managed")
    for number in range(3):
        torch.save(
            {"epoch": 0, "global_step": number, "metrics": {"validation_loss": 1.0}},
            f"managed/checkpoint_epoch0000_step{number:08d}.pt",
        )


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help(command: str | None, capsys: Captured) -> None:
    assert run([*([command] if command else []), "--help"]) == 0
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if len(line) > WIDTH] == []
    # Where words do not fit, rich cuts them.
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown


@pytest.mark.parametrize(
    "args",
    [
        ["verify", "0.pt", "1.pt", "runs", "managed"],
        ["verify", "--quick", "runs"],
        ["verify", "damaged.pt", "torn"],
        ["verify", "nothing"],
        ["inspect", "0.pt"],
        ["inspect", "0.pt", "--tree"],
        ["inspect", "runs"],
        ["inspect", "managed"],
        ["inspect", "torn"],
        ["inspect", "nothing"],
        ["inspect", "runs@7"],
        ["diff", "0.pt", "1.pt"],
        ["diff", "runs/d12@0", "runs/d12@1"],
        ["diff", "0.pt", "damaged.pt"],
        ["top", "runs", "managed", "--metric", "val_bpb"],
        ["top", "runs", "--metric", "validation_accuracy"],
        ["top", "runs", "--metric", "nope"],
        ["average", "0.pt", "1.pt", "--to", "mean.pt"],
        ["average", "0.pt", "damaged.pt", "--to", "mean.pt"],
        ["average", "0.pt", "runs/d12", "--to", "mean.pt"],
        ["export", "0.pt", "weights.pt"],
        ["export", "0.pt", "1.pt"],
        ["export", "damaged.pt", "weights.pt"],
        ["export", "0.pt"],
        ["copy", "runs/d12", "to"],
        ["copy", "torn", "to"],
        ["copy", "damaged.pt", "to"],
        ["copy", "runs", "to"],
        ["copy", "runs/d12@7", "to"],
        ["prune", "runs/d12", "--keep", "1", "-n"],
        ["prune", "managed", "--keep", "1", "-n"],
        ["prune", "torn", "--keep", "1", "-n"],
        ["prune", "runs", "--keep", "1"],
        ["prune", "runs/d12", "--keep", "1", "--metric", "nope"],
        ["gc", "runs", "-n"],
        ["gc", "torn", "-n"],
        ["gc", "nothing"],
        ["repair", "damaged.pt", "new.pt"],
        ["repair", "runs/d12@1", "new.pt"],
    ],
    ids=" ".join,
)
def test_output(args: list[str], capsys: Captured) -> None:
    os.rename("0.pt", "damaged.pt")
    torch.save(torch.load("1.pt"), "0.pt")
    damage(Path("damaged.pt"))
    fastckpt.save_checkpoint("torn", 1, {"w": torch.ones(9)}, {"state": {}}, {"step": 1})
    os.unlink("torn/optim_000001_rank0.pt")
    fastckpt.save_checkpoint("torn", 2, {"w": torch.ones(9)}, {"state": {}}, {"step": 2})
    run(args)
    captured = capsys.readouterr()
    assert captured.out + captured.err
    assert too_wide(captured.out) == []
    assert too_wide(captured.err) == []


def test_a_pipe_gets_lines_as_they_are(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.delenv("COLUMNS")
    assert run(["diff", "0.pt", "1.pt"]) == 1
    assert any(len(line) > 100 for line in capsys.readouterr().out.splitlines())


def test_documents_and_markdown_are_not_folded(capsys: Captured) -> None:
    assert run(["inspect", "0.pt", "--json"]) == 0
    json.loads(capsys.readouterr().out)
    assert run(["diff", "0.pt", "1.pt", "--md"]) == 1
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in table)


def test_nothing_is_lost_where_a_table_is_too_wide(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    for args in (["inspect", "0.pt"], ["diff", "0.pt", "1.pt"], ["inspect", "0.pt", "--tree"]):
        run(args)
        narrow = capsys.readouterr().out
        monkeypatch.setenv("COLUMNS", "200")
        run(args)
        wide = capsys.readouterr().out
        monkeypatch.setenv("COLUMNS", str(WIDTH))
        assert sorted(narrow.split()) == sorted(wide.split())


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("short", 10, ["short"]),
        ("a word more", None, ["a word more"]),
        ("  one two three", 10, ["  one two", "      three"]),
        ("error: /a/very/long/path: gone", 12, ["error:", "    /a/very/long/path:", "    gone"]),
        ("x" * 30, 10, ["x" * 30]),
        ("two  spaces   stay here", 16, ["two  spaces", "    stay here"]),
        ("", 5, [""]),
        ("    ", 2, ["    "]),
    ],
)
def test_fold(text: str, width: int | None, lines: list[str]) -> None:
    assert fold(text, width) == lines


# The bar


class Terminal(io.StringIO):
    """A terminal for stderr."""

    def isatty(self) -> bool:
        return True


def bar_shown(monkeypatch: pytest.MonkeyPatch, times: list[float], **output: bool) -> str:
    """Return what a bar shows that hears of its work at these times, in seconds after its start."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("FASTCKPT_PROGRESS", raising=False)
    now = iter([0.0, *times])
    with progress.progress_bar("verifying", Output(**output), clock=lambda: next(now)) as update:
        if update is not None:
            for done in range(len(times)):
                update(done * 10**9, 10**11)
    return terminal.getvalue()


def test_a_bar_appears_after_half_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bar_shown(monkeypatch, [0.1, 0.3, 0.49]) == ""
    assert "verifying" in bar_shown(monkeypatch, [0.1, 0.51])
    assert bar_shown(monkeypatch, [0.1, 0.51, 9.0], quiet=True) == ""


def test_a_bar_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = bar_shown(monkeypatch, [0.6])
    for control in ("\x1b[2K", "\x1b[1A", "\x1b[?25l", "\x1b[?25h"):
        shown = shown.replace(control, "")
    import re

    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("\r", "\n").splitlines()
    assert any("verifying" in line for line in lines)
    assert [line for line in lines if len(line) > WIDTH] == []


def test_a_narrow_terminal() -> None:
    code, shown = in_terminal("diff", "0.pt", "1.pt", env={"COLUMNS": str(WIDTH), "NO_COLOR": "1"})
    assert code == 1
    assert too_wide(shown) == []
