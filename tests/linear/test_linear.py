"""Linear means linear: work grows as a file does, whatever its shape, for everything that reads files.

Python's own work is counted, opcode by opcode, which is the same on every machine. What the core and C do is
measured: the slope of CPU time, where there is enough of it to tell, and memory.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tests.faults.children import run_in_child
from tests.linear import shapes, verbs

GROWTH = 4
# Where the file has four times as many parts. What is quadratic has 16 times the work; beside it is what is
# done once for each file.
MOST_OPCODES_GROWTH = 5
MOST_SECS_GROWTH = 8
# Below this, what is done once for each file counts for too much.
MIN_OPCODES = 20_000
# The parts of the files for the count, which is slow, and for the measurement, where what is quadratic has
# to take its time.
COUNTED, MEASURED = 1 / 32, 1 / 2
MIN_SECS = 0.5
RETRIES = 2
MIB = 1 << 20
# What a file of less than a megabyte may take at most.
MEMORY_NBYTES = 256 * MIB
TIMEOUT_SECS = 200


def opcodes_of(work: Callable[[], object]) -> int:
    """Count the opcodes of Python that are executed, in all threads."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    threading.settrace(trace)
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
        threading.settrace(None)
    return count


def peak_nbytes() -> int:
    """Return the most memory that this process has had."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) << 10


def measured(work: Callable[[], object]) -> tuple[float, int]:
    """Return the CPU time and the memory that work takes, in seconds and bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    memory = peak_nbytes()
    before = os.times()
    work()
    after = os.times()
    secs = after.user + after.system - before.user - before.system
    return secs, peak_nbytes() - memory


def grown(
    directory: Path,
    lay_out: Callable[[Path, int], None],
    count: int,
    all_verbs: dict[str, verbs.Verb],
) -> dict[str, Any]:
    """Let a shape grow, and return for each verb the opcodes, seconds and bytes that it takes."""
    found: dict[str, Any] = {}
    places: list[Path] = []
    for factor in (COUNTED, COUNTED * GROWTH, MEASURED, MEASURED * GROWTH):
        place = directory / str(len(places))
        place.mkdir()
        lay_out(place / "d", round(factor * count))
        places.append(place / "d")
    for name, verb in all_verbs.items():
        # The first call imports modules.
        verbs.run(verb, places[0])
        works = [partial(verbs.run, verb, place) for place in places]
        opcodes = [opcodes_of(work) for work in works[:2]]
        found[name] = {"opcodes": opcodes, "measured": measured_twice(*works[2:])}
    return found


def measured_twice(
    less: Callable[[], object], more: Callable[[], object]
) -> list[tuple[float, int]]:
    """Measure both; the larger one again where it seems to take too long: the machine may be busy."""
    first, best = measured(less), measured(more)
    for _ in range(RETRIES):
        if best[0] < most_secs(first[0]):
            break
        first, best = max(first, measured(less)), min(best, measured(more))
    return [first, best]


def most_secs(secs: float) -> float:
    """Return what four times as much may take at most."""
    return max(MOST_SECS_GROWTH * secs, MIN_SECS)


def check(found: dict[str, Any]) -> None:
    for verb, figures in found.items():
        fewer, more = figures["opcodes"]
        assert more < max(MOST_OPCODES_GROWTH * fewer, MIN_OPCODES), (verb, figures)
        (less, _), (secs, nbytes) = figures["measured"]
        assert secs < most_secs(less), (verb, figures)
        assert nbytes < MEMORY_NBYTES, (verb, figures)


def run_grown(work: Callable[[], dict[str, Any]]) -> None:
    def limited() -> dict[str, Any]:
        # What others have left behind is not to be collected, and counted, meanwhile.
        gc.freeze()
        gc.disable()
        # What asks for all the memory of the machine gets none.
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, hard))
        return work()

    outcome = run_in_child(limited, timeout_secs=TIMEOUT_SECS)
    assert outcome.ok, outcome
    check(outcome.value)


@pytest.mark.parametrize("shape", shapes.FILES)
def test_files(shape: str, tmp_path: Path) -> None:
    make, count = shapes.FILES[shape]

    def lay_out(directory: Path, parts: int) -> None:
        verbs.lay_out(directory, make(parts))

    run_grown(lambda: grown(tmp_path, lay_out, count, verbs.OF_FILES))


@pytest.mark.parametrize("shape", shapes.DIRECTORIES)
def test_directories(shape: str, tmp_path: Path) -> None:
    make, count = shapes.DIRECTORIES[shape]

    def lay_out(directory: Path, parts: int) -> None:
        directory.mkdir()
        make(directory, parts)
        # What has changed a moment ago is listed again: it may change once more.
        os.utime(directory, (1e9, 1e9))

    run_grown(lambda: grown(tmp_path, lay_out, count, verbs.OF_DIRECTORIES))


def _each_with_each(directory: Path) -> None:
    parts = (directory / "parts").read_bytes()
    for _ in parts:
        for _ in parts:
            pass


def _looked_up_in_a_list(directory: Path) -> None:
    parts = [*range((directory / "parts").stat().st_size)]
    list(map(parts.__contains__, parts))


def _memory_of_a_table(directory: Path) -> None:
    bytearray(b"x") * (directory / "parts").stat().st_size ** 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "count"),
    [(_each_with_each, 2_000), (_looked_up_in_a_list, 10_000), (_memory_of_a_table, 16_000)],
)
def test_what_is_quadratic_is_found(verb: verbs.Verb, count: int, tmp_path: Path) -> None:
    def lay_out(directory: Path, parts: int) -> None:
        directory.mkdir()
        (directory / "parts").write_bytes(bytes(parts))

    with pytest.raises(AssertionError, match=verb.__name__):
        run_grown(lambda: grown(tmp_path, lay_out, count, {verb.__name__: verb}))
