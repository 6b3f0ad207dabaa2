"""What is averaged: the state dicts of the inputs, and whether they go together. Imports no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from fastckpt._archive.byte_order import refuse_foreign_byte_order
from fastckpt._contents.outline import read_outline, walk
from fastckpt._contents.state_dicts import find_state_dict
from fastckpt._named_step import model_file
from fastckpt._native import Archive, ArrayInfo, Opaque, TensorInfo, arithmetic
from fastckpt._steps.survey import survey_steps
from fastckpt.errors import ContentsError

# As many names as a message can hold.
_NAMES_SHOWN = 5


def input_file(path: str) -> str:
    """Return the file that holds the model: of a step, or of a directory that has one model only.

    Raises:
        ValueError: The directory has none, or several.
        FileNotFoundError, OSError: There is no such step, or no such directory.
    """
    file = model_file(path)
    if not os.path.isdir(file):
        return file
    steps = survey_steps(file)
    models = {
        number: step.model for number, step in sorted(steps.items()) if step.model is not None
    }
    if len(models) == 1:
        return os.path.join(file, *models.values())
    found = f"{len(models)} model files" if models else "no model_<step>.pt"
    example = f": name its steps, as {file}@{max(models)}" if models else ": name the files"
    raise ValueError(f"{file} is a directory with {found}{example}")


def read_state(path: str) -> tuple[Archive, dict[str, Any]]:
    outline = read_outline(path)
    refuse_foreign_byte_order(outline.archive, path)
    _, state = find_state_dict(outline.root, path=path)
    for name, value in state.items():
        if not isinstance(name, str):
            raise ContentsError(
                f"{path}: the state dict has the key {name!r}, and only strings are names",
                path=path,
            )
        if isinstance(value, Opaque) and not name.endswith("_extra_state"):
            raise ContentsError(
                f"{path}: {name} is not a plain tensor ({value.name}): sparse and quantized tensors "
                "and subclasses cannot be averaged",
                path=path,
            )
    return outline.archive, state


def tensors_of(state: dict[str, Any]) -> dict[str, TensorInfo]:
    return {name: value for name, value in state.items() if isinstance(value, TensorInfo)}


def extra_of(state: dict[str, Any], path: str) -> dict[str, Any]:
    """Return what is not a tensor, and has to be plain: it is written again."""
    extra = {name: value for name, value in state.items() if not isinstance(value, TensorInfo)}
    for name, value in extra.items():
        for _, leaf in walk(value):
            if isinstance(leaf, (ArrayInfo, Opaque, TensorInfo)):
                raise ContentsError(
                    f"{path}: the extra state {name} is not a plain value, and cannot be taken over",
                    path=path,
                )
    return extra


def checked_weights(weights: Sequence[float] | None, paths: Sequence[str]) -> list[float]:
    if weights is None:
        return [1.0] * len(paths)
    try:
        checked = [float(weight) for weight in weights]
    except (TypeError, ValueError):
        raise TypeError(f"weights must be a list of numbers, not {weights!r}") from None
    if len(checked) != len(paths):
        raise ValueError(
            f"there are {len(paths)} checkpoints and {len(checked)} weights: give one for each"
        )
    if not all(map(math.isfinite, checked)):
        raise ValueError(f"weights must be finite numbers, not {checked}")
    total = total_weight(checked)
    if total == 0.0 or not math.isfinite(total):
        raise ValueError(f"the weights {checked} add up to {total}: a mean cannot be divided by it")
    return checked


def total_weight(weights: Sequence[float]) -> float:
    """Add weights one after the other, as the core does: Python's own sum may be more exact."""
    total = 0.0
    for weight in weights:
        total += weight
    return total


def refuse_opaque(tensors: dict[str, TensorInfo], path: str) -> None:
    for name, info in tensors.items():
        if arithmetic(info.dtype) == "opaque":
            raise ContentsError(f"{path}: {name} is {info.dtype}, which has no mean", path=path)


def refuse_differences(paths: Sequence[str], states: Sequence[dict[str, Any]]) -> None:
    first = states[0]
    for path, state in zip(paths[1:], states[1:], strict=True):
        shared = [(name, first[name], state[name]) for name in first if name in state]
        pairs = [
            (name, a, b)
            for name, a, b in shared
            if isinstance(a, TensorInfo) and isinstance(b, TensorInfo)
        ]
        problems = (
            _named("{} missing", [name for name in first if name not in state], "key"),
            _named("{} too many", [name for name in state if name not in first], "key"),
            _named(
                "{} of another shape",
                [
                    f"{name}: {list(a.shape)} and {list(b.shape)}"
                    for name, a, b in pairs
                    if a.shape != b.shape
                ],
                "tensor",
            ),
            _named(
                "{} of another dtype",
                [f"{name}: {a.dtype} and {b.dtype}" for name, a, b in pairs if a.dtype != b.dtype],
                "tensor",
            ),
            _named(
                "{} not a tensor in both",
                [
                    name
                    for name, a, b in shared
                    if isinstance(a, TensorInfo) is not isinstance(b, TensorInfo)
                ],
                "value",
            ),
        )
        found = [problem for problem in problems if problem]
        if found:
            raise ValueError(f"{path} does not go with {paths[0]}: {'; '.join(found)}")


def _named(words: str, names: Sequence[str], noun: str) -> str:
    """Say how many there are, and name the first."""
    if not names:
        return ""
    count = f"{len(names)} {noun}" + ("" if len(names) == 1 else "s")
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{words.format(count)} ({shown}" + (f" and {more} more)" if more > 0 else ")")
