"""The `fastckpt` command: exit codes, text, JSON, and what goes to which stream."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.command_line import run_json

import fastckpt._verify.verify
from fastckpt import _native
from fastckpt._verify.report import Damage, FileReport, Status, StepReport, VerifyReport
from fastckpt.cli.app import run
from fastckpt.cli.output import format_nbytes, plural, printable
from fastckpt.cli.verify_output import messages, report_document, report_lines

COMMAND = (sys.executable, "-m", "fastckpt")


def write_step(directory: Path, step: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    torch.save({"wte": torch.arange(64.0)}, directory / f"model_{step:06d}.pt")
    (directory / f"meta_{step:06d}.json").write_text("{}")


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def good(tmp_path: Path) -> Path:
    write_step(tmp_path, 1)
    return tmp_path


def damaged(tmp_path: Path) -> Path:
    write_step(tmp_path, 1)
    torch.save({"w": torch.zeros(4000)}, tmp_path / "model_000001.pt")
    damage(tmp_path / "model_000001.pt")
    return tmp_path


def incomplete(tmp_path: Path) -> Path:
    write_step(tmp_path, 1)
    (tmp_path / "meta_000001.json").unlink()
    return tmp_path


def not_found(tmp_path: Path) -> Path:
    return tmp_path / "nothing"


def unchecked(tmp_path: Path) -> Path:
    path = tmp_path / "old.pt"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    return path


OUTCOMES: list[tuple[Callable[[Path], Path], str, int]] = [
    (good, "good", 0),
    (damaged, "damaged", 1),
    (incomplete, "incomplete", 3),
    (not_found, "not_found", 4),
    (unchecked, "unchecked", 0),
]


# Outcomes


@pytest.mark.parametrize(("make", "status", "code"), OUTCOMES)
def test_exit_codes_and_documents(
    make: Callable[[Path], Path],
    status: str,
    code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(make(tmp_path))
    assert run(["verify", path]) == code
    text = capsys.readouterr().out
    assert text.splitlines()
    document = run_json(capsys, "verify", path, status=status, code=code)
    assert document["error"] is None


def test_strict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(unchecked(tmp_path))
    run_json(capsys, "verify", "--strict", path, status="unchecked", code=5)


def test_io_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: str, **_: object) -> object:
        raise OSError(errno.EIO, "Input/output error", path)

    monkeypatch.setattr(_native, "verify_file", fail)
    path = good(tmp_path) / "model_000001.pt"
    assert run(["verify", "--json", str(path)]) == 6
    captured = capsys.readouterr()
    assert json.loads(captured.out)["status"] == "io_error"
    assert captured.err == f"error: {path} cannot be read: Input/output error\n"


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        ([], "Missing command", "fastckpt --help"),
        (["verify"], "Missing argument", "fastckpt verify --help"),
        (["verify", "--threads", "0", "x"], "--threads", "fastckpt verify --help"),
        (["verify", "--threads", "many", "x"], "--threads", "fastckpt verify --help"),
        (["verify", "--unknown", "x"], "--unknown", "fastckpt verify --help"),
        (["unknown"], "unknown", "fastckpt --help"),
    ],
)
def test_usage_errors(
    args: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert f"hint: try `{hint}`" in captured.err

    assert run([*args, "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert (document["status"], document["exit_code"], document["ok"]) == ("usage", 2, False)
    assert document["report"] is None
    assert document["error"]["hint"] == f"try `{hint}`"


def test_a_path_called_json_is_no_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", "--", "--json"]) == 4
    assert capsys.readouterr().out.startswith("NOT FOUND: 1 path\n")


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("surprise"), 70, "internal"),
        (OSError(errno.ENOSPC, "No space left on device"), 6, "io_error"),
    ],
)
def test_a_command_that_fails(
    error: BaseException,
    code: int,
    status: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(fastckpt._verify.verify, "verify", fail)
    assert run(["verify", "--json", "x"]) == code
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (document["status"], document["exit_code"]) == (status, code)
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err


# Text


def example_report() -> VerifyReport:
    model = "runs/d12/model_001300.pt"
    found = Damage(
        model,
        "data/7",
        ("transformer.h.3.mlp.c_fc.weight",),
        8192,
        4096,
        0x1A2B3C4D,
        0,
        "checksum mismatch",
    )

    def step_files(step: int, **changes: Any) -> tuple[FileReport, ...]:
        fields: dict[str, Any] = {
            "path": f"runs/d12/model_{step:06d}.pt",
            "role": "model",
            "status": Status.GOOD,
            "nbytes": 14_200_000_000,
            "seconds": 2.5,
            "records": 9,
            "step": step,
        }
        meta = FileReport(f"runs/d12/meta_{step:06d}.json", "meta", Status.GOOD, step, nbytes=1000)
        return FileReport(**{**fields, **changes}), meta

    steps = (
        StepReport(
            "runs/d12", 900, Status.INCOMPLETE, step_files(900)[:1], (), ("meta_000900.json",)
        ),
        StepReport("runs/d12", 1200, Status.GOOD, step_files(1200), (), ()),
        StepReport(
            "runs/d12",
            1300,
            Status.DAMAGED,
            step_files(1300, status=Status.DAMAGED, damages=(found,)),
            (),
            (),
        ),
    )
    files = tuple(file for step in steps for file in step.files)
    return VerifyReport(files, steps, ("runs/d12/.fastckpt-7-1.tmp",), quick=False, seconds=7.5)


def test_text_of_a_report() -> None:
    text = "\n".join(line.text for line in report_lines(example_report()))
    assert (
        text
        == """\
