"""The `fastckpt` command: exit codes and documents, by what there is to verify."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.command_line import run_json
from tests.files_by_verdict import damaged, good, incomplete, not_found, unchecked

import fastckpt._verify.verify
from fastckpt import _native
from fastckpt.cli.app import run

OUTCOMES: list[tuple[Callable[[Path], Path], str, int]] = [
    (good, "good", 0),
    (damaged, "damaged", 1),
    (incomplete, "incomplete", 3),
    (not_found, "not_found", 4),
    (unchecked, "unchecked", 0),
]


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
