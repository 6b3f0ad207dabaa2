"""The command as a process: which stream, a terminal, interrupts, what it imports."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.command_line import COMMAND, in_terminal
from tests.files_by_verdict import damaged, good

import fastckpt._verify.verify
from fastckpt._verify.report import FileReport, Status, VerifyReport
from fastckpt.cli.app import run
from fastckpt.cli.verify_output import report_lines


def command(
    *args: str, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args],
        env={**os.environ, **(env or {})},
        text=True,
        capture_output=True,
        check=False,
        timeout=200,
        **options,
    )


def test_version() -> None:
    done = command("--version")
    assert done.returncode == 0
    assert re.fullmatch(r"fastckpt \d+\.\d+\.\d+\S*\n", done.stdout)


def test_help_names_options_and_exit_codes() -> None:
    done = command("verify", "--help", env={"COLUMNS": "100", "TERM": "dumb"})
    assert done.returncode == 0
    for word in ("--quick", "--strict", "--threads", "--json", "130 interrupted", "damaged"):
        assert word in done.stdout
    assert "verify" in command("--help").stdout


def test_results_on_stdout_messages_on_stderr(tmp_path: Path) -> None:
    (good(tmp_path) / ".fastckpt-1-1.tmp").touch()
    done = command("verify", str(tmp_path))
    assert done.returncode == 0
    assert done.stdout.startswith("OK: 2 files, ")
    assert done.stderr.startswith("note: 1 temporary file")
    assert "\x1b" not in done.stdout + done.stderr


def test_the_command_imports_no_torch_and_no_rich(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fastckpt", "verify", str(good(tmp_path))],
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


def test_the_locale_need_not_know_the_letters(tmp_path: Path) -> None:
    path = tmp_path / "poids_é.pt"
    torch.save({"w": torch.ones(2)}, path)
    done = command("verify", str(path), env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert "poids_\\xe9.pt" in done.stdout


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "verify", str(good(tmp_path))], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_stdout(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "verify", "--json", str(good(tmp_path))],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=200,
        )
    assert done.returncode == 6
    assert "No space left on device" in done.stderr


def test_interrupt(tmp_path: Path) -> None:
    script = (
        "import os, threading\n"
        "import fastckpt._verify.verify\n"
        "def wait(*args, **options):\n"
        "    os.write(1, b'ready')\n"
        "    threading.Event().wait()\n"
        "fastckpt._verify.verify.verify = wait\n"
        "from fastckpt.cli import main\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "verify", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read(5) == b"ready"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 130
    assert errors == b"error: interrupted\n"


def test_a_terminal_sees_colour_and_no_bar_for_what_is_done_at_once(tmp_path: Path) -> None:
    code, shown = in_terminal("verify", str(good(tmp_path)))
    assert code == 0
    assert "verifying" not in shown
    assert "\x1b[32mOK\x1b[0m" in shown


@pytest.mark.parametrize("env", [{"NO_COLOR": "1", "FASTCKPT_PROGRESS": "0"}, {"TERM": "dumb"}])
def test_a_terminal_that_wants_neither(tmp_path: Path, env: dict[str, str]) -> None:
    code, shown = in_terminal("verify", str(good(tmp_path)), env=env)
    assert code == 0
    assert shown.startswith("OK: 2 files")
    assert "\x1b" not in shown
    assert "verifying" not in shown


def test_no_colour_leaves_the_words(tmp_path: Path) -> None:
    code, shown = in_terminal("verify", str(damaged(tmp_path)), env={"NO_COLOR": "1"})
    assert code == 1
    assert "DAMAGED: 1 of 2 files" in shown
    assert "\x1b[31m" not in shown
    assert "\x1b[1;31m" not in shown


def test_bytes_that_were_not_read_are_not_said_to_be() -> None:
    unreadable = FileReport("a.pt", "other", Status.IO_ERROR, nbytes=1_200, message="no")
    report = VerifyReport((unreadable,), (), (), quick=False, seconds=0.1)
    assert "every byte read" not in "\n".join(line.text for line in report_lines(report))


def test_error_document_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "--json", "--no-such-option", "x"]) == 2
    assert json.loads(capsys.readouterr().out)["command"] == "verify"


@pytest.mark.parametrize(
    "args",
    [
        ("ver\x1b[2Jify",),
        ("verify", "--no-such\x1b[2J"),
        ("verify", "no such\x1b[2J"),
        ("verify", "x\n\x1b[2J", "--threads", "\x1b[2J"),
        ("verify", "--sha256", "no such\x1b[2J"),
        ("inspect", "--sort", "\x1b[2J", "x"),
        ("inspect", "no such\x1b[2J"),
        ("top", "no such\x1b[2J", "--metric", "\x1b[2J"),
        ("diff", "no such\x1b[2J", "nor\x1b[2J"),
        ("gc", "no such\x1b[2J"),
        ("prune", "no such\x1b[2J", "--keep", "1"),
        ("prune", "x", "--keep", "\x1b[2J"),
        ("copy", "no such\x1b[2J", "--to", "nor\x1b[2J"),
        ("repair", "no such\x1b[2J", "--to", "nor\x1b[2J"),
        ("export", "no such\x1b[2J", "--to", "nor\x1b[2J.pt"),
        ("export", "x.pt", "--to", "y", "--max-shard-size", "\x1b[2J"),
        ("average", "no such\x1b[2J", "nor\x1b[2J", "--to", "\x1b[2J"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_no_argument_controls_the_terminal(
    args: tuple[str, ...],
    options: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run([*args, *options])
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert "1b[2J" in shown or "no --json" in shown
    assert {char for char in shown if not char.isprintable()} <= {"\n"}


def test_a_bug_does_not_control_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise LookupError("\x1b[2J\nerror: of somebody else")

    monkeypatch.setattr(fastckpt._verify.verify, "verify", fail)
    assert run(["verify", "x"]) == 70
    assert capsys.readouterr().err.startswith(
        "error: LookupError: \\x1b[2J\\nerror: of somebody else\nhint: "
    )
