"""States of random number generators as tensors and plain values.

Taking a state changes none. numpy is used where the process has imported it, and never imported to
save.
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

#: Any of `random.Random`, `numpy.random.Generator` and `torch.Generator`.
Generator = Any
Kind = Literal["python", "numpy", "torch"]

# Keys of an array in a state of numpy's, which may be of any dtype that numpy has.
_ARRAY_KEYS = {"dtype", "shape", "data"}


def check_generators(generators: Mapping[str, Generator] | None) -> dict[str, Generator]:
    """Return the generators that a caller has registered, by name.

    Raises:
        TypeError: A name is no string, or a value no generator that is known.
    """
    checked = dict(generators or {})
    for name, generator in checked.items():
        if not isinstance(name, str):
            raise TypeError(f"names of generators are strings, and {name!r} is none")
        _kind_of(name, generator)
    return checked


def capture_rng(generators: Mapping[str, Generator]) -> dict[str, Any]:
    """Return the states of all random number generators of this process.

    Args:
        generators: Those beside the global ones, by name.

    Returns:
        "python", "numpy" (None where it was not imported), "torch_cpu", "torch_cuda" (a tensor for
        each device; None where CUDA was not used) and "generators", by name.
    """
    numpy = sys.modules.get("numpy")
    uses_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "python": _capture_python(random.getstate()),
        "numpy": None if numpy is None else _encode(numpy.random.get_state(legacy=False)),
        "torch_cpu": torch.get_rng_state(),
        "torch_cuda": torch.cuda.get_rng_state_all() if uses_cuda else None,
        "generators": {name: _capture(name, generators[name]) for name in sorted(generators)},
    }


def restore_rng(
    states: Mapping[str, Any], generators: Mapping[str, Generator]
) -> tuple[list[str], dict[str, str]]:
    """Set all random number generators of this process to states that were saved.

    Args:
        states: What `capture_rng` returned.
        generators: Those beside the global ones, by the names that they were saved under.

    Returns:
        What was restored, and the reason for each that was not.
    """
    restored: list[str] = []
    skipped: dict[str, str] = {}

    def attempt(what: str, restore: Callable[[], str | None]) -> None:
        reason = restore()
        if reason is None:
            restored.append(what)
        else:
            skipped[what] = reason

    attempt("python RNG", lambda: _restore_python(random, states["python"]))
    attempt("numpy RNG", lambda: _restore_numpy(states["numpy"]))
    attempt("torch RNG", lambda: _restore_torch(states["torch_cpu"]))
    if states["torch_cuda"] is not None or torch.cuda.is_available():
        attempt("CUDA RNG", lambda: _restore_cuda(states["torch_cuda"]))
    saved: Mapping[str, Any] = states["generators"]
    for name in sorted({*saved, *generators}):
        attempt(
            f"generator {name!r}",
            lambda name=name: _restore(name, saved.get(name), generators.get(name)),  # type: ignore[misc]
        )
    return restored, skipped


def _kind_of(name: str, generator: Generator) -> Kind:
    if isinstance(generator, torch.Generator):
        return "torch"
    if isinstance(generator, random.Random) and not isinstance(generator, random.SystemRandom):
        return "python"
    # A Generator of numpy's cannot be had without numpy.
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(generator, numpy.random.Generator):
        return "numpy"
    raise TypeError(
        f"generators[{name!r}] must be a random.Random, a numpy.random.Generator or a "
        f"torch.Generator, not {type(generator).__module__}.{type(generator).__qualname__}"
    )


def _capture(name: str, generator: Generator) -> dict[str, Any]:
    kind = _kind_of(name, generator)
    if kind == "torch":
        return {"kind": kind, "state": generator.get_state()}
    if kind == "python":
        return {"kind": kind, "state": _capture_python(generator.getstate())}
    return {"kind": kind, "state": _encode(generator.bit_generator.state)}


def _restore(name: str, saved: Mapping[str, Any] | None, generator: Generator | None) -> str | None:
    if saved is None:
        return "the checkpoint has no state for it"
    if generator is None:
        return "the checkpoint has its state, but it is not registered (generators=)"
    kind = _kind_of(name, generator)
    if kind != saved["kind"]:
        return f"it is one of {kind}, and the checkpoint has the state of one of {saved['kind']}"
    if kind == "torch":
        generator.set_state(saved["state"])
    elif kind == "python":
        return _restore_python(generator, saved["state"])
    else:
        state, bits = _decode(saved["state"]), generator.bit_generator
        if state["bit_generator"] != bits.state["bit_generator"]:
            return f"it is a {bits.state['bit_generator']}, and was a {state['bit_generator']}"
        bits.state = state
    return None


def _capture_python(state: tuple[Any, ...]) -> dict[str, Any]:
    version, internal, gauss_next = state
    return {
        "version": version,
        # Numbers of 32 bits; uint32 has come to torch late.
        "state": torch.tensor(internal, dtype=torch.int64),
        "gauss_next": gauss_next,
    }


def _restore_python(generator: Any, saved: Mapping[str, Any]) -> str | None:
    internal = tuple(saved["state"].tolist())
    generator.setstate((saved["version"], internal, saved["gauss_next"]))
    return None


def _restore_numpy(saved: Mapping[str, Any] | None) -> str | None:
    if saved is None:
        return "numpy was not imported when the checkpoint was saved"
    try:
        # The script may import it only later; it would then draw from a fresh state.
        numpy = importlib.import_module("numpy")
    except ImportError:
        return "numpy is not installed here"
    state = _decode(saved)
    present = numpy.random.get_state(legacy=False)["bit_generator"]
    if state["bit_generator"] != present:
        return f"numpy's global generator is a {present}, and was a {state['bit_generator']}"
    numpy.random.set_state(state)
    return None


def _restore_torch(saved: torch.Tensor) -> str | None:
    torch.set_rng_state(saved)
    return None


def _restore_cuda(saved: list[torch.Tensor] | None) -> str | None:
    if saved is None:
        return "CUDA was not in use when the checkpoint was saved"
    if not torch.cuda.is_available():
        return f"the checkpoint has the states of {len(saved)} CUDA devices, and there is none here"
    present = torch.cuda.device_count()
    for device, state in enumerate(saved[:present]):
        torch.cuda.set_rng_state(state, device)
    if present != len(saved):
        return (
            f"the checkpoint has the states of {len(saved)} CUDA devices, and there are {present} "
            f"here: the first {min(present, len(saved))} were restored"
        )
    return None


def _encode(value: Any) -> Any:
    """Turn a state of numpy's into tensors and plain values."""
    if isinstance(value, dict):
        return {key: _encode(part) for key, part in value.items()}
    if hasattr(value, "dtype") and getattr(value, "ndim", 0) > 0:
        # Bytes, not numbers: torch has no uint64 that every version of it loads.
        data = torch.frombuffer(bytearray(value.tobytes()), dtype=torch.uint8)
        return {"dtype": value.dtype.str, "shape": list(value.shape), "data": data}
    return value.item() if hasattr(value, "dtype") else value


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() == _ARRAY_KEYS:
        numpy = importlib.import_module("numpy")
        flat = numpy.frombuffer(bytes(value["data"].tolist()), dtype=value["dtype"])
        return flat.reshape(value["shape"])
    return {key: _decode(part) for key, part in value.items()}
