"""What the harnesses of hostile text share: how much memory a case takes, what a refusal has to be."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import fastckpt

# What parsing takes: a list of a million empty lists, in two bytes each, is the worst of Python's json.
_MEMORY_PER_BYTE = 128
_FIXED_NBYTES = 256 << 10
# What a hostile file has in it does not fill the log.
_LONGEST_MESSAGE = 1000


def described(number: int, seed: int, error: Exception, data: bytes) -> str:
    """Return all that is needed to repeat a case that failed."""
    shown = data if len(data) < 2000 else data[:2000] + b"..."
    return f"case {number} of seed {seed}: {type(error).__name__}: {error}: {shown!r}"


def measured(judge: Callable[[bytes, Path], str], data: bytes, path: Path) -> str:
    """Run a judge; return what it says. Its memory has to be in proportion to the bytes."""
    tracemalloc.start()
    try:
        outcome = judge(data, path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= _FIXED_NBYTES + _MEMORY_PER_BYTE * len(data), f"{peak} bytes for {len(data)}"
    return outcome


def look_at_refusal(error: fastckpt.FormatError, path: Path) -> str:
    """Look at a refusal; return what it is called in a tally."""
    assert error.path == str(path)
    assert str(path) in str(error)
    assert len(str(error)) < _LONGEST_MESSAGE
    return "refused"
