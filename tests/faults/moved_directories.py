"""Directories that are moved, removed or exchanged while a save to them is under way."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tests.faults.children import Raised, raised_by
from tests.faults.harness import Tally

import fastckpt

OLD = {"w": torch.arange(100.0), "n": 1}
NEW = {"w": torch.arange(200.0), "n": 2}


def _move(directory: Path) -> None:
    directory.rename(directory.with_name("moved"))


def _move_and_make_another(directory: Path) -> None:
    _move(directory)
    directory.mkdir()


def _remove(directory: Path) -> None:
    # The temporary file may be gone already, or come while the rest is removed.
    while directory.exists():
        shutil.rmtree(directory, ignore_errors=True)


def _remove_and_make_another(directory: Path) -> None:
    _remove(directory)
    directory.mkdir()


def _exchange_for_a_link(directory: Path) -> None:
    elsewhere = directory.with_name("elsewhere")
    elsewhere.mkdir()
    _move(directory)
    directory.symlink_to(elsewhere.name)


DISTURBANCES = {
    disturb.__name__.strip("_"): disturb
    for disturb in (
        _move,
        _move_and_make_another,
        _remove,
        _remove_and_make_another,
        _exchange_for_a_link,
    )
}


STEP_PARTS = ("model_000007.pt", "optim_000007_rank0.pt")


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Move, remove and exchange the directory of a step at any moment of saving it."""
    tally = Tally()
    usual_secs = _save_secs(directory / "usual")
    for case in range(cases):
        generator = random.Random(f"{seed} {case}")
        disturbance = generator.choice(list(DISTURBANCES))
        delay_secs = generator.uniform(0, 1.2 * usual_secs)
        top = directory / f"case{case}"
        checkpoints = top / "checkpoints"
        checkpoints.mkdir(parents=True)
        # As long as it is open, no other directory gets its number.
        kept_open = os.open(checkpoints, os.O_RDONLY)
        inode = os.fstat(kept_open).st_ino
        if generator.random() < 0.5:
            _save_step(checkpoints, OLD)
        raised = _save_meanwhile(checkpoints, DISTURBANCES[disturbance], delay_secs)
        what = f"{seed=} {case=} {disturbance=} {delay_secs=:.4f}"
        if raised is not None and not raised.is_a(OSError):
            tally.fail(f"{what}: {raised.trace}")
        else:
            _judge_step(tally, what, top, inode, was_raised=raised is not None)
        os.close(kept_open)
        shutil.rmtree(top)
    return tally


def _save_meanwhile(
    checkpoints: Path, disturb: Callable[[Path], None], delay_secs: float
) -> Raised | None:
    def disturb_later() -> None:
        time.sleep(delay_secs)
        disturb(checkpoints)

    thread = threading.Thread(target=disturb_later)
    thread.start()
    raised = raised_by(partial(_save_step, checkpoints, NEW))
    thread.join()
    return raised


def _save_secs(checkpoints: Path) -> float:
    began = time.monotonic()
    _save_step(checkpoints, OLD)
    return time.monotonic() - began


def _save_step(checkpoints: Path, data: object) -> None:
    fastckpt.save_checkpoint(checkpoints, 7, data, data, {"step": 7})


def _judge_step(tally: Tally, what: str, top: Path, inode: int, *, was_raised: bool) -> None:
    """The new save is in one directory alone: the first, or the one that took its place before."""
    places: dict[str, list[int]] = {"first": [], "second": []}
    for directory in (path for path in top.iterdir() if path.is_dir() and not path.is_symlink()):
        if any(name.endswith(".tmp") for name in os.listdir(directory)):
            tally.fail(f"{what}: left behind: {os.listdir(directory)}")
            return
        place = "first" if directory.stat().st_ino == inode else "second"
        parts = [directory / name for name in STEP_PARTS if (directory / name).exists()]
        places[place] += [fastckpt.load(part)["n"] for part in parts]
    new = {place: found.count(2) for place, found in places.items()}
    if min(new.values()) > 0 or (new["second"] not in (0, len(STEP_PARTS))):
        tally.fail(f"{what}: {places}")
    elif was_raised:
        tally.count("raised")
    elif new["first"] or new["second"]:
        tally.count(f"saved to the {'first' if new['first'] else 'second'}")
    else:
        tally.count("saved, then removed")
