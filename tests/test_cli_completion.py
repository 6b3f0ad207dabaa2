"""Shell completion: what the shells ask for by environment variables, and what they get."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from fastckpt.cli.app import app

COMMANDS = {command.name: command for command in typer.main.get_command(app).commands.values()}  # type: ignore[attr-defined]


def complete(*words: str) -> list[str]:
    """Return what bash is offered for the last word of a command line."""
    asked = {
        "_FASTCKPT_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("fastckpt", *words)),
        "COMP_CWORD": str(len(words)),
    }
    return run([sys.executable, "-m", "fastckpt"], **asked).split()


def run(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        text=True,
        capture_output=True,
        check=True,
        timeout=200,
    )
    assert done.stderr == ""
    return done.stdout


def long_options(command: Any) -> set[str]:
    shown = [option for option in command.params if not getattr(option, "hidden", False)]
    return {name for option in shown for name in option.opts if name.startswith("--")}


def choices(command: Any) -> dict[str, list[str]]:
    """Return the values of each option that has a fixed set of them."""
    return {
        option.opts[0]: [getattr(value, "value", value) for value in option.type.choices]
        for option in command.params
        if hasattr(option.type, "choices")
    }


def test_every_command() -> None:
    assert set(complete("")) == set(COMMANDS)
    assert complete("insp") == ["inspect"]
    assert {"inspect", "top", "verify"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_its_values(name: str) -> None:
    offered = set(complete(name, "--"))
    assert offered == long_options(COMMANDS[name]) | {"--help"}
    for option, values in choices(COMMANDS[name]).items():
        assert complete(name, option, "") == values
    # Paths are left to the shell.
    assert complete(name, "") == []


def test_values_of_inspect_and_top() -> None:
    assert complete("inspect", "--sort", "") == ["size", "name"]
    assert complete("inspect", "--sort", "s") == ["size"]
    assert complete("top", "runs", "--mode", "") == ["min", "max"]


@pytest.mark.parametrize(
    ("shell", "answer"), [("zsh", '_arguments \'*: :(("min"\n"max"))\'\n'), ("fish", "min\nmax\n")]
)
def test_other_shells(shell: str, answer: str) -> None:
    asked = {
        "_FASTCKPT_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "fastckpt top runs --mode ",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    assert run([sys.executable, "-m", "fastckpt"], **asked) == answer


def test_what_is_installed_works_in_bash(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "fastckpt"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m fastckpt "$@"\n')
    program.chmod(0o755)
    environment = {
        "HOME": str(tmp_path),
        "PATH": f"{programs}:{os.environ['PATH']}",
        # Else typer asks which shell the test runs in.
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    installed = run(["fastckpt", "--install-completion", "bash"], **environment)
    assert f"completion installed in {tmp_path}" in installed
    script = (
        "source ~/.bashrc\n"
        'COMP_WORDS=(fastckpt inspect --sort "")\n'
        "COMP_CWORD=3\n"
        "$(complete -p fastckpt | sed 's/.*-F \\([^ ]*\\) .*/\\1/') fastckpt\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    assert run(["bash", "--norc", "-c", script], **environment) == "size name\n"
