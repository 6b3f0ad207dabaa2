"""Where in a checkpoint the model's state dict is.

Works on outlines as on loaded objects: a tensor is a `TensorInfo`, an `Opaque` that stands for a tensor
of a rarer kind (sparse, quantized, a subclass), or a `torch.Tensor`. Imports no torch.
"""

from __future__ import annotations

import reprlib
import sys
from typing import Any

from fastckpt._native import ArrayInfo, Opaque, TensorInfo
from fastckpt.errors import ContentsError

#: Keys under which training scripts put the model, in the order in which they are looked for.
MODEL_KEYS = ("model_state_dict", "model_state", "state_dict", "model")
# What torch.optim.Optimizer.state_dict returns.
_OPTIMIZER_KEYS = {"state", "param_groups"}
# torch.nn.Module.get_extra_state: what a module adds to its state dict may be anything at all.
_EXTRA_STATE = "_extra_state"
# Enough to see what a file is.
_KEYS_NAMED = 8


def find_state_dict(
    root: Any, *, path: str | None = None
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Find the model's state dict in a saved object.

    That is the object itself if all its values are tensors, else what the first of `MODEL_KEYS`
    holds that is a dict of tensors.

    Args:
        root: What a file holds: `Outline.root`, or what `load` returned.
        path: The file, for the message.

    Returns:
        The keys that lead to it, empty where it is the object itself, and the dict.

    Raises:
        ContentsError: It holds no state dict; the message says what it holds.

    Example:
        >>> keys, state = find_state_dict({"step": 3, "model": {"w": torch.ones(2)}})
        >>> keys
        ('model',)
    """
    if is_state_dict(root):
        return (), root
    if isinstance(root, dict):
        for key in MODEL_KEYS:
            if is_state_dict(root.get(key)):
                return (key,), root[key]
    where = "" if path is None else f" in {path}"
    raise ContentsError(
        f"no state dict of a model{where}: it holds {describe_root(root)}; expected a dict of "
        f"tensors, itself or under one of the keys {', '.join(MODEL_KEYS)}",
        path=path,
    )


def is_state_dict(value: Any) -> bool:
    """Whether this is a dict of tensors, with one at least. Extra state may be anything."""
    if not isinstance(value, dict):
        return False
    has_tensor = False
    for key, part in value.items():
        if is_tensor(part):
            has_tensor = True
        elif not (isinstance(key, str) and key.endswith(_EXTRA_STATE)):
            return False
    return has_tensor


def is_optimizer_state(value: Any) -> bool:
    """Whether this is what an optimizer's state_dict() returns."""
    return isinstance(value, dict) and value.keys() >= _OPTIMIZER_KEYS


def is_tensor(value: Any) -> bool:
    """Whether this is a tensor, or stands for one."""
    if isinstance(value, TensorInfo):
        return True
    if isinstance(value, Opaque):
        module, _, function = value.name.rpartition(".")
        # torch._utils._rebuild_sparse_tensor, torch._tensor._rebuild_from_type_v2 and their like.
        return module.startswith("torch.") and function.startswith("_rebuild_")
    # If torch is not in the process, tensors are not either.
    tensor_type = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor_type is not None and isinstance(value, tensor_type)


def describe_root(root: Any) -> str:
    """Say what a saved object is, in a few words."""
    if is_optimizer_state(root):
        return "the state of an optimizer"
    if is_tensor(root):
        return "a tensor"
    if isinstance(root, ArrayInfo):
        return "an array of numpy"
    if isinstance(root, Opaque):
        return f"an object of {root.name}"
    if not isinstance(root, dict):
        return f"an object of type {type(root).__name__}"
    if not root:
        return "an empty dict"
    # A key may be as long as the file.
    keys = [reprlib.repr(key) for key in list(root)[:_KEYS_NAMED]]
    hidden = len(root) - len(keys)
    return f"a dict with the keys {', '.join(keys)}" + (f" and {hidden} more" if hidden else "")
