"""What the children of the zygote do: saves and loads of files and of steps, of known contents.

Each work function prepares what is not to be counted, and returns what is done with the shim armed; see
`zygote.Act`. The contents follow from a number, so that whoever finds a file knows which save wrote it.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from tests.faults.shim.zygote import Act
from tests.specimens import assert_same

import fastckpt
from fastckpt._steps import save_id

# Before the zygote forks: a child that has yet to import them is killed before its save begins.
from fastckpt.nanochat import load_checkpoint, save_checkpoint

FILE = "model.pt"
# A chunk of 2 MiB and a bit of a second: a save has several writes, in several threads.
FILE_NUMEL = 550_000
# Fourteen digits, as the ids that are drawn. The number of the save is added.
_SAVE_ID = 70_000_000_000_000
# A thousand times a second: more often than any call to a disk takes.
_TIMER_SECS = 0.001

Obj = dict[str, Any]


@functools.cache
def file_state(number: int, numel: int = FILE_NUMEL) -> Obj:
    """Return what save number `number` of a file holds."""
    return {"w": torch.full((numel,), float(number)), "b": torch.full((3,), number), "n": number}


def model_state(number: int) -> Obj:
    """Return the model of save number `number` of a step."""
    return {
        "layer.weight": torch.full((50, 20), float(number)),
        "layer.bias": torch.full((20,), number),
    }


def optimizer_state(number: int, rank: int) -> Obj:
    """Return the shard of a rank of save number `number` of a step."""
    moment = torch.full((500,), number + rank / 1000)
    return {"state": {0: {"exp_avg": moment, "step": torch.tensor(float(number))}}, "rank": rank}


def meta_state(number: int) -> Obj:
    """Return the meta of save number `number` of a step."""
    return {"number": number, "val_bpb": number / 8}


def save_rank(directory: Path, step: int, number: int, rank: int) -> None:
    """Save one rank's part of a step."""
    save_checkpoint(
        directory,
        step,
        model_state(number),
        optimizer_state(number, rank),
        meta_state(number),
        rank=rank,
    )


def save_whole_step(directory: Path, step: int, number: int, ranks: Sequence[int]) -> None:
    """Save a step, one rank after the other in the order given."""
    with save_id.agreed(_SAVE_ID + number, len(ranks)):
        for rank in ranks:
            save_rank(directory, step, number, rank)


# Works that save.


def save_file(directory: Path, number: int) -> Act:
    """Save a file."""
    obj, path = file_state(number), directory / FILE
    return lambda: fastckpt.save(obj, path)


def save_step(directory: Path, run: str, step: int, number: int, ranks: Sequence[int]) -> Act:
    """Save a step of a run in this directory."""
    return lambda: save_whole_step(directory / run, step, number, ranks)


def save_files_on_and_on(directory: Path, number: int, progress: str) -> Act:
    """Save a file again and again, and note the number of each save before it begins."""

    def act() -> None:
        for current in itertools.count(number):
            obj = file_state(current)
            note(progress, current)
            fastckpt.save(obj, directory / FILE)

    return act


def save_steps_on_and_on(directory: Path, number: int, progress: str, ranks: int) -> Act:
    """Save steps again and again, all ranks at once, and note the number of each save before."""

    def act() -> None:
        for current in itertools.count(number):
            note(progress, current)
            save_at_once(directory, step_of(current), current, ranks)

    return act


