"""Several processes that save to one path, while others read, map and verify what is there."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tests.faults.children import Child, start
from tests.faults.harness import Tally
from tests.specimens import assert_same

import fastckpt

SAVERS = 4
# What one saver writes has other numbers than what the next one does, so no two files are equal.
SAVER_STRIDE = 1_000_000
# Of different sizes, so that a mixture of two would not even be an archive.
SHARED_NUMELS = (1000, 200_000, 1_000_000)


def shared_state(number: int) -> dict[str, Any]:
    """What the save of this number holds; the number says all about it."""
    numel = SHARED_NUMELS[number % len(SHARED_NUMELS)]
    return {
        "w": torch.full((numel,), float(number)),
        "views": [torch.full((5, 7), number).t(), torch.zeros(0)],
        "n": number,
    }


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Let processes save to one path, `cases` times each, while others read, map and verify it."""
    path = directory / "shared.pt"
    fastckpt.save(shared_state(0), path)
    savers = [start(partial(_save_on, path, seed, who, cases)) for who in range(SAVERS)]
    done = directory / "done"
    ways: dict[str, Callable[[], Any]] = {
        "load": lambda: fastckpt.load(path),
        "map": lambda: fastckpt.load(path, mmap=True),
        "torch.load": lambda: torch.load(path),
        "verify": lambda: _verified(path),
    }
    readers = {way: start(partial(_read_on, read, done)) for way, read in ways.items()}
    tally = Tally()
    collect(tally, {f"save {who}": saver for who, saver in enumerate(savers)}, f"{seed=}")
    done.touch()
    collect(tally, readers, f"{seed=}")
    done.unlink()
    left = sorted(os.listdir(directory))
    if left != [path.name]:
        tally.fail(f"{seed=}: left behind: {left}")
    return tally


def _save_on(path: Path, seed: int, who: int, count: int) -> int:
    generator = random.Random(seed * SAVERS + who)
    for turn in range(count):
        number = (who + 1) * SAVER_STRIDE + turn
        threads = generator.choice([None, 1, 3])
        fastckpt.save(shared_state(number), path, sync=generator.random() < 0.5, threads=threads)
    return count


def _read_on(read: Callable[[], Any], done: Path) -> int:
    """Read until all is saved, and a last time then; what is read is one of the values, whole."""
    count = 0
    ended = False
    while not ended:
        ended = done.exists()
        found = read()
        if found is not None:
            assert_same(found, shared_state(found["n"]))
        count += 1
    return count


def _verified(path: Path) -> None:
    report = fastckpt.verify(path)
    assert report.ok, report


def collect(tally: Tally, children: dict[str, Child], what: str) -> None:
    """Add what children came to: how much each has done, or what went wrong."""
    for name, child in children.items():
        outcome = child.outcome(timeout_secs=600)
        if outcome.ok:
            tally.cases += outcome.value
            tally.outcomes[name.split()[0]] += outcome.value
        else:
            tally.fail(f"{what}: {name}: {outcome}")
