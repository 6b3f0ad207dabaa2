"""fio, which says what the disk can do."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from benchmarks.measure import CannotMeasureError, Measured

_WRITE = ("--rw=write", "--bs=8M", "--iodepth=4", "--end_fsync=1")
_READ = ("--rw=read", "--bs=4M", "--iodepth=8", "--readonly")
# fio's sizes are whole blocks; what is over is left out, and the rate is of what was moved.
_BLOCK_NBYTES = 8 << 20


def why_absent(directory: Path) -> str | None:
    """Return why fio cannot be a contender here, None if it can."""
    if shutil.which("fio") is None:
        return "fio is not installed: no ratio to what the disk can do"
    probe = directory / "fio-probe"
    try:
        write(probe, _BLOCK_NBYTES)
    except CannotMeasureError as error:
        return f"fio does not run here: {error}"
    finally:
        probe.unlink(missing_ok=True)
    return None


def write(path: Path, nbytes: int) -> Measured:
    """Write a new file; return bytes and time, the fsync at its end included."""
    return _run(path, nbytes, "write", _WRITE)


def read(path: Path) -> Measured:
    """Read a file past the page cache; return bytes and time."""
    return _run(path, path.stat().st_size, "read", _READ)


def _run(path: Path, nbytes: int, side: str, options: tuple[str, ...]) -> Measured:
    size = max(nbytes // _BLOCK_NBYTES, 1) * _BLOCK_NBYTES if side == "write" else nbytes
    command = [
        "fio",
        "--name=bench",
        f"--filename={path}",
        f"--size={size}",
        "--direct=1",
        "--ioengine=libaio",
        "--output-format=json",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotMeasureError(done.stderr.strip() or done.stdout.strip() or "no reason given")
    # A warning may stand before the document.
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0][side]
    # bw_bytes is io_bytes over the run time in microseconds; runtime itself is in whole ms.
    return Measured(job["io_bytes"], job["io_bytes"] / job["bw_bytes"])
