"""Few files, threads, bytes or addresses: a typed error or the right bytes, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults.children import NOBODY, raised_by, run_in_child, working_in
from tests.faults.harness import Tally
from tests.faults.requirements import need_root
from tests.specimens import assert_same

import fastckpt

OLD = {"w": torch.arange(1000.0), "n": 1}
# Several chunks for the writer and the reader, so that both ask for threads.
NEW = {"w": torch.full((2_000_000,), 2.0), "small": [torch.ones(9) for _ in range(30)], "n": 2}
STEP = 3


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with a checkpoint and a step in it."""
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    fastckpt.save(OLD, directory / "model.pt")
    fastckpt.save_checkpoint(directory, STEP, OLD, OLD, {"step": STEP})
    return directory


def limit(kind: int, value: int) -> int:
    """Set a soft limit and return the one that was; the hard limit stays."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    return soft


@contextmanager
def limited(kind: int, value: int) -> Iterator[None]:
    before = limit(kind, value)
    try:
        yield
    finally:
        limit(kind, before)


def verbs(directory: Path) -> dict[str, Callable[[], None]]:
    """Everything that is done with a disk, each checked by itself."""
    path = directory / "model.pt"

    def load(mmap: bool) -> None:
        found = fastckpt.load(path, mmap=mmap)
        assert_same(found, NEW if found["n"] == 2 else OLD)

    def verify() -> None:
        # What the system refuses is in the report.
        report = fastckpt.verify(path)
        assert report.exit_code in (0, 6), report

    def load_step() -> None:
        model, optimizer, meta = fastckpt.load_checkpoint(
            directory, STEP, "cpu", load_optimizer=True
        )
        assert_same(model, NEW if model["n"] == 2 else OLD)
        assert model["n"] == optimizer["n"]
        assert meta == {"step": STEP}

    return {
        "save": lambda: fastckpt.save(NEW, path),
        "save without sync": lambda: fastckpt.save(NEW, path, sync=False),
        "load": lambda: load(False),
        "map": lambda: load(True),
        "verify": verify,
        "save a step": lambda: fastckpt.save_checkpoint(directory, STEP, NEW, NEW, {"step": STEP}),
        "load a step": load_step,
    }


def warm_up(directory: Path) -> None:
    """Import all that is imported on first use: that needs files and memory, but once."""
    for verb in verbs(directory).values():
        verb()


def try_all(directory: Path, kind: int, value: int) -> list[list[str]]:
    """Do everything under a limit, each verb with all of it; return what each of them came to."""
    came_to = []
    for name, verb in verbs(directory).items():
        with limited(kind, value):
            raised = raised_by(verb)
        if raised is None:
            came_to.append([name, "done", ""])
        elif raised.is_a(MemoryError) or (raised.is_a(OSError) and raised.words):
            came_to.append([name, "refused", str(raised)])
        else:
            came_to.append([name, "wrong", raised.trace])
    _assert_all_is_well(directory)
    return came_to


def _assert_all_is_well(directory: Path) -> None:
    """Whatever was refused, the next attempt without a limit works, and nothing is left."""
    for verb in verbs(directory).values():
        verb()
    hidden = [name for name in os.listdir(directory) if name.startswith(".")]
    assert hidden == []
    assert fastckpt.verify(directory).ok


def tally_of(cases: dict[int, list[list[str]]], what: str) -> Tally:
    tally = Tally()
    for value, came_to in cases.items():
        for name, result, words in came_to:
            if result == "wrong":
                tally.fail(f"{name} with {what} {value}: {words}")
            else:
                tally.count(f"{name}: {result}")
    return tally


def assert_both_occur(tally: Tally, *names: str) -> None:
    """Each of these was refused under some limit, and done under another."""
    print(tally)
    assert tally.failures == []
    for name in names:
        assert tally.outcomes[f"{name}: refused"] > 0
        assert tally.outcomes[f"{name}: done"] > 0


# Open files


# Standard input, output and error, and the report of the child, which has closed all others.
_FILES_OPEN = 4


def test_few_open_files(directory: Path) -> None:
    """From none that is free to more than are needed."""

    def work() -> dict[int, list[list[str]]]:
        warm_up(directory)
        values = range(_FILES_OPEN, _FILES_OPEN + 16)
        return {value: try_all(directory, resource.RLIMIT_NOFILE, value) for value in values}

    outcome = run_in_child(work, close_files=True, timeout_secs=200)
    assert outcome.ok, outcome
    tally = tally_of(outcome.value, "open files:")
    assert_both_occur(tally, *(name for name in verbs(directory) if name != "verify"))
    words = [words for came_to in outcome.value.values() for _, _, words in came_to if words]
    assert all("Too many open files" in said for said in words), words


def test_no_more_open_files_is_said_with_the_path(directory: Path) -> None:
    def work() -> list[list[Any]]:
        warm_up(directory)
        said = []
        for name, verb in verbs(directory).items():
            with limited(resource.RLIMIT_NOFILE, _FILES_OPEN):
                raised = raised_by(verb)
            said.append([name, raised and raised.errno, raised and raised.filename])
        return said

    outcome = run_in_child(work, close_files=True)
    assert outcome.ok, outcome
    for name, number, filename in outcome.value:
        if name != "verify":
            assert number == errno.EMFILE, outcome.value
            assert filename.startswith(str(directory)), outcome.value


# Threads


def _no_thread_starts() -> bool:
    """Whether the limit is one: Python's own threads are refused."""
    try:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
    except RuntimeError:
        return True
    return False


