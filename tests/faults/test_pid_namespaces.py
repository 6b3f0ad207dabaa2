"""Savers in containers that share a directory: each is process 1 of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.faults.requirements import need_program, need_root

# Before its lock is taken, the file of A is swept by B, which then uses its name in turn; while A looks for
# another name, C may come to that one. With names by process number and counter, A removed the file that C
# was writing, and B published it.
_SAVER = """
import os, sys, time
import fastckpt, torch
role, directory = sys.argv[1:]
tensor = torch.full((2_000_000,), ord(role), dtype=torch.int64)
def progress(done, total):
    if role == "B" and done == total:
        time.sleep(3)
    if role == "C" and done < total:
        time.sleep(3)
print("ready", flush=True)
sys.stdin.readline()
path = f"{directory}/{role}.pt"
fastckpt.save({"who": role, "t": tensor}, path, threads=1, progress=progress)
found = fastckpt.load(path)
assert found["who"] == role and bool((found["t"] == ord(role)).all())
print(os.getpid(), "saved")
"""

_MANY_SAVES = """
import os, sys
import fastckpt
directory, who = sys.argv[1], int(sys.argv[2])
for number in range(150):
    path = f"{directory}/{who}.pt"
    fastckpt.save({"who": who, "number": number}, path, sync=False)
    assert fastckpt.load(path) == {"who": who, "number": number}, path
print(os.getpid(), "saved")
"""

_OWN_PID_NAMESPACE = ["unshare", "--pid", "--fork"]


def need_pid_namespaces() -> None:
    need_root()
    need_program("unshare", "strace")
    tried = subprocess.run([*_OWN_PID_NAMESPACE, "true"], check=False, capture_output=True)
    if tried.returncode:
        pytest.skip(f"no pid namespaces here: {tried.stderr.decode().strip()}")


def ends_well(processes: list[subprocess.Popen[str]]) -> None:
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    for output, process in zip(outputs, processes, strict=True):
        # Process 1, or one of the next below the tracer.
        assert re.fullmatch(r"[1-9] saved\n", output), output
        assert process.returncode == 0


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*_OWN_PID_NAMESPACE, *arguments],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_saver_whose_file_was_swept_takes_none_of_another_with_it(tmp_path: Path) -> None:
    need_pid_namespaces()
    delayed = ["strace", "-f", "-o", "/dev/null", "-e", "trace=flock"]
    delayed += ["-e", "inject=flock:delay_enter=2000000:when=1"]
    savers = [
        start([*tracer, sys.executable, "-c", _SAVER, role, str(tmp_path)])
        for role, tracer in [("A", delayed), ("B", []), ("C", [])]
    ]
    for saver in savers:
        assert saver.stdout is not None
        assert saver.stdout.readline() == "ready\n"
    for saver, delay_secs in zip(savers, [0.0, 0.7, 1.8], strict=True):
        time.sleep(delay_secs)
        assert saver.stdin is not None
        saver.stdin.write("\n")
        saver.stdin.flush()
    ends_well(savers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A.pt", "B.pt", "C.pt"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_processes_of_one_number_save_to_one_directory(tmp_path: Path) -> None:
    need_pid_namespaces()
    savers = [
        start([sys.executable, "-c", _MANY_SAVES, str(tmp_path), str(who)]) for who in range(4)
    ]
    ends_well(savers)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{who}.pt" for who in range(4)]
