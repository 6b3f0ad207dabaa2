"""Forks at any moment of a save: the parent's file is good, and the child saves and loads of its own."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tests.faults.children import start
from tests.faults.harness import Tally
from tests.specimens import assert_same

import fastckpt

# Several chunks for each thread, so that a fork finds all of them at work.
BIG_NUMEL = 2_500_000


def small_state(number: int) -> dict[str, object]:
    return {"w": torch.full((100_000,), float(number)), "n": number}


@contextlib.contextmanager
def saving(path: Path, number: int, *, sync: bool) -> Iterator[threading.Thread]:
    """Save a big tensor in a thread meanwhile; its file is judged at the end."""
    raised: list[BaseException] = []

    def save() -> None:
        try:
            fastckpt.save({"w": torch.full((BIG_NUMEL,), float(number))}, path, sync=sync)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=save)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()
    assert raised == []
    assert fastckpt.verify(path).ok
    assert torch.equal(fastckpt.load(path)["w"], torch.full((BIG_NUMEL,), float(number)))


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Fork at any moment of a save; the child saves to the same directory and loads from it."""
    tally = Tally()
    generator = random.Random(seed)
    settled = directory / "settled.pt"
    fastckpt.save(small_state(-1), settled)
    usual_secs = _save_secs(directory / "parent.pt")
    for case in range(cases):
        sync = generator.random() < 0.5
        delay_secs = generator.uniform(0, usual_secs)
        what = f"{seed=} {case=} {sync=} {delay_secs=:.4f}"
        own = directory / "child.pt"

        def in_the_child(case: int = case, own: Path = own) -> None:
            fastckpt.save(small_state(case), own, sync=bool(case % 2))
            assert fastckpt.verify(own).ok
            assert_same(fastckpt.load(own, mmap=bool(case % 3)), small_state(case))
            assert_same(fastckpt.load(settled), small_state(-1))

        try:
            with saving(directory / "parent.pt", case, sync=sync) as thread:
                time.sleep(delay_secs)
                child = start(in_the_child)
                during = thread.is_alive()
                outcome = child.outcome()
        except AssertionError as error:
            tally.fail(f"{what}: {error}")
            continue
        left = sorted(set(os.listdir(directory)) - {"settled.pt", "parent.pt", "child.pt"})
        if not outcome.ok:
            tally.fail(f"{what}: child: {outcome}")
        elif left:
            tally.fail(f"{what}: left behind: {left}")
        else:
            assert_same(fastckpt.load(own), small_state(case))
            tally.count("during the save" if during else "after it")
    return tally


def _save_secs(path: Path) -> float:
    began = time.monotonic()
    with saving(path, 0, sync=True) as thread:
        thread.join()
        return time.monotonic() - began