def test_no_more_threads_of_this_user(directory: Path) -> None:
    """With fewer threads than were asked for, or none, the bytes are the same."""
    need_root()
    for path in [directory, *directory.iterdir()]:
        os.chown(path, NOBODY, NOBODY)

    def work() -> dict[int, list[list[str]]]:
        warm_up(Path())
        cases = {}
        for value in range(1, 8):
            with limited(resource.RLIMIT_NPROC, value):
                assert value > 1 or _no_thread_starts()
            cases[value] = try_all(Path(), resource.RLIMIT_NPROC, value)
        return cases

    with working_in(directory):
        outcome = run_in_child(work, user=NOBODY)
    assert outcome.ok, outcome
    tally = tally_of(outcome.value, "processes of the user:")
    assert tally.failures == []
    assert all(name.endswith(": done") for name in tally.outcomes), tally


@contextmanager
def group_of_processes(controller: str) -> Iterator[Path]:
    """A control group of version 1 of its own."""
    need_root()
    parent = Path("/sys/fs/cgroup", controller)
    group = parent / f"fastckpt-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control groups of version 1 here: {error}")
    try:
        yield group
    finally:
        with suppress(FileNotFoundError):
            group.rmdir()


def test_no_more_threads_in_this_container(directory: Path) -> None:
    with group_of_processes("pids") as group:

        def work() -> dict[int, list[list[str]]]:
            warm_up(directory)
            (group / "cgroup.procs").write_text(str(os.getpid()))
            cases = {}
            for value in range(1, 8):
                (group / "pids.max").write_text(str(value))
                assert value > 1 or _no_thread_starts()
                came_to = []
                for name, verb in verbs(directory).items():
                    verb()
                    came_to.append([name, "done", ""])
                cases[value] = came_to
            (group / "pids.max").write_text("max")
            _assert_all_is_well(directory)
            return cases

        outcome = run_in_child(work)
        assert outcome.ok, outcome
        assert len(outcome.value) == 7


# Bytes of a file


def _file_sizes(path: Path) -> list[int]:
    fastckpt.save(NEW, path)
    nbytes = path.stat().st_size
    evenly = [nbytes * part // 8 for part in range(1, 8)]
    block = -(-nbytes // 4096) * 4096
    return [0, 1, 511, 4095, 4096, *evenly, nbytes - 1, nbytes, block, block + 1]


def test_files_may_only_be_so_large(directory: Path, tmp_path: Path) -> None:
    sizes = _file_sizes(tmp_path / "sized.pt")

    def work() -> dict[int, list[list[str]]]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        cases = {}
        for value in sizes:
            # The old checkpoint is small, so that one can see which of both is there.
            shutil.rmtree(directory)
            directory.mkdir()
            fastckpt.save(OLD, directory / "model.pt")
            fastckpt.save_checkpoint(directory, STEP, OLD, OLD, {"step": STEP})
            with limited(resource.RLIMIT_FSIZE, value):
                refused = [
                    raised_by(partial(fastckpt.save, NEW, directory / "model.pt", sync=sync))
                    for sync in (True, False)
                ]
            if all(refused):
                assert_same(fastckpt.load(directory / "model.pt"), OLD)
                assert all(raised and raised.errno == errno.EFBIG for raised in refused)
            cases[value] = try_all(directory, resource.RLIMIT_FSIZE, value)
        return cases

    outcome = run_in_child(work, timeout_secs=200)
    assert outcome.ok, outcome
    tally = tally_of(outcome.value, "bytes of a file:")
    assert_both_occur(tally, "save", "save without sync", "save a step")
    # Reading needs no new bytes, and the exact size is enough where no block is filled up.
    assert tally.outcomes["load: refused"] == tally.outcomes["map: refused"] == 0
    assert ["save without sync", "done", ""] in outcome.value[str(sizes[-3])]
    words = [words for came_to in outcome.value.values() for _, _, words in came_to if words]
    assert all("File too large" in said for said in words), words


# Addresses

# In megabytes: around what a save and a load need, and more.
_ADDRESS_STEPS = [*range(0, 24, 2), 32, 48, 64, 96, 160, 256]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_little_memory_may_be_had(directory: Path) -> None:
    """Buffers, stacks of threads and mappings are refused one after the other."""

    def sweep(megabytes: int) -> list[list[str]]:
        warm_up(directory)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        return try_all(directory, resource.RLIMIT_AS, used + (megabytes << 20))

    tally = Tally()
    for megabytes in _ADDRESS_STEPS:
        # A child for each: what one has allocated and freed, it need not ask for again.
        outcome = run_in_child(partial(sweep, megabytes))
        if outcome.ok:
            tally.add(tally_of({megabytes: outcome.value}, "megabytes:"))
        else:
            tally.fail(f"with {megabytes} megabytes: {outcome}")
    assert_both_occur(tally, "save", "load", "map", "save a step", "load a step")
