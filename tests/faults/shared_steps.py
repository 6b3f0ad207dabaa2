"""Several ranks that save one step again and again, while others look for it and load it."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from tests.faults.children import start
from tests.faults.harness import Tally
from tests.faults.shared_paths import collect
from tests.specimens import assert_same

import fastckpt
from fastckpt._steps.save_id import agreed

RANKS = 4
STEP = 7
BARRIER_SECS = 100


def part(number: int, rank: int) -> dict[str, Any]:
    """What a rank saves in save `number`; rank -1 is the model."""
    return {"w": torch.full((20_000,), number * 10.0 + rank), "n": number, "rank": rank}


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Let four ranks save one step `cases` times, while others load and look for it."""
    run, done, whole = directory / "run", directory / "done", directory / "whole"
    run.mkdir()
    barrier = multiprocessing.get_context("fork").Barrier(RANKS)
    wait: Callable[[], Any] = partial(barrier.wait, BARRIER_SECS)
    ranks = [start(partial(_save_rank, run, rank, cases, whole, wait)) for rank in range(RANKS)]
    readers = {
        "step": partial(_read_steps, run, done, whole, random.Random(seed)),
        "model": partial(_read_steps, run, done, whole, None),
        "find": partial(_find_steps, run, done, whole, verify="quick"),
        "find-all": partial(_find_steps, run, done, whole, verify="full"),
    }
    children = {way: start(reader) for way, reader in readers.items()}
    tally = Tally()
    collect(tally, {f"save {rank}": child for rank, child in enumerate(ranks)}, f"{seed=}")
    done.touch()
    collect(tally, children, f"{seed=}")
    report = fastckpt.verify(run)
    left = [name for name in os.listdir(run) if name.startswith(".")]
    if not report.ok or left:
        tally.fail(f"{seed=}: left behind: {left}, {report}")
    shutil.rmtree(run)
    done.unlink()
    whole.unlink(missing_ok=True)
    return tally


def _save_rank(run: Path, rank: int, count: int, whole: Path, wait: Callable[[], Any]) -> int:
    """Save as a training loop does: the ranks meet between two saves, not within one."""
    for number in range(1, count + 1):
        with agreed(number, RANKS):
            fastckpt.save_checkpoint(
                run, STEP, part(number, -1), part(number, rank), {"n": number}, rank
            )
        wait()
        whole.touch()
    return count


def _read_steps(run: Path, done: Path, whole: Path, ranks: random.Random | None) -> int:
    """Load until all is saved: all parts are of one save, and never of an older one than before."""
    count = newest = 0
    ended = False
    while not ended:
        ended, was_whole = done.exists(), whole.exists()
        rank = 0 if ranks is None else ranks.randrange(RANKS)
        try:
            model, shard, meta = fastckpt.load_checkpoint(
                run,
                STEP,
                "cpu",
                load_optimizer=ranks is not None,
                rank=rank,
                world_size=RANKS,
            )
        except FileNotFoundError:
            if was_whole:
                raise
            continue
        number = model["n"]
        assert number >= newest
        newest = number
        assert_same(model, part(number, -1))
        assert_same(shard, None if ranks is None else part(number, rank))
        assert meta == {"n": number}
        count += 1
    return count


def _find_steps(run: Path, done: Path, whole: Path, *, verify: Literal["quick", "full"]) -> int:
    """Look for the step until all is saved: from the first whole save on it is always there."""
    count = 0
    ended = False
    while not ended:
        ended, was_whole = done.exists(), whole.exists()
        try:
            assert fastckpt.find_last_good_step(run, world_size=RANKS, verify=verify) == STEP
        except FileNotFoundError:
            if was_whole:
                raise
            continue
        assert fastckpt.find_last_step(run) == STEP
        count += 1
    return count
