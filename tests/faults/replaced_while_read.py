"""Files that are replaced, cut, deleted or rewritten while they are read: old, new or a typed error."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tests.faults.children import start
from tests.faults.harness import Tally
from tests.specimens import assert_same

import fastckpt

# Cases for one child: if it is killed by a signal, the one that it was at is known.
CASES_PER_CHILD = 50
NUMEL = 1_500_000
# Opening the file takes a fraction of a millisecond, reading it a few.
READ_DELAY_SECS, CHANGE_DELAY_SECS = 0.0015, 0.004

# What may happen to a file, and whether a mapping of it survives that: a page that has been cut
# away cannot be read, which the documentation of mmap=True says.
CHANGES = {
    "replaced": True,
    "deleted": True,
    "replaced twice": True,
    "cut": False,
    "rewritten": False,
}


def value(number: int) -> dict[str, Any]:
    return {
        "w": torch.full((NUMEL,), float(number)),
        "small": [torch.full((1000,), number) for _ in range(20)],
        "n": number,
    }


def change(kind: str, path: Path, new: Path, generator: random.Random) -> None:
    if kind.startswith("replaced"):
        for _ in range(2 if kind.endswith("twice") else 1):
            spare = path.with_name(f"spare-{generator.random()}")
            os.link(new, spare)
            spare.replace(path)
    elif kind == "deleted":
        path.unlink(missing_ok=True)
    elif kind == "cut":
        os.truncate(path, generator.randrange(path.stat().st_size))
    else:
        # As torch.save does it: the same file is emptied, and filled again.
        shutil.copyfile(new, path)


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Load and verify while a thread does something to the file, in children that may be killed by it."""
    for number in (0, 1):
        fastckpt.save(value(number), directory / f"{number}.pt")
    tally = Tally()
    log = directory / "log"
    for first in range(0, cases, CASES_PER_CHILD):
        some = range(first, min(cases, first + CASES_PER_CHILD))
        log.write_bytes(b"")
        child = start(partial(_run_cases, seed, some, directory, log))
        outcome = child.outcome(timeout_secs=300)
        seen = [json.loads(line) for line in log.read_text().splitlines()]
        for said in seen:
            if said["failure"]:
                tally.fail(f"{seed=} {said}")
            else:
                tally.count(said["result"])
        if not outcome.ok:
            # A signal: killed by what it read.
            tally.fail(f"{seed=} case={first + len(seen)}: {outcome}")
    return tally


def _run_cases(seed: int, cases: range, directory: Path, log: Path) -> None:
    with log.open("a", buffering=1) as lines:
        for case in cases:
            generator = random.Random(f"{seed} {case}")
            kind = generator.choice(list(CHANGES))
            ways = ["load", "verify", "map"] if CHANGES[kind] else ["load", "verify"]
            said = {"case": case, "kind": kind, "way": generator.choice(ways), "failure": ""}
            try:
                said["result"] = _run_case(generator, kind, str(said["way"]), directory)
            except BaseException as error:
                said["failure"] = repr(error)
            print(json.dumps(said), file=lines)


def _run_case(generator: random.Random, kind: str, way: str, directory: Path) -> str:
    path = directory / "changing.pt"
    # A file of its own: it may be a second name of the new one by now.
    path.unlink(missing_ok=True)
    shutil.copyfile(directory / "0.pt", path)
    if generator.random() < 0.5:
        _forget(path)
    return _meanwhile(
        partial(_read, way, path, kind),
        partial(change, kind, path, directory / "1.pt", generator),
        generator.uniform(0, READ_DELAY_SECS),
        generator.uniform(0, CHANGE_DELAY_SECS),
    )


def _meanwhile(
    read: Callable[[], str],
    disturb: Callable[[], None],
    read_delay_secs: float,
    change_delay_secs: float,
) -> str:
    """Read while a thread disturbs; what was loaded is looked at when both are done."""
    ready = threading.Event()

    def wait_and_disturb() -> None:
        ready.set()
        time.sleep(change_delay_secs)
        disturb()

    thread = threading.Thread(target=wait_and_disturb)
    thread.start()
    ready.wait()
    time.sleep(read_delay_secs)
    try:
        return read()
    finally:
        thread.join()


def _read(way: str, path: Path, kind: str) -> str:
    """Return what came of reading, "old", "new" or the name of an error; raise if it may not be."""
    if way == "verify":
        return f"verify: {fastckpt.verify(path).status.value}"
    try:
        found = fastckpt.load(path, mmap=way == "map")
    except (fastckpt.CheckpointError, FileNotFoundError) as error:
        is_deleted = isinstance(error, FileNotFoundError)
        # A name that belongs to one whole file or another at each moment leads to no error.
        if kind.startswith("replaced") or is_deleted != (kind == "deleted"):
            raise
        if str(path) not in str(error):
            raise AssertionError(error) from error
        return type(error).__name__
    if way == "map":
        # Whatever happens to the name now, the mapping is of what it was.
        path.unlink(missing_ok=True)
    assert_same(found, value(found["n"]))
    return f"{way}: {'new' if found['n'] else 'old'}"


def _forget(path: Path) -> None:
    """Let the page cache forget a file, so that reading it takes longer."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
