"""The names of the parameters of an optimizer's groups, by which its state is told apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fastckpt._bare_model import PARALLEL, bare_name

#: For each group the names of its parameters; None for one that has no name.
Names = list[list[str | None]]

# torch's own key in a group, where an optimizer was made with `named_parameters()`.
_TORCHS_KEY = "param_names"


def names_of_optimizer(optimizer: Any, names: Mapping[Any, str]) -> Names | None:
    """Return the names that a model has for the parameters of an optimizer; None if it has none of them.

    Args:
        optimizer: Has param_groups.
        names: The names of the model's parameters, by parameter.
    """
    groups = getattr(optimizer, "param_groups", None)
    if not isinstance(groups, list):
        return None
    found = [[names.get(parameter) for parameter in group["params"]] for group in groups]
    return found if any(name is not None for group in found for name in group) else None


def names_in_groups(groups: Iterable[Mapping[str, Any]]) -> Names | None:
    """Return the names that torch keeps in the groups themselves; None unless all groups have them."""
    found = [group.get(_TORCHS_KEY) for group in groups]
    return found if found and all(isinstance(names, list) for names in found) else None  # type: ignore[return-value]


def bare_names(names: Names) -> Names:
    """Return the names without what torch.compile puts into them."""
    return [[None if one is None else bare_name(one) for one in group] for group in names]


def variants(names: Names) -> Iterator[Names]:
    """Yield the names that a bare model has, then those of what data parallelism may have been around."""
    bare = bare_names(names)
    yield bare
    while True:
        known = [one for group in bare for one in group if one is not None]
        if not known or not all(one.startswith(PARALLEL) for one in known):
            return
        bare = [
            [None if one is None else one.removeprefix(PARALLEL) for one in group] for group in bare
        ]
        yield bare
