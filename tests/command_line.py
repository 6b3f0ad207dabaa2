"""What the tests of the command line share."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from fastckpt.cli.app import run

COMMAND = (sys.executable, "-m", "fastckpt")


def run_json(
    capsys: pytest.CaptureFixture[str], *args: str, status: str, code: int = 0
) -> dict[str, Any]:
    """Run a command with --json and check the frame of the document; return the document.

    Args:
        capsys: Captures what is printed; what was captured before is dropped.
        args: The command and its arguments.
        status: The verdict that is expected.
        code: The exit code that is expected.
    """
    capsys.readouterr()
    assert run([*args, "--json"]) == code
    # JSON has neither NaN nor infinity.
    document: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    names = ("schema_version", "command", "status", "exit_code", "ok")
    assert [document[name] for name in names] == [1, args[0], status, code, code == 0]
    return document


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
    return process.wait(timeout=200), shown.decode()
