"""The state of averages in a checkpoint: its forms, read into one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastckpt._wording import some_names

#: Keys of a state, in the order in which they are saved. The others may be missing.
SHADOW, DECAY = "shadow", "decay"
_OPTIONAL = ("warmup", "use_buffers", "num_updates", "buffers")
# What `SHADOW` was called before.
_PARAMETERS = "parameters"


@dataclass(frozen=True)
class EMAState:
    """What a state says.

    Attributes:
        shadow: The averages, by the names in the state.
        buffers: Averages of buffers, by name.
        decay: None where the state does not say.
        warmup: False where it does not say, as all that follow: constant decay, no buffers.
        use_buffers: Whether there are averages of buffers.
        num_updates: How many updates there were.
    """

    shadow: dict[str, Tensor]
    buffers: dict[str, Tensor]
    decay: float | None
    warmup: bool
    use_buffers: bool
    num_updates: int


def check_decay(decay: float) -> float:
    """Return a decay; raise ValueError where it is out of range."""
    is_number = hasattr(decay, "__float__") and not isinstance(decay, bool)
    # Written so that NaN fails.
    if not is_number or not 0.0 <= float(decay) <= 1.0:
        raise ValueError(f"decay must be 0 to 1, not {decay}")
    return float(decay)


def read_state(state: Any) -> EMAState:
    """Read a state in any of its forms.

    Raises:
        ValueError: It is not the state of an EMAModel.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"not the state of an EMAModel: a {type(state).__name__}, expected a dict")  # noqa: TRY004 - all are ValueErrors
    known = {SHADOW, _PARAMETERS, DECAY, *_OPTIONAL}
    if state.keys() - known or len(state.keys() & {SHADOW, _PARAMETERS}) != 1:
        raise ValueError(
            f"not the state of an EMAModel: it has the keys {some_names(state)}, expected "
            f"{SHADOW!r} and at most {some_names({DECAY, *_OPTIONAL})}"
        )
    num_updates = state.get("num_updates", 0)
    if type(num_updates) is not int or num_updates < 0:
        raise ValueError(f"num_updates must be 0 or more, not {num_updates!r:.50}")
    decay = state.get(DECAY)
    return EMAState(
        shadow=_tensors(state, SHADOW if SHADOW in state else _PARAMETERS),
        buffers=_tensors(state, "buffers"),
        decay=None if decay is None else check_decay(decay),
        warmup=_flag(state, "warmup"),
        use_buffers=_flag(state, "use_buffers"),
        num_updates=num_updates,
    )


def _flag(state: Mapping[str, Any], key: str) -> bool:
    value = state.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be True or False, not {value!r:.50}")  # noqa: TRY004 - all are ValueErrors
    return value


def _tensors(state: Mapping[str, Any], key: str) -> dict[str, Tensor]:
    tensors = state.get(key, {})
    if not isinstance(tensors, Mapping):
        raise ValueError(f"{key} must be a dict of tensors, not a {type(tensors).__name__}")  # noqa: TRY004 - all are ValueErrors
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(  # noqa: TRY004 - all are ValueErrors
                f"{key} must be a dict of tensors by name; {name!r:.100} is a {type(value).__name__}"
            )
    return dict(tensors)
