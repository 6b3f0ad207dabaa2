"""The plain values that a checkpoint holds beside its tensors: step, epoch, metrics, configuration.

Works on outlines, on loaded objects and on the JSON of a meta file. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastckpt._native import ArrayInfo, Opaque, StorageInfo, TensorInfo

from .paths import INT_BITS_MAX, below, int_text
from .state_dicts import is_optimizer_state, is_state_dict

Scalar = bool | int | float | str | None
Value = Scalar | list[Scalar]

#: A list of more is named with its length only: the state of a random generator has 625 numbers.
LIST_ITEMS_MAX = 16
# Nobody reads more values of a checkpoint than these; see `PlainValues.omitted`.
_VALUES_MAX = 10_000
# Nearly all that there is; their subclasses are looked at further down.
_PLAIN_TYPES = frozenset({type(None), bool, int, float, str})
# Under which names training scripts keep them, in the order in which they are looked for.
_STEP_NAMES = ("global_step", "step", "iteration", "iter_num", "iter")
_EPOCH_NAMES = ("epoch", "current_epoch")
# What was measured before, for each epoch: of no use among the values of this checkpoint.
_HISTORY = "history"
#: The dict of measured values in a checkpoint.
METRICS = "metrics"
# Numbers below keys that contain one of these are settings or positions, not what was measured.
_NOT_MEASURED = re.compile(
    "config|cfg|args|hparams|hyper_parameters|dataloader|optim|param_groups|scheduler|scaler|rng"
    f"|{_HISTORY}|version"
)
_SETTINGS = {
    *_STEP_NAMES,
    *_EPOCH_NAMES,
    *("device_batch_size", "max_seq_len", "total_batch_size", "seed", "world_size"),
    # What was the best before, in a CheckpointManager's file: not of this checkpoint.
    "best_metric",
}


@dataclass
class PlainValues:
    """What was found.

    Attributes:
        values: By the path of keys, e.g. "metrics.val_loss", in the order saved. Lists are short.
        omitted: Lists, byte strings and the like that are too long, with their lengths.
        scalar_tensors: Tensors of one element, which may be a metric that nobody called .item() on.
    """

    values: dict[str, Value] = field(default_factory=dict)
    omitted: dict[str, int] = field(default_factory=dict)
    scalar_tensors: dict[str, TensorInfo] = field(default_factory=dict)

    @property
    def step(self) -> int | None:
        """The step that the checkpoint says it is of."""
        return self._first_int(_STEP_NAMES)

    @property
    def epoch(self) -> int | None:
        """The epoch that the checkpoint says it is of."""
        return self._first_int(_EPOCH_NAMES)

    def metrics(self) -> dict[str, int | float]:
        """Return the numbers that were measured, by name; those of the dict `metrics` come first.

        Names are without "metrics.", e.g. "val_loss", and dotted below other keys, e.g.
        "loop_state.min_val_bpb".
        """
        numbers = dict(self._numbers())
        prefix = METRICS + "."
        found = {
            name.removeprefix(prefix): value
            for name, value in numbers.items()
            if name.startswith(prefix)
        }
        for name, value in numbers.items():
            if not name.startswith(prefix) and is_measured(name):
                found.setdefault(name, value)
        return found

    def find_name(self, metric_name: str) -> str | None:
        """Return the path of the number, or tensor of one element, that goes by a name.

        That is one of the dict `metrics`, else one of that path, else the only one of which
        the path ends so.
        """
        names = {name for name, _ in self._numbers()} | self.scalar_tensors.keys()
        for name in (f"{METRICS}.{metric_name}", metric_name):
            if name in names:
                return name
        ending = [name for name in names if name.endswith("." + metric_name)]
        return ending[0] if len(ending) == 1 else None

    def _numbers(self) -> Iterator[tuple[str, int | float]]:
        for name, value in self.values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                yield name, value

    def _first_int(self, names: Iterable[str]) -> int | None:
        for name in names:
            value = self.values.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        return None


def is_measured(name: str) -> bool:
    """Whether a number of this path is what a run has measured, as far as its name tells."""
    name = name.lower()
    return name.rpartition(".")[2] not in _SETTINGS and _NOT_MEASURED.search(name) is None


def read_plain_values(root: Any) -> PlainValues:
    """Collect the plain values of an object; state dicts and the state of optimizers are left out.

    Bounded whatever the object is: each container is looked into once, and no more than 10,000 values
    are taken.
    """
    found = PlainValues()
    seen: set[int] = set()
    state_dicts: set[int] = set()
    # What is left of each container on the way down: names are made when they are needed.
    ways: list[Iterator[tuple[str, Any]]] = [iter([("", root)])]
    while ways and len(found.values) < _VALUES_MAX:
        step = next(ways[-1], None)
        if step is None:
            ways.pop()
            continue
        name, value = step
        if _add_leaf(found, name, value) or id(value) in seen:
            continue
        # Metrics on which nobody called .item() are a dict of tensors too.
        if name != METRICS and (id(value) in state_dicts or is_state_dict(value)):
            # Asked once, though a hostile file may have a large one in many places.
            state_dicts.add(id(value))
            continue
        seen.add(id(value))
        ways.append(_parts(name, value))
    return found


def _add_leaf(found: PlainValues, name: str, value: Any) -> bool:
    """Add what is not looked into further; whether it was that."""
    if type(value) in _PLAIN_TYPES:
        found.values[name] = _scalar(value)
        return True
    if isinstance(value, TensorInfo):
        if value.numel == 1:
            found.scalar_tensors[name] = value
        return True
    if isinstance(value, ArrayInfo):
        number = value.item()
        if number is None:
            found.omitted[name] = value.numel
        else:
            found.values[name] = _scalar(number)
        return True
    if isinstance(value, (bytes, bytearray)):
        found.omitted[name] = len(value)
        return True
    if _is_sequence(value):
        return _add_sequence(found, name, value)
    if isinstance(value, (Mapping, Opaque)) and not (isinstance(value, Opaque) and not value.parts):
        return False
    if not isinstance(value, StorageInfo):
        found.values[name] = _scalar(value)
    return True


def _add_sequence(found: PlainValues, name: str, value: Any) -> bool:
    if len(value) > LIST_ITEMS_MAX or name.endswith(_HISTORY):
        found.omitted[name] = len(value)
        return True
    if all(isinstance(item, (bool, int, float, str, type(None))) for item in value):
        found.values[name] = [_scalar(item) for item in value]
        return True
    return False


def _scalar(value: Any) -> Scalar:
    if isinstance(value, int) and value.bit_length() > INT_BITS_MAX:
        return int_text(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    # A dtype or a device in a configuration, a class, a complex number.
    return value.name if isinstance(value, Opaque) else str(value)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple, set, frozenset))


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        hidden = _hidden_keys(name, value)
        for key, part in value.items():
            if key not in hidden:
                yield below(name, key), part
    elif isinstance(value, Opaque):
        # What an object is made of goes by the object's own name.
        for part in value.parts:
            if isinstance(part, Mapping):
                yield name, part
    else:
        for position, part in enumerate(value):
            yield below(name, position), part


def _hidden_keys(name: str, value: Mapping[Any, Any]) -> set[str]:
    if is_optimizer_state(value):
        return {"state"}
    # The numbers of the parameters that a group of an optimizer has.
    return {"params"} if "param_groups." in name else set()
