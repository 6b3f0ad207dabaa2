"""Real file systems on a disk that cannot be read, for a while, with part of a checkpoint in the cache."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.faults.children import Raised, raised_by, run_in_child
from tests.faults.disks import FailingDisk, failing_disk
from tests.faults.harness import Tally

import fastckpt
from fastckpt.cli.app import run as run_command

FILE_SYSTEMS = ("ext4", "xfs", "btrfs")

# What the machine still knows of the file when the disk begins to fail.
_CACHED = ("nothing", "where it lies", "its ends", "parts", "everything")
_END_NBYTES = 64 << 10
_PART_NBYTES = 1 << 20
_PARTS_SHARE = 0.7
# In so many of the cases, all files but this one are in the cache too.
_SMALL_FILES_SHARE = 0.7
_MODEL_NUMELS = {"first": 1_500_000, "small": 1000, "last": 2_500_000}
# A step that cannot be read must not be taken for one that is not there, nor an older one for it.
_STEP, _OLDER = 5, 4
_MODEL = f"model_{_STEP:06d}.pt"
# The command's exit code for what could not be read.
_IO_ERROR = 6


@dataclass(frozen=True)
class _Case:
    number: int
    is_step: bool
    cached: str
    seed: int


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Let reads fail on each file system in turn."""
    tally = Tally()
    for position, file_system in enumerate(FILE_SYSTEMS):
        share = len(range(position, cases, len(FILE_SYSTEMS)))
        tally.add(run_on(file_system, seed, share, directory))
    return tally


def run_on(file_system: str, seed: int, cases: int, directory: Path) -> Tally:
    """Let reads fail on one file system."""
    generator = random.Random(f"{file_system} {seed}")
    tally = Tally()
    with failing_disk(directory, file_system) as disk:
        model = {name: torch.randn(numel) for name, numel in _MODEL_NUMELS.items()}
        optimizer = {"m": torch.ones(9)}
        for step, state in ((_OLDER, optimizer), (_STEP, model)):
            fastckpt.save_checkpoint(disk.path / "run", step, state, optimizer, {"step": step})
        for number in range(cases):
            is_step = number // len(_CACHED) % 2 == 1
            cached = _CACHED[number % len(_CACHED)]
            case = _Case(number, is_step, cached, generator.getrandbits(32))
            try:
                tally.count(f"{file_system}: {_try(disk, case, model)}")
            except Exception as error:
                tally.fail(f"{file_system}, seed {seed}, {case}: {error!r}")
    return tally


def _try(disk: FailingDisk, case: _Case, model: dict[str, torch.Tensor]) -> str:
    """Load, look for steps and verify while nothing can be read; returns what came of the load."""
    directory = disk.path / "run"
    disk.remount()
    _bring_in(directory, case)
    with disk.failing("read"):
        outcome = run_in_child(lambda: _look(directory, model, is_step=case.is_step))
    assert outcome.ok, outcome
    _judge_findings(outcome.value["newest"])
    kind = _judge(outcome.value, directory if case.is_step else directory / _MODEL)
    # Whatever could not be read is still there.
    assert _is_same(_load(directory, is_step=case.is_step), model)
    assert fastckpt.find_last_good_step(directory, verify="full") == _STEP
    return kind


def _load(directory: Path, *, is_step: bool) -> dict[str, torch.Tensor]:
    if not is_step:
        found: dict[str, torch.Tensor] = fastckpt.load(directory / _MODEL)
    else:
        found, _, _ = fastckpt.load_checkpoint(directory, _STEP, "cpu", load_optimizer=True)
    return found


def _look(directory: Path, model: dict[str, torch.Tensor], *, is_step: bool) -> dict[str, Any]:
    """Load and verify, in a child: a signal would end it."""
    path = directory if is_step else directory / _MODEL
    loaded: list[bool] = []
    raised = raised_by(lambda: loaded.append(_is_same(_load(directory, is_step=is_step), model)))
    newest = [_newest(directory, verify) for verify in ("quick", "full")] if is_step else []
    report = fastckpt.verify(path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = run_command(["verify", str(path)])
    return {
        "is_same": loaded == [True],
        "raised": None if raised is None else vars(raised),
        "newest": newest,
        "verdict": report.exit_code,
        "statuses": sorted({file.status.value for file in report.files}),
        "command": code,
        "printed": printed.getvalue(),
    }


def _newest(directory: Path, verify: Any) -> int | dict[str, Any]:
    found: list[int] = []
    raised = raised_by(lambda: found.append(fastckpt.find_last_good_step(directory, verify=verify)))
    return found[0] if raised is None else vars(raised)


def _judge_findings(found: list[int | dict[str, Any]]) -> None:
    """Check what was found as the newest step: it cannot be read, so it must not be passed over."""
    for step in found:
        if isinstance(step, int):
            assert step == _STEP, f"step {step} was taken for the newest"
        else:
            assert step["errno"] == errno.EIO, step["words"]


def _judge(found: dict[str, Any], path: Path) -> str:
    """Check what was loaded and verified; returns it in short."""
    # What is in the cache may be dropped from it between one look and the next.
    assert found["command"] in (found["verdict"], _IO_ERROR), found
    if found["raised"] is None:
        # All that was needed was in the cache.
        assert found["is_same"], "other tensors than were saved"
        return "loaded"
    raised = Raised(**found["raised"])
    assert raised.is_a(OSError), raised.trace
    assert raised.errno == errno.EIO, raised.words
    name = str(raised.filename)
    assert name.startswith(str(path)) if path.suffix == "" else name == str(path), name
    assert found["verdict"] == _IO_ERROR, found
    assert "cannot be read" in found["printed"], found
    assert "io_error" in found["statuses"], found
    assert not {"damaged", "incomplete"} & set(found["statuses"]), found
    return "EIO while reading" if "while reading" in raised.words else "EIO on opening"


def _bring_in(directory: Path, case: _Case) -> None:
    """Read what the case says through the page cache."""
    if case.cached == "nothing":
        return
    generator = random.Random(case.seed)
    if generator.random() < _SMALL_FILES_SHARE:
        for path in directory.iterdir():
            if path.name != _MODEL:
                path.read_bytes()
    file = os.open(directory / _MODEL, os.O_RDONLY)
    try:
        # Only what is asked for, and nothing ahead of it.
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        nbytes = os.fstat(file).st_size
        for offset, length in _ranges(case.cached, nbytes, generator):
            os.pread(file, length, offset)
    finally:
        os.close(file)


def _ranges(cached: str, nbytes: int, generator: random.Random) -> Iterator[tuple[int, int]]:
    """Yield the offset and length of what is to be read."""
    if cached == "where it lies":
        yield nbytes // 2, 1
    if cached in ("its ends", "parts"):
        yield 0, _END_NBYTES
        yield nbytes - _END_NBYTES, _END_NBYTES
    for offset in range(0, nbytes, _PART_NBYTES):
        if cached == "everything" or (cached == "parts" and generator.random() < _PARTS_SHARE):
            yield offset, _PART_NBYTES


def _is_same(found: dict[str, torch.Tensor], model: dict[str, torch.Tensor]) -> bool:
    return found.keys() == model.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in model.items()
    )
