"""Names for what stands in an object: the keys that lead there, dotted, and never long. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# A file of a megabyte can have a key of a megabyte, above a hundred thousand values. The names of real
# models have some 150 letters at most.
_NAME_LENGTH_MAX = 300
# Parts of a tuple that is a key, and tuples in it: they may share what they are made of without end.
_TUPLE_ITEMS_MAX = 8
_TUPLE_DEPTH_MAX = 3
#: Keys of a path that are looked at; in the longest name there is one letter for each, or none.
KEYS_MAX = _NAME_LENGTH_MAX + 1
_KEYS_TRIED = (8, 64, KEYS_MAX)
#: Python refuses to print integers of more digits than 4,300, and nobody reads those of more than this.
INT_BITS_MAX = 1024


def key_text(key: Any) -> str:
    """Return what a key of a dict is called in a name."""
    return _short(key if isinstance(key, str) else _text(key, _TUPLE_DEPTH_MAX), _NAME_LENGTH_MAX)


def dotted(keys: Sequence[str]) -> str:
    """Return the name of a path of keys, shortened where it is too long for anybody."""
    # Keys may be long, or many, for each of very many names.
    for count in _KEYS_TRIED:
        name = ".".join(keys[:count])
        if len(name) > _NAME_LENGTH_MAX or count >= len(keys):
            break
    return _short(name, _NAME_LENGTH_MAX)


def below(name: str, key: Any) -> str:
    """Return the name of what stands under a key of something that has a name."""
    return _short(f"{name}.{key_text(key)}" if name else key_text(key), _NAME_LENGTH_MAX)


def int_text(number: int) -> str:
    """Return an integer in digits, or its length."""
    bits = number.bit_length()
    return str(number) if bits <= INT_BITS_MAX else f"an integer of {bits} bits"


def _text(key: Any, depth: int) -> str:
    if isinstance(key, int) and not isinstance(key, bool):
        return int_text(key)
    if isinstance(key, tuple):
        if depth == 0:
            return "(...)"
        items = [_text(item, depth - 1) for item in key[:_TUPLE_ITEMS_MAX]]
        if len(key) > _TUPLE_ITEMS_MAX:
            items.append("...")
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    if isinstance(key, (str, bytes)):
        return repr(key[:_NAME_LENGTH_MAX])
    # None, bool, float; what is not Python's own has a name that is short.
    return str(key)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"
