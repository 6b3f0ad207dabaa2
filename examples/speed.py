"""Save and load a state dict with torch and with fastckpt, taking turns; print medians and ratios.

    python examples/speed.py [DIRECTORY]

Exits with 1 if what was loaded is not what was saved. A glance, not a benchmark: one size, files
in the page cache when they are loaded.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import fastckpt

ROUNDS = 5
TENSOR_COUNT = 48
TENSOR_SHAPE = (1024, 2560)
STATE_NBYTES = TENSOR_COUNT * TENSOR_SHAPE[0] * TENSOR_SHAPE[1] * 4

DEFAULT_DIRECTORY = Path(__file__).resolve().parents[1] / "build/examples"

StateDict = dict[str, Tensor]


def make_state_dict() -> StateDict:
    """Make a state dict of random float32 weights, each in a storage of its own."""
    generator = torch.Generator().manual_seed(0)
    return {
        f"transformer.h.{i}.mlp.c_fc.weight": torch.rand(TENSOR_SHAPE, generator=generator)
        for i in range(TENSOR_COUNT)
    }


def torch_save_durably(state_dict: StateDict, path: Path) -> None:
    """Save with torch so that the file survives a power cut, as fastckpt.save does by itself."""
    torch.save(state_dict, path)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def same(state_dict: StateDict, other: StateDict) -> bool:
    """Whether two state dicts of float32 tensors are bit for bit the same, in the same order."""
    return list(state_dict) == list(other) and all(
        torch.equal(a.view(torch.int32), b.view(torch.int32))
        for a, b in zip(state_dict.values(), other.values(), strict=True)
    )


def measure(
    ways: dict[str, Callable[[], Any]], accept: Callable[[Any], bool]
) -> tuple[dict[str, float], bool]:
    """Run each way in turn, ROUNDS times; return median seconds, and whether every result was accepted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    good = True
    for _ in range(ROUNDS):
        for name, way in ways.items():
            started = time.perf_counter()
            result = way()
            seconds[name].append(time.perf_counter() - started)
            good &= accept(result)
            del result
    return {name: median(times) for name, times in seconds.items()}, good


def print_rows(seconds: dict[str, float]) -> None:
    """Print a row for each way; ratios are to the first."""
    baseline = next(iter(seconds.values()))
    for name, taken in seconds.items():
        rate = STATE_NBYTES / taken / 1e9
        print(f"  {name:<40} {taken:8.3f} s  {rate:6.2f} GB/s  {baseline / taken:6.1f} x")


def compare(directory: Path) -> bool:
    """Print the comparison, with files in `directory`; return whether all that was loaded is right."""
    state_dict = make_state_dict()
    print(
        f"  {STATE_NBYTES / 1e6:.0f} MB in {TENSOR_COUNT} tensors, median of {ROUNDS} rounds, taking turns:\n"
    )
    torch_path, path = directory / "speed-torch.pt", directory / "speed.pt"
    saves, _ = measure(
        {
            "torch.save, then fsync": lambda: torch_save_durably(state_dict, torch_path),
            "fastckpt.save": lambda: fastckpt.save(state_dict, path),
        },
        accept=lambda _: True,
    )
    print_rows(saves)
    print()
    # Once untimed: both files into the page cache. Each library reads what the other has written.
    good = same(torch.load(path), state_dict) and same(fastckpt.load(torch_path), state_dict)
    loads, loaded_well = measure(
        {
            "torch.load (checks nothing)": lambda: torch.load(path),
            "fastckpt.load (checks every byte)": lambda: fastckpt.load(path),
            "fastckpt.load, mmap=True (every byte)": lambda: fastckpt.load(path, mmap=True),
        },
        accept=lambda loaded: same(loaded, state_dict),
    )
    print_rows(loads)
    print()
    torch_path.unlink()
    path.unlink()
    return good and loaded_well


if __name__ == "__main__":
    parent = Path(sys.argv[1]) if sys.argv[1:] else DEFAULT_DIRECTORY
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as work:
        good = compare(Path(work))
    print(f"  what was loaded is {'bit for bit' if good else 'NOT'} what was saved")
    sys.exit(0 if good else 1)
