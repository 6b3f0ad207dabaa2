"""Damaged files, and what may come of reading one: a typed error, or exactly what was saved."""

from __future__ import annotations

import collections
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tests.specimens import assert_same, quiet

import fastckpt


def small_weights() -> Any:
    """Make a state dict of about 1 KB, with a view, an empty tensor and plain values."""
    base = torch.arange(40.0)
    return {
        "layer.weight": base.view(5, 8),
        "layer.bias": torch.linspace(-1, 1, 9, dtype=torch.bfloat16),
        "tied": base[8:24:2],
        "empty": torch.empty(0),
        "step": 7,
    }


def small_optimizer() -> Any:
    """Make the state of an AdamW that has taken a step, nested as optimizers nest theirs."""
    parameters = [torch.nn.Parameter(torch.linspace(0, 1, n)) for n in (6, 3)]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


OBJECTS: dict[str, Callable[[], Any]] = {"weights": small_weights, "optimizer": small_optimizer}
SAVERS: dict[str, Callable[[Any, Any], Any]] = {"torch": torch.save, "fastckpt": fastckpt.save}


def archive_of(kind: str, writer: str) -> tuple[Any, bytes]:
    """Return an object and the file that a library writes of it."""
    obj, file = OBJECTS[kind](), io.BytesIO()
    SAVERS[writer](obj, file)
    return obj, file.getvalue()


@contextmanager
def fast_directory() -> Iterator[Path]:
    """A directory in memory where there is one: tens of thousands of small files go there."""
    shm = "/dev/shm"
    parent = shm if os.path.isdir(shm) and os.access(shm, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        yield Path(directory)


def outcome(path: Path | io.BytesIO, expected: Any, **options: Any) -> str:
    """Load; return the name of the error, or "same" where the object is what was saved.

    A panic is no `Exception`, and goes through; so does every error without a type of ours.
    """
    try:
        found = fastckpt.load(path, **options)
    except fastckpt.CheckpointError as error:
        refusal = error
    else:
        assert_same(found, expected)
        return "same"
    if isinstance(path, Path):
        assert refusal.path == str(path), repr(refusal)
        assert str(path) in str(refusal)
    return type(refusal).__name__


class Tally:
    """Counts what came of many damages: verified and loaded, plainly and mapped."""

    def __init__(self, path: Path, expected: Any) -> None:
        self._path = path
        self._expected = expected
        self.counts: collections.Counter[str] = collections.Counter()
        self.unnoticed: list[Any] = []

    def look(self, where: Any) -> None:
        """Verify and load the file as it is now."""
        if fastckpt.verify(self._path).ok:
            self.unnoticed.append(where)
        self.counts["damages"] += 1
        for mmap in (False, True):
            result = outcome(self._path, self._expected, mmap=mmap)
            self.counts[f"{'mmap' if mmap else 'load'}: {result}"] += 1

    def close(self) -> None:
        print(dict(sorted(self.counts.items())))
        assert self.unnoticed == []


@contextmanager
def damaged_copies(kind: str, writer: str) -> Iterator[tuple[bytes, Path, Tally]]:
    """A file to damage and the tally of what comes of it, which is judged at the end."""
    with quiet(), fast_directory() as directory:
        obj, data = archive_of(kind, writer)
        path = directory / "model.pt"
        path.write_bytes(data)
        tally = Tally(path, obj)
        assert fastckpt.verify(path).ok
        yield data, path, tally
        tally.close()
