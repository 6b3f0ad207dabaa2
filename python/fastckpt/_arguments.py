"""Arguments of public functions, checked where they come in: an error says what is expected."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable

_Path = str | os.PathLike[str]


def one_path(name: str, value: object) -> str:
    """Return a path as a string.

    Raises:
        TypeError: It is not a path, or there are several.

    Example:
        >>> one_path("path", 5)
        Traceback (most recent call last):
        TypeError: path must be a path (a string or os.PathLike), not 5
    """
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if isinstance(value, (list, tuple, set)):
        raise TypeError(f"{name} must be one path, not a {type(value).__name__} of them")
    raise TypeError(f"{name} must be a path (a string or os.PathLike), not {value!r}")


def several_paths(name: str, value: object) -> list[str]:
    """Return paths as strings.

    Raises:
        TypeError: It is one path, or no list of paths at all.
    """
    if isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a list of paths, not one path: [{os.fspath(value)!r}]")
    return _listed(name, value, "a list of paths")


def one_or_several_paths(name: str, value: object) -> list[str]:
    """Return one path, or several, as a list of strings.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(value, (str, os.PathLike)):
        return [os.fspath(value)]
    return _listed(name, value, "a path or a list of paths")


def _listed(name: str, value: object, expected: str) -> list[str]:
    if not isinstance(value, Iterable) or isinstance(value, (bytes, bytearray)):
        raise TypeError(f"{name} must be {expected}, not {value!r}")
    return [one_path(f"{name}[{number}]", each) for number, each in enumerate(value)]


def output_path(output: _Path | None, to: _Path | None, example: str) -> str:
    """Return where to write, which goes by two names.

    Raises:
        TypeError: It is missing, or there are two.
    """
    if (output is None) is (to is None):
        problem = "output is missing" if output is None else "output and to are the same argument"
        raise TypeError(f"{problem}: name the destination once, as in {example}")
    return one_path("output", to if output is None else output)


def checked_threads(threads: int | None) -> int | None:
    """Return how many threads were asked for, None for as many as suit.

    Raises:
        ValueError: Less than one.
        TypeError: Not a whole number.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int)):
        raise TypeError(f"threads must be a whole number, or None to choose, not {threads!r}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    return threads


def checked_steps(steps: object) -> set[int]:
    """Return which steps were asked for.

    Raises:
        TypeError: Not a list of whole numbers.
    """
    if not isinstance(steps, Iterable) or isinstance(steps, (str, bytes)):
        raise TypeError(f"steps must be a list of whole numbers, not {steps!r}")
    checked = {*steps}
    for step in checked:
        if isinstance(step, bool) or not hasattr(type(step), "__index__"):
            raise TypeError(f"steps must be whole numbers, not {step!r}")
    return {operator.index(step) for step in checked}
