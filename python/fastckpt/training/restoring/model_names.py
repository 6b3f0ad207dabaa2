"""Load a model's state whatever was around it when it was saved, and whatever is around it now."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from fastckpt._bare_model import PARALLEL, bare_name, bare_names, unwrap


def state_for(model: nn.Module, state: Mapping[str, Any]) -> tuple[nn.Module, Mapping[str, Any]]:
    """Return the model that a state is to be loaded into, and the state under that model's names.

    torch.compile, DistributedDataParallel and DataParallel put their own words into the names. Where
    saved and present names differ by these alone, the state fits the model inside. All other
    differences are left as they are.

    Args:
        model: The model.
        state: Names to tensors. It is not changed.
    """
    if _is_wrapped(model, state):
        inner = unwrap(model)
        renamed = _named_as_in(inner, state)
        if renamed is not None:
            return inner, renamed
    return model, state


def _is_wrapped(model: nn.Module, state: Mapping[str, Any]) -> bool:
    """Whether names may differ by wrappers; without any, a model's own names are not asked for."""
    return (
        unwrap(model) is not model
        or any(bare_name(name) != name for name, _ in model.named_modules())
        or any(bare_name(name) != name for name in state)
        or _are_parallel(state)
    )


def _named_as_in(model: nn.Module, state: Mapping[str, Any]) -> OrderedDict[str, Any] | None:
    """Return the state under the names that a bare model has for it; None if it is another model's."""
    present = {bare_name(name): name for name in model.state_dict()}
    saved = bare_names(state, present)
    strips = max((bare_name(name).count(".") - saved[name].count(".") for name in state), default=0)
    if len(set(saved.values())) != len(saved) or set(saved.values()) != present.keys():
        return None
    renamed = OrderedDict((present[saved[name]], value) for name, value in state.items())
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        # The versions of modules, by which these read what older ones have saved.
        modules = {bare_name(name): name for name, _ in model.named_modules()}
        renamed_metadata: OrderedDict[str, Any] = OrderedDict()
        for name, value in metadata.items():
            bare = bare_name(name)
            for _ in range(strips):
                bare = _without_first(bare)
            renamed_metadata[modules.get(bare, bare)] = value
        renamed._metadata = renamed_metadata  # type: ignore[attr-defined]
    return renamed


def _are_parallel(names: Iterable[str]) -> bool:
    names = list(names)
    return bool(names) and all(name.startswith(PARALLEL) for name in names)


def _without_first(name: str) -> str:
    """Take the first part off a name: `module.wte.weight` is `wte.weight`, `module` is the model itself."""
    return name.partition(".")[2]
