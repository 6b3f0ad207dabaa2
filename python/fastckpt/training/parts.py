"""The objects of a training run whose state a checkpoint holds: one of a kind, a list, or a dict of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fastckpt._bare_model import bare_name, unwrap
from fastckpt._wording import class_name

from .param_names import names_of_optimizer
from .rng import Generator, capture_rng

#: The parts that have a state dict, and what its key is in a checkpoint, in the order of the keys.
STATE_KEYS = {
    "model": "model_state_dict",
    "optimizer": "optimizer_state_dict",
    "scheduler": "scheduler_state_dict",
    "scaler": "scaler_state_dict",
    "ema": "ema_state_dict",
}
#: The names of the parameters of each group of an optimizer; torch keeps them for some optimizers only.
PARAM_NAMES_KEY = "optimizer_param_names"
#: The class of each part.
CLASS_NAMES_KEY = "class_names"


@dataclass
class Parts:
    """The objects of a training run whose state a checkpoint holds.

    Each of the first five is one object with state_dict and load_state_dict, a list or a dict of them,
    or None. The checkpoint has their states in the same form.

    Attributes:
        model: The model.
        optimizer: The optimizer.
        scheduler: The learning rate scheduler.
        scaler: The gradient scaler.
        ema: The moving average of the weights.
        generators: Random number generators beside the global ones, by name.
    """

    model: Any
    optimizer: Any = None
    scheduler: Any = None
    scaler: Any = None
    ema: Any = None
    generators: dict[str, Generator] = field(default_factory=dict)

    def require(self, *methods: str) -> None:
        """Raise TypeError for what has not all of these methods; the message says where it stands."""
        for what in STATE_KEYS:
            for name, member in members(what, getattr(self, what)):
                lacking = [each for each in methods if not callable(getattr(member, each, None))]
                if lacking:
                    raise TypeError(
                        f"{name} must have {' and '.join(methods)}, or be a list or a dict of objects "
                        f"that have; {class_name(type(member))} has no "
                        f"{' and no '.join(lacking)}"
                    )

    def capture(
        self, *, save_optimizer: bool, save_rng_state: bool, world_size: int
    ) -> dict[str, Any]:
        """Return the states of all parts, as they stand in a checkpoint; tensors are not copied."""
        if self.model is None:
            raise TypeError("model is None, and a checkpoint without a model cannot be resumed")
        states: dict[str, Any] = {}
        for what, key in STATE_KEYS.items():
            part = getattr(self, what)
            if part is not None and (what != "optimizer" or save_optimizer):
                states[key] = map_members(part, lambda member: member.state_dict())
        if STATE_KEYS["optimizer"] in states:
            names = {one: name for name, one in named_parameters(self.model)}
            states[PARAM_NAMES_KEY] = map_members(
                self.optimizer, lambda member: names_of_optimizer(member, names)
            )
        classes = {what: getattr(self, what) for what in STATE_KEYS if STATE_KEYS[what] in states}
        states[CLASS_NAMES_KEY] = {
            what: map_members(part, lambda member: class_name(type(member)))
            for what, part in classes.items()
        }
        if save_rng_state:
            states["rng_states"] = self.capture_rng(world_size)
        return states

    def capture_rng(self, world_size: int) -> dict[str, Any]:
        """Return the states of this rank's random number generators, and of how many ranks it is one."""
        return {**capture_rng(self.generators), "world_size": world_size}


def members(what: str, part: Any) -> Iterator[tuple[str, Any]]:
    """Yield the objects of a part with what they are called: `optimizer`, or `optimizer['g']`."""
    if part is None:
        return
    if not is_several(part):
        yield what, part
        return
    for key, member in _items(part):
        yield f"{what}[{key!r}]", member


def is_several(part: Any) -> bool:
    """Whether a part is a list or a dict of objects. A ModuleDict, say, is one object."""
    return isinstance(part, (list, tuple, Mapping)) and not hasattr(part, "load_state_dict")


def member_states(part: Any, states: Any) -> list[tuple[Any, Any]] | None:
    """Pair the objects of a part with their states; None where these have another form.

    Of a dict, the states may be more: those are left out.
    """
    if not is_several(part):
        return [(part, states)]
    if isinstance(part, Mapping):
        if not isinstance(states, Mapping) or not part.keys() <= states.keys():
            return None
        return [(member, states[key]) for key, member in part.items()]
    if not isinstance(states, (list, tuple)) or len(states) != len(part):
        return None
    return list(zip(part, states, strict=True))


def form_of(part: Any) -> str:
    """Say of what form a part, or its states, are: `one`, `a list of 2`, `a dict of 'd', 'g'`."""
    if isinstance(part, (list, tuple)):
        return f"a list of {len(part)}"
    # The state dict of one object has more than dicts in it.
    are_several = isinstance(part, Mapping) and all(
        isinstance(one, Mapping) or hasattr(one, "load_state_dict") for one in part.values()
    )
    if are_several and is_several(part):
        return f"a dict of {', '.join(map(repr, part))}"
    return "one"


def named_parameters(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parameters of a model, or of several, with their names; of several, the key in front.

    The names are those of the bare model, whatever is around it or around its parts.
    """
    several = _items(model) if is_several(model) else [("", model)]
    for key, member in several:
        named: Callable[[], Iterable[tuple[str, Any]]] | None
        named = getattr(
            unwrap(member) if isinstance(member, nn.Module) else member, "named_parameters", None
        )
        for name, parameter in named() if callable(named) else ():
            yield f"{key}.{bare_name(name)}" if is_several(model) else bare_name(name), parameter


def map_members(part: Any, function: Callable[[Any], Any]) -> Any:
    """Return what a function makes of each object of a part, in the form of the part."""
    if not is_several(part):
        return function(part)
    if isinstance(part, Mapping):
        return {key: function(member) for key, member in part.items()}
    return [function(member) for member in part]


def _items(part: Any) -> Iterable[tuple[Any, Any]]:
    return part.items() if isinstance(part, Mapping) else enumerate(part)
