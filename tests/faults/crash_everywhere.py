"""Saves that are killed at every one of their file operations, before it and after it.

A save runs once to have its operations counted, and then again for each of them, in a child that is killed
there. What is left has to be what was acknowledged or the newer, whole; and the next save works.
"""

from __future__ import annotations

import random
import signal
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from tests.faults.harness import Tally
from tests.faults.shim.scenes import Scene, save_scenes
from tests.faults.shim.shim import Plan
from tests.faults.shim.stage import Play, Stage, play_all
from tests.faults.shim.zygote import shared

RANKS = 4
_ACTIONS = ("kill before", "kill after")
#: A kill at any other operation leaves the disk as a kill at one of these does.
CHANGES = frozenset(
    {
        "allocate",
        "chmod",
        "chown",
        "create",
        "fsync",
        "fsync of a directory",
        "link",
        "mkdir",
        "rename",
        "truncate",
        "unlink",
        "write",
    }
)


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Kill saves at operations that are drawn from all that they have."""
    generator = random.Random(seed)
    tally = Tally()
    while tally.cases < cases:
        with tempfile.TemporaryDirectory(dir=directory) as own:
            drawn = list(kills(save_scenes(generator, RANKS), Path(own)))
            generator.shuffle(drawn)
            try_all(drawn[: cases - tally.cases], tally, seed)
    return tally


def kills(
    scenes: Sequence[Scene], directory: Path, kinds: Collection[str] = ()
) -> Iterator[tuple[Stage, Plan]]:
    """Return a case for each operation of each scene, before and after it.

    Args:
        scenes: The kinds of save.
        directory: Where the saves go.
        kinds: Only operations of these kinds; by default all.
    """
    for scene in scenes:
        stage = Stage(scene, shared(), directory)
        for at, operation in enumerate(stage.operations, start=1):
            if not kinds or operation.kind in kinds:
                yield from ((stage, Plan(action, at)) for action in _ACTIONS)


def try_all(cases: Sequence[tuple[Stage, Plan]], tally: Tally, seed: int) -> Tally:
    """Try cases and count what came of them."""
    return play_all(cases, _judge, tally, f" (seed {seed})")


def _judge(play: Play) -> str:
    ending = play.ending
    assert ending.raised is None, ending.raised
    assert not ending.hangs, "the save hangs"
    if not ending.signal:
        # Its threads took another order, in which it needed fewer operations.
        return f"finished, {play.judge(finished=True)}"
    assert ending.signal == signal.SIGKILL, ending.signal
    return play.judge(finished=False)
