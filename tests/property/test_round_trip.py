"""What one library writes, each reads: with equal bits, structure and sharing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from tests.property.recipes import Recipe, build, identities, recipes
from tests.specimens import assert_same, quiet, torch_taking_numbers

import fastckpt

SAVERS: list[Callable[[Any, Path], Any]] = [torch.save, fastckpt.save]


def ways_to_load(path: Path, *, weights_only: bool) -> Iterator[partial[Any]]:
    for mmap in (False, True):
        yield partial(torch.load, path, weights_only=weights_only, mmap=mmap)
        for verify in (True, False):
            yield partial(fastckpt.load, path, weights_only=weights_only, mmap=mmap, verify=verify)
    for threads in (1, 2, 3, 8):
        yield partial(fastckpt.load, path, weights_only=weights_only, threads=threads)


def is_safe(path: Path) -> bool:
    """Whether torch's restricted unpickler takes the file; what it refuses, we refuse."""
    try:
        torch.load(path, weights_only=True)
    except Exception:
        with pytest.raises(fastckpt.UnsafePickleError):
            fastckpt.load(path)
        return False
    return True


@settings(derandomize=True)
@given(recipes())
def test_every_reader_reads_every_writer(recipe: Recipe) -> None:
    with quiet(), torch_taking_numbers(), tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "model.pt")
        obj = build(recipe)
        for save in SAVERS:
            save(obj, path)
            for weights_only in (True, False):
                if weights_only and not is_safe(path):
                    continue
                for load in ways_to_load(path, weights_only=weights_only):
                    found = load()
                    assert_same(found, obj)
                    assert identities(found) == identities(obj), load
