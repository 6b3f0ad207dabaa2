"""Saves that do not come to their end: killed, interrupted."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.faults.children import in_child, wait_for
from tests.specimens import assert_same

import fastckpt

KILLS = 20
NUMEL = 1_000_000


def state(number: int) -> dict[str, torch.Tensor | int]:
    return {"w": torch.full((NUMEL,), float(number)), "b": torch.full((3,), number), "n": number}


def has_begun(progress: Path, saves: int) -> bool:
    return progress.exists() and progress.read_bytes().count(b"\n") >= saves


@pytest.mark.parametrize("sync", [True, False])
def test_kill_leaves_the_old_file_or_the_new_one(sync: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    fastckpt.save(state(0), path)
    progress = tmp_path / "progress"
    generator = random.Random(7)
    last = 0

    def save_on_and_on() -> None:
        with progress.open("ab", buffering=0) as note:
            number = last
            while True:
                number += 1
                note.write(b"%d\n" % number)
                fastckpt.save(state(number), path, sync=sync)

    for kill in range(KILLS):
        child = in_child(save_on_and_on)
        # In the first save, or in the second, which is begun once the first is done.
        wait_for(partial(has_begun, progress, 1 + kill % 2))
        time.sleep(generator.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        begun = int(progress.read_bytes().split()[-1])
        progress.unlink()
        assert fastckpt.verify(path).ok
        found = fastckpt.load(path)
        # What was acknowledged before the kill, or the save that was under way.
        assert found["n"] in (begun - 1, begun)
        assert_same(found, state(found["n"]))
        assert_same(torch.load(path), found)
        last = found["n"]
    assert last > 0
    fastckpt.save(state(last), path)
    assert [name for name in os.listdir(tmp_path) if name != "model.pt"] == []


SCRIPT = textwrap.dedent(
    """
    import sys, torch, fastckpt
    path, what = sys.argv[1:]
    began = []
    def note(done, total):
        if not began:
            began.append(True)
            print("started", flush=True)
    try:
        while True:
            if what == "save":
                fastckpt.save(torch.zeros(30_000_000), path, progress=note)
            elif what == "load":
                fastckpt.load(path, progress=note)
            elif what == "mmap":
                fastckpt.load(path, mmap=True, progress=note)
            else:
                fastckpt.verify(path, progress=note)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    """
)


@pytest.mark.parametrize("what", ["save", "load", "mmap", "verify"])
def test_ctrl_c_ends_it(what: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    fastckpt.save(torch.zeros(30_000_000 if what != "save" else 3), path, sync=False)
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, path, what], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "started\n"
            time.sleep(0.02)
            child.send_signal(signal.SIGINT)
            assert child.stdout.readline() == "interrupted\n"
        except BaseException:
            # Otherwise the context would wait for it.
            child.kill()
            raise
    assert child.returncode == 0
    assert os.listdir(tmp_path) == ["model.pt"]
    assert fastckpt.verify(path).ok
