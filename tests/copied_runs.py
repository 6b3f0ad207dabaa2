"""Runs of two ranks to be copied, and what is looked at in the copies."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch

import fastckpt
from fastckpt._copy.copy import Outcome
from fastckpt._steps import save_id as save_id_module

RANKS = 2
FILES_OF_A_STEP = 5


def save_step(
    directory: Path, step: int, save_id: int, ranks: tuple[int, ...] = (1, 0), numel: int = 8
) -> None:
    """Save a step of two ranks; those that are left out never come to it."""
    with save_id_module.agreed(save_id, RANKS):
        for rank in ranks:
            weights = {"w": torch.full((numel,), float(save_id))}
            state = {"moment": torch.full((numel,), float(save_id + rank))}
            fastckpt.save_checkpoint(directory, step, weights, state, {"step": step}, rank=rank)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


def of_step(directory: Path, step: int) -> set[str]:
    return {name for name in names(directory) if f"_{step:06d}" in name}


def sums(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()
    }


def whole(directory: Path, step: int) -> float:
    """Load a step, which has to be whole; return the save id that its weights say."""
    for rank in range(RANKS):
        loaded = fastckpt.load_checkpoint(
            directory, step, "cpu", load_optimizer=True, rank=rank, world_size=RANKS
        )
        assert loaded[1] is not None
        assert float(loaded[1]["moment"][0]) == float(loaded[0]["w"][0]) + rank
    return float(loaded[0]["w"][0])


def flip(path: Path, position: int | None = None, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    if position is None:
        # In the payload of the first tensor, which lies behind a header with padding.
        position = data.index(b"FB", data.index(b"data/0FB")) + 80
    data[position] ^= 1 << bit
    path.write_bytes(data)


def outcomes(report: fastckpt.CopyReport) -> dict[str, Outcome]:
    return {each.name: each.outcome for each in report.checkpoints}


def make_runs(directory: Path) -> Path:
    """Save steps 1, 2 and 3 of two ranks."""
    for step in (1, 2, 3):
        save_step(directory, step, 10 + step)
    return directory


def managed(directory: Path, *steps: int, best: int | None = None) -> None:
    directory.mkdir(exist_ok=True)
    for step in steps:
        path = directory / f"checkpoint_epoch0001_step{step:08d}.pt"
        torch.save({"global_step": step, "model_state_dict": {"w": torch.ones(100) * step}}, path)
        torch.save({"rank": 1}, path.with_name(f"{path.stem}_rank1.pt"))
    if best is not None:
        (directory / "best_model.pt").unlink(missing_ok=True)
        path = directory / f"checkpoint_epoch0001_step{best:08d}.pt"
        os.link(path, directory / "best_model.pt")


# The command as a program: it says when it begins, and that it has done without torch.
CHILD = (
    "import sys\n"
    "from fastckpt.cli.app import run\n"
    "import fastckpt._copy.copy\n"
    "print('go', flush=True)\n"
    "code = run(sys.argv[1:])\n"
    "assert 'torch' not in sys.modules\n"
    "sys.exit(code)\n"
)
