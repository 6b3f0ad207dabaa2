"""Tensors that another thread changes while they are saved: the file is sound, whatever it holds."""

from __future__ import annotations

import random
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tests.faults.harness import Tally

import fastckpt
from fastckpt._archive.pickling import DEFAULT_PROTOCOL, pickle_object
from fastckpt._native import Commit

# Less than a chunk of the writer, a few chunks, and more than all threads have at a time.
CHANGED_NUMELS = (10_000, 700_000, 3_000_000)


@contextmanager
def hammering(tensor: torch.Tensor) -> Iterator[Callable[[], int]]:
    """Add one to all elements, again and again, without the GIL; yields how often it was done."""
    stop = threading.Event()
    rounds = 0

    def hammer() -> None:
        nonlocal rounds
        while not stop.is_set():
            tensor.add_(1)
            rounds += 1

    thread = threading.Thread(target=hammer)
    thread.start()
    try:
        yield lambda: rounds
    finally:
        stop.set()
        thread.join()


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Save tensors that change meanwhile: durably and not, directly and through the page cache."""
    tally = Tally()
    generator = random.Random(seed)
    for case in range(cases):
        numel = generator.choice(CHANGED_NUMELS)
        sync, direct = bool(case & 1), bool(case & 2)
        threads = generator.choice([1, 2, 4, 8])
        chunk_nbytes = generator.choice([1 << 16, 1 << 20, None])
        path = directory / "changing.pt"
        # Counted in 64 bits, which the processor writes at once; so no element is half of two.
        tensor = torch.zeros(numel, dtype=torch.int64)
        with hammering(tensor) as rounds:
            time.sleep(generator.uniform(0, 0.003))
            before = rounds()
            with Commit(sync=sync) as commit:
                pickled = pickle_object({"w": tensor}, DEFAULT_PROTOCOL)
                commit.write_archive(
                    path,
                    pickled.data,
                    pickled.storages,
                    direct=direct,
                    threads=threads,
                    chunk_nbytes=chunk_nbytes,
                )
                # The round that is under way has reached some of the elements.
                after = rounds() + 1
                commit.publish([path])
        what = f"{seed=} {case=} {numel=} {sync=} {direct=} {threads=} {chunk_nbytes=}"
        _judge_changing(tally, path, before, after, what)
    return tally


def _judge_changing(tally: Tally, path: Path, before: int, after: int, what: str) -> None:
    report = fastckpt.verify(path)
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if not report.ok or damaged is not None:
        tally.fail(f"{what}: {report}, zipfile: {damaged}")
        return
    found = fastckpt.load(path)["w"]
    low, high = int(found.min()), int(found.max())
    if not before <= low <= high <= after:
        tally.fail(f"{what}: values {low} to {high}, which were {before} to {after} then")
        return
    tally.count("several moments" if low < high else "one moment")
