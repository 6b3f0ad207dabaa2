"""What the tests of the command line share."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fastckpt.cli.app import run


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
