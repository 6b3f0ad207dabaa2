"""Refuse what cannot be averaged, or is not what is averaged, and name it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastckpt._bare_model import bare_name
from fastckpt._wording import some_names


def check_unchanged(
    averages: Mapping[str, Tensor], parameters: Mapping[str, Tensor], model: nn.Module
) -> None:
    """Raise RuntimeError where the model's trainable parameters are not those that are averaged."""
    if parameters.keys() == averages.keys():
        return
    names = {bare_name(name) for name, _ in model.named_parameters()}
    gone = averages.keys() - parameters.keys()
    changes = {
        "frozen": gone & names,
        "removed": gone - names,
        "added or made trainable": parameters.keys() - averages.keys(),
    }
    words = "; ".join(f"{kind}: {some_names(found)}" for kind, found in changes.items() if found)
    raise RuntimeError(
        "the model's trainable parameters are not those that are averaged "
        f"({words}): undo that, or call follow_model() to average the present ones"
    )


def check_shapes(kind: str, averages: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Raise RuntimeError where the model's names or shapes are not those of the averages."""
    if averages.keys() != values.keys():
        changed = averages.keys() ^ values.keys()
        raise RuntimeError(
            f"the model's {kind}s are not those that are averaged (added or removed: "
            f"{some_names(changed)}): call follow_model() to average the present ones"
        )
    for name, value in values.items():
        if value.shape != averages[name].shape:
            raise RuntimeError(
                f"{kind} {name!r} has the shape {tuple(value.shape)}, and its average "
                f"{tuple(averages[name].shape)}: call follow_model() to begin a new average"
            )


def check_same(kind: str, averages: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a state does not have the names, shapes and dtypes of the averages.

    A narrower floating dtype fits if the average's own dtype can hold each of its values.
    """
    missing, unknown = averages.keys() - state.keys(), state.keys() - averages.keys()
    if missing or unknown:
        words = [f"it lacks {some_names(missing)}"] if missing else []
        words += [f"it has {some_names(unknown)}, which is not averaged here"] if unknown else []
        raise ValueError(f"the state does not have the same {kind}s: {'; '.join(words)}")
    for name, average in averages.items():
        found = state[name]
        is_exact = found.dtype == average.dtype or _is_widened(found.dtype, average.dtype)
        if found.shape != average.shape or not is_exact:
            raise ValueError(
                f"the average of {kind} {name!r} is {found.dtype} {tuple(found.shape)} in the state, "
                f"expected {average.dtype} {tuple(average.shape)}"
            )
        if found.device.type == "meta":
            raise ValueError(
                f"the average of {kind} {name!r} has no values: it is on the meta device"
            )


def _is_widened(found: torch.dtype, expected: torch.dtype) -> bool:
    """Whether a conversion keeps every value: float32 and float64 hold those of all narrower dtypes."""
    return (
        found.is_floating_point
        and expected in (torch.float32, torch.float64)
        and found.itemsize < expected.itemsize
    )


def refuse_meta(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a tensor has no values."""
    on_meta = [name for name, value in tensors.items() if value.device.type == "meta"]
    if on_meta:
        raise ValueError(
            f"on the meta device there are no values to average: {some_names(on_meta)}; "
            "make the EMAModel after the model has its weights"
        )
