"""Ctrl-C ends whatever is done with a file, also one that takes long: within a second of work."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.faults.children import fork, wait_for
from tests.linear import shapes, verbs

from fastckpt._native import Archive

# Numbers in a list, of which a second's work are a few million.
LARGE, SMALL = 3_000_000, 300_000
# What looks at each number in Python can be interrupted anywhere.
IN_PYTHON = {"inspect", "diff", "prune", "gc", "copy", "verify", "repair"}
MOST_SECS = 1.0
# Of the machine, and of giving the memory back.
MARGIN_SECS = 1.0
# After so much work: while it is decoded, while it is built, and later.
DELAYS_SECS = (0.15, 0.5, 1.0)
TICKS_PER_SEC = os.sysconf("SC_CLK_TCK")


# What is made once for all of them is made once.
pytestmark = pytest.mark.xdist_group("interrupts")


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    found = {}
    for count in (LARGE, SMALL):
        found[count] = tmp_path_factory.mktemp("interrupts") / "d"
        verbs.lay_out(found[count], shapes.long_to_build(count))
    return found


@pytest.mark.parametrize("name", verbs.OF_FILES)
def test_it_ends_within_a_second(name: str, directories: dict[int, Path]) -> None:
    verb = verbs.OF_FILES[name]
    directory = directories[SMALL if name in IN_PYTHON else LARGE]
    for delay_secs in DELAYS_SECS:
        child = fork()
        if child == 0:
            _work_until_interrupted(verb, directory)
        wait_for(partial(has_worked, child, delay_secs))
        before = cpu_secs(child)
        os.kill(child, signal.SIGINT)
        _, status, usage = os.wait4(child, 0)
        assert os.waitstatus_to_exitcode(status) == 130, name
        secs = usage.ru_utime + usage.ru_stime - before
        assert secs < MOST_SECS + MARGIN_SECS, (name, delay_secs)


def signals_during(work: Callable[[], object]) -> int:
    """Count how often a signal handler has its turn while work goes on."""
    turns = 0

    def count(*_: object) -> None:
        nonlocal turns
        turns += 1

    former = signal.signal(signal.SIGALRM, count)
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    try:
        work()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    return turns


def test_signal_handlers_have_their_turn_in_each_call_that_takes_long(
    directories: dict[int, Path],
) -> None:
    """One that has it only at the end of the call has it once."""
    archive = Archive.open(directories[LARGE] / "model.pt")
    graph = archive.decode()
    assert graph.outside is None
    storages = [torch.UntypedStorage(info.nbytes) for info in graph.storages]
    for work in (archive.decode, graph.outline, lambda: graph.build(storages)):
        assert signals_during(work) > 3


def _work_until_interrupted(verb: verbs.Verb, directory: Path) -> None:
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.alarm(200)
        while True:
            verbs.run(verb, directory)
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


def has_worked(child: int, secs: float) -> bool:
    return cpu_secs(child) >= secs


def cpu_secs(child: int) -> float:
    """Return the CPU time that a process has taken so far."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SEC
