"""A model without what is around it: torch.compile, DistributedDataParallel, DataParallel."""

from __future__ import annotations

from collections.abc import Container

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

# torch.compile puts a module, or a part of one, into another under this name.
_COMPILED = "_orig_mod"


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside torch.compile, DistributedDataParallel and DataParallel."""
    while True:
        compiled = model._modules.get(_COMPILED)
        if compiled is not None:
            model = compiled
        elif isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        else:
            return model


def bare_name(name: str) -> str:
    """Take torch.compile's part out of a name; parts of a model can be compiled."""
    if _COMPILED not in name:
        return name
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def trainable_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the trainable parameters; tied ones once."""
    return {
        bare_name(name): parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def parameters_named(model: nn.Module, names: Container[str]) -> dict[str, Tensor]:
    """Return the parameters with these names."""
    parameters = ((bare_name(name), parameter) for name, parameter in model.named_parameters())
    return {name: parameter.detach() for name, parameter in parameters if name in names}


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that are in the model's state dict; shared ones once."""
    transient = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    return {
        bare_name(name): buffer.detach()
        for name, buffer in model.named_buffers()
        if name not in transient
    }
