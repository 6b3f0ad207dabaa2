"""Forks during a save: the parent's file is good, and the child can save and load of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.data
from tests.faults import forks
from tests.faults.forks import saving, small_state
from tests.specimens import assert_same

import fastckpt

SEED = 20
FORKS = 200
SPAWNED = 5
SPAWN_SECS = 200


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_fork_at_any_moment_of_a_save(tmp_path: Path) -> None:
    """The child has none of the parent's threads, and leaves the parent's file alone."""
    tally = forks.run(SEED, FORKS, tmp_path)
    print(tally)
    assert tally.failures == []
    assert tally.cases == FORKS
    assert tally.outcomes["during the save"] > FORKS // 4


# A child that ends as Python does, with all that it drops then, while the parent saves: a program of
# its own, since pytest could not be ended so.
ENDING_CHILD = textwrap.dedent(
    """
    import os, sys, threading
    import torch, fastckpt
    began, ended = threading.Event(), threading.Event()

    def hold(done, total):
        # The temporary file stays open until the child is gone.
        began.set()
        assert ended.wait(60)

    state = {"w": torch.ones(6_000_000)}
    saver = threading.Thread(
        target=fastckpt.save, args=(state, sys.argv[1]), kwargs={"progress": hold}
    )
    saver.start()
    assert began.wait(60)
    child = os.fork()
    if child == 0:
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    names = os.listdir(os.path.dirname(sys.argv[1]))
    ended.set()
    saver.join()
    print(os.waitstatus_to_exitcode(status), *names)
    """
)


@pytest.mark.slow
def test_a_child_that_ends_during_the_save_takes_nothing_with_it(tmp_path: Path) -> None:
    path = tmp_path / "parent.pt"
    command = [sys.executable, "-W", "ignore", "-c", ENDING_CHILD, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    code, name = result.stdout.split()
    assert code == "0", result.stderr
    assert name.endswith(".tmp")
    assert os.listdir(tmp_path) == ["parent.pt"]
    assert fastckpt.verify(path).ok
    assert torch.equal(fastckpt.load(path)["w"], torch.ones(6_000_000))


def save_and_load(directory: str, number: int) -> None:
    """What a process of `multiprocessing` does; it imports this module to find it."""
    # In a fork, torch's own operations wait for the threads of a pool that only the parent has.
    torch.set_num_threads(1)
    path = Path(directory, f"{number}.pt")
    fastckpt.save(small_state(number), path)
    assert_same(fastckpt.load(path), small_state(number))
    assert_same(fastckpt.load(Path(directory, "settled.pt")), small_state(-1))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_processes_of_multiprocessing_save_and_load(method: str, tmp_path: Path) -> None:
    fastckpt.save(small_state(-1), tmp_path / "settled.pt")
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        # One import of torch for all of them.
        context.set_forkserver_preload([__name__])
    with _fork_without_warning():
        processes = [
            context.Process(target=save_and_load, args=(str(tmp_path), number), daemon=True)
            for number in range(SPAWNED)
        ]
        try:
            with saving(tmp_path / "parent.pt", 7, sync=True):
                for process in processes:
                    process.start()
            for process in processes:
                process.join(SPAWN_SECS)
            assert [process.exitcode for process in processes] == [0] * SPAWNED
        finally:
            for process in processes:
                process.kill()
    names = {"settled.pt", "parent.pt", *(f"{number}.pt" for number in range(SPAWNED))}
    assert set(os.listdir(tmp_path)) == names


class _Numbers(torch.utils.data.Dataset[torch.Tensor]):
    """Each item is read from a checkpoint, by a worker of the data loader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.as_tensor(fastckpt.load(self.path)["w"][index])


def test_the_workers_of_a_data_loader_come_and_go_during_saves(tmp_path: Path) -> None:
    """They are forked in each epoch, and killed by signal or by exit while the parent saves."""
    settled = tmp_path / "settled.pt"
    fastckpt.save({"w": torch.arange(32.0)}, settled)
    loader = torch.utils.data.DataLoader(
        _Numbers(settled), batch_size=8, num_workers=2, multiprocessing_context="fork"
    )
    with _fork_without_warning():
        for epoch in range(5):
            with saving(tmp_path / "parent.pt", epoch, sync=bool(epoch % 2)):
                assert torch.equal(torch.cat(list(loader)), torch.arange(32.0))
    assert sorted(os.listdir(tmp_path)) == ["parent.pt", "settled.pt"]


@contextlib.contextmanager
def _fork_without_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        # Python 3.12 warns of forks where there are threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
