"""Patch checkpoints of older versions and of wrapped models, so that the GPT of today takes them.

Each patch is logged by name. A state dict that was patched is a plain dict.
"""

from collections.abc import Mapping
from typing import Any

import torch

from fastckpt.errors import FormatError

from .log import log0

# Config keys that were added later -> the value with which older models were trained.
_CONFIG_DEFAULTS = {
    "window_pattern": "L",  # full context in every layer
}

# Parameters of shape (n_layer,) that were added later -> the value with which they change nothing.
_PARAMETER_DEFAULTS = {
    "resid_lambdas": 1.0,
    "x0_lambdas": 0.0,
}

# The prefix of torch.compile. Parts of a model can be compiled, so it is removed key by key.
_COMPILE_PREFIX = "_orig_mod."
# The prefix of DistributedDataParallel. A model may have a part of this name, so the prefix is removed only
# if every key has it.
_DDP_PREFIX = "module."

# Devices on which nanochat computes in float32.
_FLOAT32_DEVICE_TYPES = frozenset({"cpu", "mps"})


def patch_config(model_config: dict[str, Any]) -> None:
    """Add, in place, the keys that a config of an older version of nanochat lacks."""
    for key, default in _CONFIG_DEFAULTS.items():
        if key not in model_config:
            model_config[key] = default
            log0(f"Patching missing {key} in model config to {default!r}")


def patch_parameters(model_data: dict[str, Any], n_layer: int, device: torch.device) -> None:
    """Add, in place, the parameters that a model of an older version of nanochat lacks.

    They are put on `device`, where the others are: nanochat leaves them on the CPU, and the model
    then fails in its first step on an accelerator.
    """
    for name, default in _PARAMETER_DEFAULTS.items():
        if name not in model_data:
            model_data[name] = torch.full((n_layer,), default, device=device)
            log0(f"Patching missing {name} in model data to {default}")


def widen_bfloat16(model_data: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Copy bfloat16 tensors to float32 for devices on which nanochat computes in float32."""
    if device.type not in _FLOAT32_DEVICE_TYPES:
        return dict(model_data)
    widened = {
        name: value.float() if _is_bfloat16(value) else value for name, value in model_data.items()
    }
    count = sum(map(_is_bfloat16, model_data.values()))
    if count:
        log0(
            f"Converting {count} tensors of the model data from bfloat16 to float32 for {device.type}"
        )
    return widened


def _is_bfloat16(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16


def strip_wrapper_prefixes(model_data: dict[str, Any]) -> dict[str, Any]:
    """Remove the prefixes of torch.compile and DistributedDataParallel from the keys, however nested.

    Raises:
        FormatError: Two keys are equal without their prefixes.
    """
    names = {key: key for key in model_data}
    wrapped = True
    while wrapped:
        wrapped = _strip(names, _COMPILE_PREFIX)
        if names and all(name.startswith(_DDP_PREFIX) for name in names.values()):
            wrapped |= _strip(names, _DDP_PREFIX)
    keys: dict[str, str] = {}
    for key, name in names.items():
        if (first := keys.setdefault(name, key)) != key:
            raise FormatError(
                f"the model has {first!r} and {key!r}, which both mean the parameter {name!r}"
            )
    return {name: model_data[key] for key, name in names.items()}


def _strip(names: dict[str, str], prefix: str) -> bool:
    """Remove a prefix from the values of `names` once; return whether one had it."""
    prefixed = [key for key, name in names.items() if name.startswith(prefix)]
    for key in prefixed:
        names[key] = names[key].removeprefix(prefix)
    if prefixed:
        log0(f"Removing prefix '{prefix}' from {len(prefixed)} keys of the model data")
    return bool(prefixed)
