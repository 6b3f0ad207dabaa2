"""Saves that say in each of their parts which of them they are, so that no mixture goes unseen."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastckpt
from fastckpt._archive.pickling import pickle_object
from fastckpt._native import Commit


class NumberedSaves:
    """Saves of one kind to one directory, and what is found there.

    Args:
        directory: Where they go; it must exist.
        way: "file", "unsynced file", "buffered file" (durable, but through the page cache, so that
            the disk sees nothing before fsync), "new step", or "same step" (over the one before).
        numel: Size of the model.
        shard_numel: Size of the optimizer's state, for steps; by default that of the model.
    """

    def __init__(
        self, directory: Path, way: str, *, numel: int, shard_numel: int | None = None
    ) -> None:
        self.directory = directory
        self._way = way
        self._numel = numel
        self._shard_numel = numel if shard_numel is None else shard_numel

    @property
    def is_step(self) -> bool:
        return self._way.endswith("step")

    def step_of(self, number: int) -> int:
        """Return the step as which a save goes."""
        return number if self._way == "new step" else 0

    def save(self, number: int, progress: Callable[[int, int], None] | None = None) -> None:
        """Save this number; a step does not tell its progress."""
        path = self.directory / "model.pt"
        model = _state(number, self._numel)
        if self._way == "buffered file":
            pickled = pickle_object(model, 2)
            with Commit(sync=True) as commit:
                commit.write_archive(
                    path, pickled.data, pickled.storages, direct=False, progress=progress
                )
                commit.publish([path])
        elif not self.is_step:
            fastckpt.save(model, path, sync=self._way == "file", progress=progress)
        else:
            shard, meta = _state(number, self._shard_numel), {"n": number}
            fastckpt.save_checkpoint(self.directory, self.step_of(number), model, shard, meta)

    def find(self) -> int:
        """Return the number of what is found as the newest, every byte of it checked."""
        if not self.is_step:
            path = self.directory / "model.pt"
            assert fastckpt.verify(path).ok
            return _number_of(fastckpt.load(path), self._numel)
        step = fastckpt.find_last_good_step(self.directory, verify="full")
        model, shard, meta = fastckpt.load_checkpoint(
            self.directory, step, "cpu", load_optimizer=True
        )
        number = _number_of(model, self._numel)
        found = {_number_of(shard, self._shard_numel), meta["n"]}
        assert found == {number}, f"of several saves: {found} beside {number}"
        return number


def _state(number: int, numel: int) -> dict[str, Any]:
    # By numpy, which starts no threads for it.
    tensor = torch.from_numpy(np.full(numel, number, np.float32))
    # In digits: numbers of as many digits give files of one size.
    return {"w": tensor, "n": str(number)}


def _number_of(state: dict[str, Any], numel: int) -> int:
    number = int(state["n"])
    assert state["w"].shape == (numel,)
    assert (state["w"].numpy() == number).all(), f"not the tensor of {number}"
    return number


def digests(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a directory."""
    return {
        name: hashlib.sha256((directory / name).read_bytes()).hexdigest()
        for name in os.listdir(directory)
    }


def hidden_names(directory: Path) -> list[str]:
    """Return what a save leaves only when it cannot finish: temporary files, and files kept."""
    return sorted(name for name in os.listdir(directory) if name.startswith("."))
