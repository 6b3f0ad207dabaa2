"""Single bits of files of 64 KB and 1 MB, flipped: more than Python can look at, so Rust does."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from pathlib import Path

from tests.faults.damage import file_of, of_size
from tests.faults.harness import Tally

import fastckpt

_REPOSITORY = Path(__file__).resolve().parents[2]
_BUILD = ("cargo", "build", "--release", "--locked", "--package", "fastckpt-core")
# Files of torch's and of ours: their bytes are the same in each run, and so are the cases.
GOLDEN = {"64 KB": (62_000, "fastckpt"), "1 MB": (1 << 20, "torch")}


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Flip bits of the golden files, of each as many as is its part of all the bits.

    With the same `cases`, the seeds 0, 1, 2 ... go through all bits, each once.
    """
    nbytes = {name: len(_write(name, directory).read_bytes()) for name in GOLDEN}
    tally = Tally()
    for name in GOLDEN:
        tally.add(flip(name, seed, cases * nbytes[name] // sum(nbytes.values()), directory))
    return tally


def flip(name: str, seed: int, cases: int, directory: Path) -> Tally:
    """Flip the seed-th `cases` bits of one golden file; see flip_bits.rs for their order."""
    path = _write(name, directory)
    files = ["--file", str(path), "--directory", str(directory)]
    done = subprocess.run(
        [str(flip_bits()), *files, "--seed", str(seed), "--cases", str(cases)],
        capture_output=True,
        text=True,
        check=False,
    )
    # 1 says that there are failures. Anything else is none that the program knows of.
    if done.returncode not in (0, 1) or not done.stdout:
        raise AssertionError(f"flip_bits: {done.returncode}\n{done.stderr}")
    result = json.loads(done.stdout)
    tally = Tally(cases=cases)
    tally.outcomes.update(result["outcomes"])
    tally.failures += [f"{name}: {failure}" for failure in result["failures"]]
    return tally


@functools.cache
def flip_bits() -> Path:
    """Build the program; return where it is."""
    command = [*_BUILD, "--example", "flip_bits", "--message-format", "json"]
    built = subprocess.run(command, cwd=_REPOSITORY, stdout=subprocess.PIPE, check=True)
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    [executable] = [message["executable"] for message in messages if message.get("executable")]
    return Path(os.fspath(executable))


def _write(name: str, directory: Path) -> Path:
    path = directory / f"golden-{name.replace(' ', '-')}.pt"
    if not path.exists():
        nbytes, writer = GOLDEN[name]
        path.write_bytes(file_of(of_size(nbytes), writer))
        assert fastckpt.verify(path).ok
    return path
