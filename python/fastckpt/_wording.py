"""Words that messages have in common."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable

_NAMES_SHOWN = 5
# Enough for the names of tensors; one from a hostile file may be as long as the file.
_SHORTENED = reprlib.Repr()
_SHORTENED.maxstring = 200


def class_name(kind: type) -> str:
    """Return where a class is defined, and its name, e.g. `torch.optim.adamw.AdamW`."""
    return f"{kind.__module__}.{kind.__qualname__}"


def some_names(names: Iterable[object]) -> str:
    """Name the first few: there may be thousands."""
    listed = sorted(names, key=str)
    shown = ", ".join(_SHORTENED.repr(name) for name in listed[:_NAMES_SHOWN])
    hidden = len(listed) - _NAMES_SHOWN
    return f"{shown} and {hidden} more" if hidden > 0 else shown
