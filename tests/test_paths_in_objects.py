"""Names of what stands in an object: those of honest files as they are, those of hostile ones bounded."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.faults.children import exit_code, in_child

import fastckpt
from fastckpt._contents.outline import name_tensors, read_outline, walk
from fastckpt._contents.paths import dotted, key_text
from fastckpt._contents.plain_values import read_plain_values

ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()


@given(st.text() | st.integers() | st.tuples(PLAIN) | st.tuples(PLAIN, PLAIN) | PLAIN)
def test_keys_are_called_what_python_prints(key: Any) -> None:
    assert key_text(key) == str(key)


@given(st.lists(st.text(max_size=30), max_size=20))
def test_paths_are_joined_by_dots(keys: list[str]) -> None:
    assert dotted(keys) == ".".join(keys)


def test_keys_that_are_too_much_are_short() -> None:
    shared: Any = ("x",) * 8
    for _ in range(100):
        shared = (shared,) * 8
    assert len(key_text(shared)) <= 300
    assert key_text("k" * 5000) == "k" * 299 + ELLIPSIS
    assert key_text(1 << 20_000) == "an integer of 20001 bits"
    assert key_text((1 << 20_000,)) == "(an integer of 20001 bits,)"
    assert key_text(tuple(range(10))) == "(0, 1, 2, 3, 4, 5, 6, 7, ...)"
    assert dotted(["a" * 200, "b" * 200]) == "a" * 200 + "." + "b" * 98 + ELLIPSIS


def test_names_that_were_shortened_lose_no_tensor(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    torch.save({"k" * 2000 + end: torch.ones(1) for end in "abc"}, path)
    short = "k" * 299 + ELLIPSIS
    assert list(name_tensors(read_outline(path).root)) == [short, f"{short}#2", f"{short}#3"]


def bounded(work: Any, nbytes: int = 300 << 20) -> None:
    """Run in a process that may take so much memory more than it has."""

    def limited() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + nbytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        work()

    assert exit_code(in_child(limited)) == 0


@pytest.mark.parametrize("kind", ["long keys", "deep", "long texts"])
def test_a_small_file_takes_little_memory(kind: str, tmp_path: Path) -> None:
    long = "k" * (1 << 20)
    root: Any
    if kind == "long keys":
        root = {long: {str(number): number for number in range(20_000)}}
    elif kind == "deep":
        root = [float(number) for number in range(10)] * 20_000
        for _ in range(400):
            root = {"key": root}
    else:
        root = {"texts": {str(number): long for number in range(20_000)}}
    path, other = tmp_path / "t.pt", tmp_path / "other.pt"
    torch.save({"root": root, "w": torch.ones(1)}, path)
    torch.save({"root": None, "w": torch.ones(1)}, other)
    outline = read_outline(path)
    bounded(lambda: [None for _ in walk(outline.root)])
    bounded(lambda: read_plain_values(outline.root))
    bounded(lambda: fastckpt.inspect(path))
    bounded(lambda: fastckpt.diff(path, other))


def test_long_texts_are_told_apart(tmp_path: Path) -> None:
    a, b = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({"w": torch.ones(1), "text": "x" * 5000, "same": "y" * 5000}, a)
    torch.save({"w": torch.ones(1), "text": "x" * 4999 + "y", "same": "y" * 5000}, b)
    (value,) = fastckpt.diff(a, b).files[0].values
    assert value.name == "text"
    assert value.a is not None
    assert value.a.startswith("'" + "x" * 60 + "'... (5,000 characters, SHA-256 ")
    assert value.a != value.b
