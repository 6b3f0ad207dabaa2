"""The shim sees every operation that the kernel sees: strace counts the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
from tests.faults.requirements import need_program
from tests.faults.shim.shim import build

# Saves, overwrites, loads and verifies with the shim armed, and tells what it has counted.
_SCRIPT = textwrap.dedent(
    """
    import collections, json, sys
    import torch, fastckpt
    from pathlib import Path
    from tests.faults.shim import workloads
    from tests.faults.shim.shim import Plan, Shim
    library, directory = sys.argv[1], Path(sys.argv[2])
    shim = Shim(library)
    shim.prepare(Plan(), str(directory))
    shim.arm()
    for number in range(2):
        fastckpt.save(workloads.file_state(number), directory / "model.pt", sync=number == 0)
        workloads.save_whole_step(directory / "run", 1, number + 1, [1, 0])
    fastckpt.load(directory / "model.pt")
    fastckpt.load(directory / "model.pt", mmap=True)
    fastckpt.find_last_good_step(directory / "run", verify="full")
    fastckpt.load_checkpoint(directory / "run", 1, "cpu", load_optimizer=True, rank=1)
    shim.disarm()
    print(json.dumps(collections.Counter(one.kind for one in shim.operations())))
    """
)

# System calls -> the kinds that make them. Calls that libc makes itself on the way, such as the fstat
# of opendir, are no operations of their own: so only these are compared.
_CALLS = {
    ("openat", "open", "creat"): ("open", "open directory", "create", "opendir"),
    ("pread64", "preadv2", "read", "readv"): ("read", "cached read"),
    ("pwrite64", "write", "writev", "pwritev2"): ("write",),
    ("fsync", "fdatasync"): ("fsync", "fsync of a directory"),
    ("ftruncate",): ("truncate",),
    ("fallocate",): ("allocate",),
    ("rename", "renameat", "renameat2"): ("rename",),
    ("link", "linkat"): ("link",),
    ("unlink", "unlinkat"): ("unlink",),
    ("mkdir", "mkdirat"): ("mkdir",),
    ("flock",): ("flock",),
    ("mmap",): ("mmap",),
    ("fchmod", "chmod", "fchmodat"): ("chmod",),
}
_LINE = re.compile(r"^\d+ +(\w+)\(")


@pytest.mark.timeout(300)
def test_nothing_escapes_the_shim(tmp_path: Path) -> None:
    need_program("gcc", "strace")
    library, log = build(tmp_path), tmp_path / "strace.log"
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    calls = ",".join(call for group in _CALLS for call in group)
    strace = ["strace", "-f", "-qq", "-y", "--seccomp-bpf", "-e", f"trace={calls}", "-o", str(log)]
    script = [sys.executable, "-c", _SCRIPT, str(library), str(directory)]
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": paths}
    result = subprocess.run(
        [*strace, *script], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    counted = Counter(json.loads(result.stdout))
    seen = _calls_below(directory, log)
    by_kernel = {group: sum(seen[call] for call in group) for group in _CALLS}
    by_shim = {group: sum(counted[kind] for kind in kinds) for group, kinds in _CALLS.items()}
    print(by_shim)
    assert by_shim == by_kernel
    assert all(by_shim.values()) or by_shim[("fchmod", "chmod", "fchmodat")] == 0, by_shim


def _calls_below(directory: Path, log: Path) -> Counter[str]:
    """Count the calls with a path or a descriptor below a directory."""
    found: Counter[str] = Counter()
    for line in log.read_text().splitlines():
        call = _LINE.match(line)
        # A call that others ran beside is on two lines, with its arguments on the first.
        if call and str(directory) in line:
            found[call[1]] += 1
    return found