DAMAGED: 1 of 5 files, 42.6 GB, every byte read (7.5 s, 5.7 GB/s)
runs/d12
  step  900  INCOMPLETE      1 file    14.2 GB    5.7 GB/s  missing: meta_000900.json
  step 1200  OK             2 files    14.2 GB    5.7 GB/s
  step 1300  DAMAGED        2 files    14.2 GB    5.7 GB/s  model_001300.pt

damaged: runs/d12/model_001300.pt
  what      checksum mismatch
  tensor    transformer.h.3.mlp.c_fc.weight
  record    data/7
  bytes     8192-12287
  expected  0x1a2b3c4d
  found     0x00000000

newest good step in runs/d12: 1200"""
    )


def test_messages_of_a_report() -> None:
    ((kind, text),) = messages(example_report())
    assert kind == "note"
    assert text == (
        "1 temporary file of saves, running or interrupted, that no loader reads: "
        "runs/d12/.fastckpt-7-1.tmp"
    )


def test_document_of_a_report() -> None:
    document = report_document(example_report())
    assert document["newest_good_steps"] == {"runs/d12": 1200}
    assert document["leftovers"] == ["runs/d12/.fastckpt-7-1.tmp"]
    assert document["steps"][0] == {
        "directory": "runs/d12",
        "step": 900,
        "status": "incomplete",
        "nbytes": 14_200_000_000,
        "seconds": 2.5,
        "ranks": [],
        "missing": ["meta_000900.json"],
        "torn": [],
        "extra": [],
        "save_id": None,
        "files": ["runs/d12/model_000900.pt"],
    }
    assert document["files"][3]["damages"] == [
        {
            "record": "data/7",
            "tensors": ["transformer.h.3.mlp.c_fc.weight"],
            "offset": 8192,
            "nbytes": 4096,
            "expected": 0x1A2B3C4D,
            "found": 0,
            "detail": "checksum mismatch",
        }
    ]
    json.dumps(document, allow_nan=False)


def test_names_from_a_file_do_not_control_the_terminal() -> None:
    evil = "w\x1b[2J\r\n\u202eeight\udcff"
    found = Damage(evil, evil, (evil,), 0, 1, 1, 2, evil)
    report = VerifyReport(
        (FileReport(evil, "other", Status.DAMAGED, damages=(found,), message=evil),),
        (StepReport(evil, 1, Status.INCOMPLETE, (), (), (evil,)),),
        (evil,),
        quick=False,
        seconds=0.0,
    )
    shown = "".join(line.text for line in report_lines(report))
    shown += "".join(text for _, text in messages(report))
    assert [char for char in shown if not char.isprintable()] == []
    assert "w\\x1b[2J\\r\\n\\u202eeight\\udcff" in shown


def test_many_damages_are_counted_not_listed() -> None:
    found = tuple(
        Damage("f.pt", f"data/{n}", tuple("abcdefgh"), 0, 1, 1, 2, "checksum mismatch")
        for n in range(50)
    )
    file = FileReport("f.pt", "other", Status.DAMAGED, damages=found)
    lines = [line.text for line in report_lines(VerifyReport((file,), (), (), False, 0.0))]
    assert lines.count("damaged: f.pt") == 20
    assert "and 30 more damages in f.pt (see --json)" in lines
    assert "  tensor    a, b, c, d, e and 3 more" in lines
    assert (
        len(report_document(VerifyReport((file,), (), (), False, 0.0))["files"][0]["damages"]) == 50
    )


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (14_200_000_000, "14.2 GB"),
        (5_000_000_000_000, "5.0 TB"),
    ],
)
def test_sizes(nbytes: int, text: str) -> None:
    assert format_nbytes(nbytes) == text


def test_words() -> None:
    assert (plural(0, "file"), plural(1, "file"), plural(2, "file")) == (
        "0 files",
        "1 file",
        "2 files",
    )
    assert printable("wte.Überschrift") == "wte.Überschrift"


# The process


def command(
    *args: str, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args],
        env={**os.environ, **(env or {})},
        text=True,
        capture_output=True,
        check=False,
        timeout=60,
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
        timeout=60,
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
            timeout=60,
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
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == b"error: interrupted\n"


def in_terminal(*args: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run the command with stdout and stderr on a terminal; return exit code and what it showed."""
    outside, inside = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *args],
        stdout=inside,
        stderr=inside,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", **(env or {})},
    )
    os.close(inside)
    shown = b""
    # Linux answers EIO at the end of a pseudo-terminal.
    with contextlib.suppress(OSError):
        while data := os.read(outside, 4096):
            shown += data
    os.close(outside)
    return process.wait(timeout=30), shown.decode()


def test_a_terminal_sees_colour_and_a_bar(tmp_path: Path) -> None:
    code, shown = in_terminal("verify", str(good(tmp_path)))
    assert code == 0
    assert "verifying" in shown
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
