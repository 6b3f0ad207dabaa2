"""A model without what is around it: torch.compile, DistributedDataParallel, DataParallel."""

from __future__ import annotations

from collections.abc import Container, Iterable

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

# torch.compile puts a module, or a part of one, into another under this name.
_COMPILED = "_orig_mod"
# DistributedDataParallel and DataParallel hold the model under this one.
PARALLEL = "module."


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


def bare_names(names: Iterable[str], present: Container[str]) -> dict[str, str]:
    """Return the bare model's name for each of some names that may have been given in a wrapper.

    torch.compile's part is taken out wherever it is. `module.` is taken off, as often as it takes, where all
    names begin with it and the bare model does not have all of them as they are: a model may have a part of
    that name.

    Args:
        names: Names of parameters, buffers or both.
        present: The names that the bare model has for them.
    """
    bare = {name: bare_name(name) for name in names}
    while (
        bare
        and all(name.startswith(PARALLEL) for name in bare.values())
        and not all(name in present for name in bare.values())
    ):
        bare = {name: stripped.removeprefix(PARALLEL) for name, stripped in bare.items()}
    return bare


def wrapped_names(model: nn.Module) -> dict[str, str]:
    """Return the name that each parameter has in a model with its wrappers, by its name in the bare one."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        bare_name(name): names.get(id(parameter), name)
        for name, parameter in unwrap(model).named_parameters()
    }


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
