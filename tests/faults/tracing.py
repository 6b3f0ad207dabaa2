"""Work in a child whose system calls strace watches, or lets fail: the kernel's own word for them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults.children import Raised, exit_code, in_child, raised_by, wait_for
from tests.faults.requirements import need_program


def need_strace() -> None:
    """Go on only where strace is installed and may trace."""
    need_program("strace")
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    if tried.returncode:
        # A container may forbid it, and then it is no use to install anything.
        pytest.skip("strace may not trace here")


def traced(work: Callable[[], object], options: list[str], log: Path) -> Raised | None:
    """Fork, let strace see what is done there from then on, and return what was raised."""
    gate, opener = os.pipe()
    answer = os.memfd_create("answer")

    def held() -> None:
        os.read(gate, 1)
        raised = raised_by(work)
        # Not by pwrite, which may be what fails.
        os.write(answer, json.dumps(None if raised is None else vars(raised)).encode())

    child = in_child(held)
    command = ["strace", "-f", "-y", "-qq", "-o", str(log), "-p", str(child), *options]
    with subprocess.Popen(command):
        try:
            wait_for(lambda: _is_traced(child))
        finally:
            os.write(opener, b".")
        assert exit_code(child) == 0
    try:
        found = json.loads(os.pread(answer, os.fstat(answer).st_size, 0))
    finally:
        for file in (gate, opener, answer):
            os.close(file)
    return None if found is None else Raised(**found)


def injecting(call: str, error: str, only: Path | None = None) -> list[str]:
    """Return the options that let each such call fail, or only those on one path."""
    options = ["-e", f"trace={call}", "-e", f"inject={call}:error={error}"]
    return options if only is None else [*options, "-P", str(only)]


def _is_traced(process: int) -> bool:
    status = Path(f"/proc/{process}/status").read_text()
    return "TracerPid:\t0\n" not in status