def step_of(number: int) -> int:
    """Return the step to which save `number` of an endless row goes: each is saved three times."""
    return 10 * (number // 3)


def save_at_once(directory: Path, step: int, number: int, ranks: int) -> None:
    """Save a step, with a thread for each rank."""
    with save_id.agreed(_SAVE_ID + number, ranks), ThreadPoolExecutor(ranks) as pool:
        parts = [pool.submit(save_rank, directory, step, number, rank) for rank in range(ranks)]
        for part in parts:
            part.result()


def note(path: str, number: int) -> None:
    """Write a number to the end of a file, in one piece."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, b"%d\n" % number)
    os.close(descriptor)


# Works that read. Each checks, with the shim disarmed, that what it got is right.


def load_file(directory: Path, number: int, *, mmap: bool) -> Act:
    """Load a file."""

    def act() -> Callable[[], None]:
        found = fastckpt.load(directory / FILE, mmap=mmap)
        return lambda: assert_same(found, file_state(number))

    return act


def load_step(directory: Path, run: str, step: int, number: int, rank: int) -> Act:
    """Load a step with the optimizer shard of a rank."""

    def act() -> Callable[[], None]:
        found = load_checkpoint(directory / run, step, "cpu", load_optimizer=True, rank=rank)
        return lambda: assert_step(found, number, rank)

    return act


def load_shard(directory: Path, number: int, rank: int) -> Act:
    """Load the optimizer shard of a rank, of the last step in nanochat's base directory."""
    os.environ["NANOCHAT_BASE_DIR"] = str(directory.parent)

    def act() -> Callable[[], None]:
        found = fastckpt.load_optimizer_state("base", "cpu", rank)
        return lambda: assert_same(found, optimizer_state(number, rank))

    return act


def assert_step(found: tuple[Any, Any, Any], number: int, rank: int) -> None:
    """Check that a model, a shard and a meta are those of one save."""
    assert_same(found[0], model_state(number))
    assert_same(found[1], optimizer_state(number, rank))
    assert found[2] == meta_state(number)


def refusal_to_load(run: Path, step: int, rank: int, ranks: int) -> str | None:
    """Return what is said of a step that is not whole; None where it loads."""
    try:
        load_checkpoint(run, step, "cpu", load_optimizer=True, rank=rank, world_size=ranks)
    except fastckpt.IncompleteCheckpointError as error:
        return str(error)
    return None


def find_step(
    directory: Path, run: str, expected: int, verify: Literal["quick", "full"] | None
) -> Act:
    """Find the last step, or the last good one."""

    def act() -> Callable[[], None]:
        if verify is None:
            found = fastckpt.find_last_step(directory / run)
        else:
            found = fastckpt.find_last_good_step(directory / run, verify=verify)
        return lambda: _assert_equal(found, expected)

    return act


def verify(directory: Path, path: str, files: int) -> Act:
    """Verify what is good: the report says so, or that it could not be read, but never less."""

    def act() -> Callable[[], None]:
        report = fastckpt.verify(directory / path)

        def check() -> None:
            seen = [file for file in report.files if file.status.value == "good"]
            if report.ok:
                _assert_equal(len(seen), files)
            else:
                _assert_equal(report.status.value, "io_error")
                words = [file.message for file in report.files if file.status.value == "io_error"]
                assert all(words), words

        return check

    return act


def _assert_equal(found: object, expected: object) -> None:
    assert found == expected, f"{found!r} instead of {expected!r}"


# A work that does both, under a hail of signals.


def save_and_load_again_and_again(directory: Path, seed: int, rounds: int) -> Act:
    """Save and load objects of random sizes while a timer interrupts whatever waits."""
    generator = torch.Generator().manual_seed(seed)

    def objects() -> Iterator[Obj]:
        for number in range(rounds):
            numel = int(torch.randint(1, FILE_NUMEL, (), generator=generator))
            bits = torch.randint(-(2**31), 2**31, (numel,), generator=generator)
            yield {"w": bits.to(torch.int32), "tail": torch.arange(number % 13), "n": number}

    def act() -> None:
        fired = itertools.count()
        signal.signal(signal.SIGALRM, lambda _number, _frame: next(fired))
        signal.setitimer(signal.ITIMER_REAL, _TIMER_SECS, _TIMER_SECS)
        try:
            for obj in objects():
                # The disk's cache holds a file that was not synced, and not one that was: both are read.
                fastckpt.save(obj, directory / FILE, sync=obj["n"] % 2 == 0)
                assert_same(fastckpt.load(directory / FILE), obj)
                assert fastckpt.verify(directory / FILE).ok
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert next(fired) >= rounds

    return act
