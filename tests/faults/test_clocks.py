"""Clocks that jump and times of files that lie: steps go by their number, files by their owners."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.faults.requirements import need_program
from tests.specimens import assert_same

import fastckpt
from fastckpt._steps.save_id import agreed

SEED = 20
JUMPS = 20
REPOSITORY = Path(__file__).resolve().parents[2]
# Where Debian's package has the library that lies about the time.
FAKETIME = Path("/usr/lib", f"{os.uname().machine}-linux-gnu", "faketime", "libfaketimeMT.so.1")
# From before there was Unix to after 32 bits are not enough.
EARLIEST, LATEST = 86_400, 4_500_000_000

Clock = Callable[[int], None]


def state(number: int) -> dict[str, object]:
    return {"w": torch.full((50_000,), float(number)), "n": number}


def scramble(directory: Path, generator: random.Random) -> None:
    """Give all files and the directory itself any time at all."""
    for path in [*directory.iterdir(), directory]:
        times = (generator.uniform(0, LATEST), generator.uniform(0, LATEST))
        os.utime(path, times)


def save_ranks(directory: Path, step: int, number: int, save_id: int, *ranks: int) -> None:
    with agreed(save_id, 2):
        for rank in ranks:
            meta = {"step": step, "n": number}
            fastckpt.save_checkpoint(directory, step, state(number), state(number), meta, rank)


def assert_loads(directory: Path, step: int, number: int) -> None:
    for rank in (0, 1):
        found = fastckpt.load_checkpoint(
            directory, step, "cpu", load_optimizer=True, rank=rank, world_size=2
        )
        assert_same(found[0], state(number))
        assert_same(found[1], state(number))
        assert found[2] == {"step": step, "n": number}


def test_steps_go_by_number_whatever_the_times_of_the_files_say(tmp_path: Path) -> None:
    generator = random.Random(SEED)
    steps = list(range(1, 13))
    generator.shuffle(steps)
    for done, step in enumerate(steps, 1):
        save_ranks(tmp_path, step, step, generator.randrange(1, 10**14), 0, 1)
        scramble(tmp_path, generator)
        assert fastckpt.find_last_step(tmp_path) == max(steps[:done])
        assert fastckpt.find_last_good_step(tmp_path) == max(steps[:done])
        for other in steps[:done]:
            assert_loads(tmp_path, other, other)
    assert fastckpt.verify(tmp_path).ok


def test_age_does_not_make_a_file_stale(tmp_path: Path) -> None:
    """A file that its owner holds is kept however old, one that nobody holds is removed at once."""
    held, left = tmp_path / ".fastckpt-7-1.tmp", tmp_path / ".fastckpt-7-2.tmp"
    with held.open("wb") as owned:
        fcntl.flock(owned, fcntl.LOCK_EX)
        for owned_time, left_time in ((0, LATEST), (LATEST, 0), (LATEST, LATEST)):
            left.touch()
            os.utime(held, (owned_time, owned_time))
            os.utime(left, (left_time, left_time))
            fastckpt.save(state(1), tmp_path / "model.pt")
            assert sorted(os.listdir(tmp_path)) == [held.name, "model.pt"]


# A process whose clock jumps. The rest of the module is run by it.


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_clock_that_jumps(tmp_path: Path) -> None:
    """To 1970, to 2112 and back, between saves and in the middle of them."""
    need_program("faketime")
    directory = tmp_path / "run"
    directory.mkdir()
    clock = tmp_path / "clock"
    clock.write_text("+0")
    script = "import sys; from tests.faults import test_clocks; test_clocks.main(*sys.argv[1:])"
    environment = os.environ | {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        # Looked at whenever somebody asks for the time; the monotonic clock is, and stays, monotonic.
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", script, directory, clock, str(SEED), str(JUMPS)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"{JUMPS} jumps"
    # Seen with a clock that is right.
    assert fastckpt.verify(directory).ok
    assert fastckpt.find_last_step(directory) == fastckpt.find_last_good_step(directory) == JUMPS
    assert_loads(directory, JUMPS, 3)
    assert not any(name.startswith(".") for name in os.listdir(directory))


def main(directory: str, clock: str, seed: str, jumps: str) -> None:
    """Save step after step, each three times, while the clock jumps."""
    run = Path(directory)
    generator = random.Random(int(seed))

    def set_clock(seconds: int) -> None:
        # Exchanged for another, so that nobody reads half of it.
        spare = Path(f"{clock}.{threading.get_ident()}")
        spare.write_text(time.strftime("@%Y-%m-%d %H:%M:%S", time.localtime(seconds)))
        spare.replace(clock)

    for step in range(1, int(jumps) + 1):
        _jump(set_clock, generator)
        save_ranks(run, step, 1, 3 * step, 0, 1)
        assert_loads(run, step, 1)
        _save_again_half(run, step, set_clock, generator)
        _save_while_the_clock_jumps(run, step, set_clock, generator)
        scramble(run, generator)
        assert fastckpt.find_last_step(run) == step
        assert fastckpt.find_last_good_step(run) == step
    print(f"{jumps} jumps")


def _jump(set_clock: Clock, generator: random.Random) -> None:
    to = generator.randrange(EARLIEST, LATEST)
    set_clock(to)
    # Otherwise no clock has jumped.
    assert abs(time.time() - to) < 100, (time.time(), to)


def _save_again_half(
    directory: Path, step: int, set_clock: Clock, generator: random.Random
) -> None:
    """One rank, then the other: until both have saved again, the older save is what there is."""
    first, second = generator.sample([0, 1], 2)
    _jump(set_clock, generator)
    save_ranks(directory, step, 2, 3 * step + 1, first)
    scramble(directory, generator)
    assert_loads(directory, step, 1)
    _jump(set_clock, generator)
    save_ranks(directory, step, 2, 3 * step + 1, second)
    scramble(directory, generator)
    assert_loads(directory, step, 2)


def _save_while_the_clock_jumps(
    directory: Path, step: int, set_clock: Clock, generator: random.Random
) -> None:
    stop = threading.Event()

    def jump_on() -> None:
        own = random.Random(generator.random())
        while not stop.is_set():
            set_clock(own.randrange(EARLIEST, LATEST))
            time.sleep(0.001)

    thread = threading.Thread(target=jump_on)
    thread.start()
    try:
        save_ranks(directory, step, 3, 3 * step + 2, 0, 1)
        assert_loads(directory, step, 3)
    finally:
        stop.set()
        thread.join()
