"""Saves of a manager of which every file operation is made to fail, or to kill.

Whatever happens, the last good checkpoint and the best one are there, whole, and the next save works and
puts everything in order.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.faults.crash_everywhere import CHANGES
from tests.faults.errors_everywhere import failures
from tests.faults.harness import Tally
from tests.faults.shim.manager_scenes import (
    ManagerReadScene,
    manager_read_scenes,
    manager_save_scenes,
)
from tests.faults.shim.scenes import Scene
from tests.faults.shim.shim import Plan
from tests.faults.shim.stage import Play, Stage, play_all
from tests.faults.shim.zygote import shared

_ERRNOS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Try cases that are drawn from all that there are."""
    generator = random.Random(seed)
    tally = Tally()
    while tally.cases < cases:
        with tempfile.TemporaryDirectory(dir=directory) as own:
            scenes = [*manager_save_scenes(), *manager_read_scenes()]
            drawn = [
                (stage, plan)
                for stage in stages(scenes, Path(own))
                for plan in (*kills(stage), *failures(stage.operations, _ERRNOS))
            ]
            generator.shuffle(drawn)
            try_all(drawn[: cases - tally.cases], tally)
    return tally


def stages(scenes: Sequence[Scene], directory: Path) -> list[Stage]:
    """Play each scene once undisturbed, to have its operations counted."""
    return [Stage(scene, shared(), directory) for scene in scenes]


def kills(stage: Stage) -> Iterable[Plan]:
    """A kill before and after each operation that changes something."""
    for at, operation in enumerate(stage.operations, start=1):
        if operation.kind in CHANGES:
            yield Plan("kill before", at)
            yield Plan("kill after", at)


def try_all(cases: Iterable[tuple[Stage, Plan]], tally: Tally) -> Tally:
    """Try cases and count what came of them."""
    return play_all(cases, _judge, tally)


def _judge(play: Play) -> str:
    ending = play.ending
    assert not ending.hangs, "the save hangs"
    assert ending.wrong is None, f"a wrong result: {ending.wrong}"
    if play.plan.action.startswith("kill"):
        assert ending.raised is None, ending.raised
        if not ending.signal:
            # Its threads took another order, in which it needed fewer operations.
            return f"finished, {play.judge(finished=True)}"
        assert ending.signal == signal.SIGKILL, ending.signal
        return f"killed, {play.judge(finished=False)}"
    assert not ending.signal, ending.signal
    if ending.raised is None:
        return f"done, {play.judge(finished=True)}"
    raised = ending.raised
    assert play.plan.error != errno.EINTR, f"an interruption is no error: {raised.trace}"
    assert raised.is_a(OSError), raised.trace
    assert raised.errno == play.plan.error, raised.trace
    assert raised.filename, raised.trace
    inside = os.path.realpath(raised.filename).startswith(os.path.realpath(play.directory))
    assert inside, raised.trace
    assert "while " in raised.words or isinstance(play.scene, ManagerReadScene), raised.trace
    return f"raised, {play.judge(finished=False)}"
