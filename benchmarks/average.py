"""How fast checkpoints are averaged, and in how much memory, beside a loop in torch.

    python -m benchmarks.average --size 1 --count 5 --rounds 3 --dir build

One bfloat16 checkpoint is written and averaged with itself, `count` times: all is read from the page cache.
Contenders take turns, each in a process of its own; the start of Python and torch is not in the time, and
is in the memory.
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

_SIDE = 4096


def _average_by_fastckpt(paths: list[str], to: str) -> None:
    from fastckpt import average_files

    average_files(paths, to)


def _average_by_torch(paths: list[str], to: str) -> None:
    """Load one after the other, sum in float64, save, flush to the disk."""
    total: dict[str, torch.Tensor] = {}
    for path in paths:
        state = torch.load(path, weights_only=True)
        for name, tensor in state.items():
            if name in total:
                total[name] += tensor
            else:
                total[name] = tensor.double()
    mean = {name: (total[name] / len(paths)).to(state[name].dtype) for name in total}
    torch.save(mean, to)
    with open(to, "rb") as file:
        os.fsync(file.fileno())


CONTENDERS = {"torch, in a loop": _average_by_torch, "average_files": _average_by_fastckpt}


def _run_one(name: str, paths: list[str], to: str) -> None:
    started = time.perf_counter()
    CONTENDERS[name](paths, to)
    secs = time.perf_counter() - started
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    print(json.dumps({"secs": secs, "peak_nbytes": peak * 1024}))


def _measure(name: str, path: str, count: int, to: Path) -> dict[str, float]:
    to.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.average", "--one", name, *[path] * count, str(to)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    to.unlink()
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    """Measure, and print one line for each contender."""
    if sys.argv[1:2] == ["--one"]:
        _run_one(sys.argv[2], sys.argv[3:-1], sys.argv[-1])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=float, default=1.0, help="of one checkpoint, in GB")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, default=Path("build"))
    options = parser.parse_args()
    options.dir.mkdir(parents=True, exist_ok=True)
    path, to = options.dir / "average-in.pt", options.dir / "average-out.pt"
    layers = max(1, round(options.size * 1e9 / (2 * _SIDE * _SIDE)))
    torch.save({f"h.{n}.w": torch.randn(_SIDE, _SIDE).bfloat16() for n in range(layers)}, path)
    read_gb = path.stat().st_size * options.count / 1e9
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(options.rounds):
        for name, figures in found.items():
            figures.append(_measure(name, str(path), options.count, to))
    path.unlink()
    first = statistics.median(figure["secs"] for figure in found["torch, in a loop"])
    print("| | median s | lowest to highest s | GB/s read | times torch | peak GB |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, figures in found.items():
        secs = sorted(figure["secs"] for figure in figures)
        middle = statistics.median(secs)
        peak_gb = max(figure["peak_nbytes"] for figure in figures) / 1e9
        print(
            f"| {name} | {middle:.2f} | {secs[0]:.2f} to {secs[-1]:.2f} | {read_gb / middle:.2f} "
            f"| {first / middle:.1f} | {peak_gb:.2f} |"
        )


if __name__ == "__main__":
    main()
