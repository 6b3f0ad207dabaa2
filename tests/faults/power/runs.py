"""Many crash states of many recordings, each mounted and looked at."""

from __future__ import annotations

import bisect
import contextlib
import gc
import os
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.harness import Tally
from tests.faults.power.block_log import open_log
from tests.faults.power.copy_saves import CopySaves
from tests.faults.power.crash_states import draw_states
from tests.faults.power.file_saves import FileSaves
from tests.faults.power.foreign_saves import ForeignSaves
from tests.faults.power.images import replaying
from tests.faults.power.manager_saves import ManagerSaves
from tests.faults.power.mounting import loop_device, mounted
from tests.faults.power.recording import Recording, record
from tests.faults.power.step_saves import StepSaves
from tests.faults.power.verdicts import Moment, Saves, Violation

# A recording costs about as much as this many looks.
_STATES_PER_RECORDING = 50

DrawSaves = Callable[[random.Random], Saves]


@dataclass(frozen=True)
class PowerCuts:
    """Cuts the power while something is saved again and again.

    Attributes:
        kind: What is saved, in a word.
        saves: Draws a row of saves; a test of the harness itself gives another to the call.
    """

    kind: str
    saves: DrawSaves

    def __call__(
        self,
        seed: int,
        cases: int,
        directory: Path,
        file_system: str,
        draw: DrawSaves | None = None,
    ) -> Tally:
        """Record and look until there were enough states.

        A seed gives the same saves and the same kinds of cuts each time. Which blocks the kernel writes
        when is its own affair, so a recording in which something failed is kept: its log and the
        description of the state make that image again.
        """
        tally = Tally()
        began = time.monotonic()
        number = 0
        while tally.cases < cases:
            generator = random.Random(f"{self.kind} {file_system} {seed} {number}")
            saves = (draw or self.saves)(generator)
            place = Path(
                tempfile.mkdtemp(
                    dir=directory, prefix=f"{self.kind}-{file_system}-{seed}-{number}-"
                )
            )
            recording = record(place, file_system, saves.work)
            count = min(_STATES_PER_RECORDING, cases - tally.cases)
            found = _look_at_states(recording, saves, count, generator)
            if not found.failures:
                shutil.rmtree(place)
            tally.add(found)
            number += 1
        seconds = time.monotonic() - began
        print(
            f"{self.kind} on {file_system}, seed {seed}: {tally.cases} states of {number} recordings "
            f"in {seconds:.1f} s, {tally.cases / seconds:.1f} a second: {dict(tally.outcomes)}"
        )
        return tally


run_files = PowerCuts("files", FileSaves)
run_steps = PowerCuts("steps", StepSaves)
run_managers = PowerCuts("managers", ManagerSaves)
run_copies = PowerCuts("copies", CopySaves)
# After a copy or prune has answered for files that somebody else has placed, unsynced.
run_foreign = PowerCuts("foreign", ForeignSaves)


def _look_at_states(
    recording: Recording, saves: Saves, count: int, generator: random.Random
) -> Tally:
    tally = Tally()
    with open_log(recording.log) as log, replaying(log, recording.fresh) as replay:
        begun = [log.count_at(nbytes) for nbytes in recording.begun]
        acknowledged = [log.count_at(nbytes) for nbytes in recording.acknowledged]
        parts = [log.count_at(nbytes) for nbytes in recording.parts]
        marks = sorted(begun + acknowledged + parts)
        states = draw_states(log, marks, count, generator, recording.whole)
        assert states, "nothing was recorded"
        for state in states:
            # A save that has begun and that the disk was told nothing of has not begun.
            moment = Moment(
                bisect.bisect_right(acknowledged, state.cut), bisect.bisect_left(begun, state.cut)
            )
            image = replay.make(state)
            failure, outcome = _look(image, recording, saves, moment)
            if failure:
                tally.fail(f"{recording.directory}: {state}; {moment} -> {failure}")
            else:
                tally.count(outcome)
    return tally


def _look(image: int, recording: Recording, saves: Saves, moment: Moment) -> tuple[str, str]:
    """Mount a crash state, which replays its journal, and look at it; returns failure and outcome.

    What is raised ends here: it holds frames in which files are open, and these would keep the file
    system from being unmounted.
    """
    failure, outcome = "", ""
    try:
        with (
            loop_device(image) as device,
            mounted(device, recording.mount_point, recording.file_system) as directory,
        ):
            try:
                outcome = saves.check(directory, moment)
                failure = _files_left_open(directory)
            except Violation as error:
                failure = str(error)
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                failure = f"{error!r} in {last.filename}:{last.lineno}"
            if failure:
                gc.collect()
    except OSError as error:
        failure = failure or f"the file system: {error!r}"
    return failure, outcome


def _files_left_open(directory: Path) -> str:
    """Say which files are open that nobody has asked to keep open."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        # One of them is of the list itself, and closed by now.
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{number}"))
    left = [link for link in links if link.startswith(f"{directory}/")]
    return f"left open: {left}" if left else ""
