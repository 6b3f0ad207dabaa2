"""Writers that leave out what makes a save durable or atomic: a harness has to find each of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

import fastckpt
from fastckpt import _native


def in_place(obj: Any, path: Path, direct: bool) -> None:
    """Write over the old file, as torch.save does."""
    torch.save(obj, path)


def without_sync(obj: Any, path: Path, direct: bool) -> None:
    """Rename a file whose bytes may not be on the disk."""
    temporary = path.with_name(".fastckpt-0-0.tmp")
    torch.save(obj, temporary)
    os.replace(temporary, path)


def without_directory_sync(obj: Any, path: Path, direct: bool) -> None:
    """Return before the new name is on the disk."""
    temporary = path.with_name(".fastckpt-0-0.tmp")
    torch.save(obj, temporary)
    _sync(temporary)
    os.replace(temporary, path)


def without_file_sync(obj: Any, path: Path, direct: bool) -> None:
    """Make the name durable, but not the bytes behind it."""
    without_sync(obj, path, direct)
    _sync(path.parent)


def under_a_name_of_a_checkpoint(obj: Any, path: Path, direct: bool) -> None:
    """Write to a temporary name that somebody will take for a checkpoint."""
    temporary = path.with_name(f"temporary_{path.name}")
    fastckpt.save(obj, temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def each_file_for_itself(
    directory: Path, step: int, model: Any, optimizer: Any, meta: Any, rank: int
) -> None:
    """Save a step as files that know nothing of each other; each is durable and whole."""
    if rank == 0:
        fastckpt.save(model, directory / f"model_{step:06d}.pt")
        path = directory / f"meta_{step:06d}.json"
        with _native.Commit() as commit:
            commit.write_bytes(path, json.dumps(meta).encode())
            commit.publish([path])
    fastckpt.save(optimizer, directory / f"optim_{step:06d}_rank{rank}.pt")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
