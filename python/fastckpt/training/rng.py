"""States of random number generators: taken, checked, restored.

Taking a state does not change it. numpy is used where the process has imported it, and is never imported for
a save. `plan_rng` checks everything before `RngPlan.apply` sets anything.
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch

from fastckpt._wording import class_name

from .numpy_rng import encode_arrays, fit_state, plain_global_state, read_state, try_state

#: Any of `random.Random`, `numpy.random.Generator` and `torch.Generator`.
Generator = Any
Kind = Literal["python", "numpy", "torch"]

_CLASSES = {
    "python": "random.Random",
    "numpy": "numpy.random.Generator",
    "torch": "torch.Generator",
}
_NOT_SAVED = "the checkpoint has no state for it"
# What the checks of a state may raise: all of it says that the state is not one.
_REFUSALS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def check_generators(generators: Mapping[str, Generator] | None) -> dict[str, Generator]:
    """Return the generators that a caller has registered, by name.

    Raises:
        TypeError: A name is not a string, or a value is not a supported generator.
    """
    checked = dict(generators or {})
    for name, generator in checked.items():
        if not isinstance(name, str):
            raise TypeError(f"generator names must be strings, not {name!r}")
        _kind_of(name, generator)
    return checked


def capture_rng(generators: Mapping[str, Generator]) -> dict[str, Any]:
    """Return the states of all random number generators of this process.

    Args:
        generators: Further generators, by name.

    Returns:
        ``"python"`` for ``random.setstate``, ``"numpy"`` for ``np.random.set_state``, ``"torch"`` for
        ``torch.set_rng_state`` and ``"cuda"`` for ``torch.cuda.set_rng_state_all``, and under
        ``"generators"`` the further ones by name: plain values and tensors. The key ``"numpy"`` is missing if
        numpy was not imported, ``"cuda"`` if CUDA was not initialized.
    """
    states: dict[str, Any] = {"python": random.getstate()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        states["numpy"] = plain_global_state(numpy.random.get_state(legacy=False))
    states["torch"] = torch.get_rng_state()
    if _uses_cuda():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if generators:
        states["generators"] = {
            name: _capture(name, generators[name]) for name in sorted(generators)
        }
    return states


class RngSnapshot:
    """The states of all generators that are in use when the snapshot is made, to be put back later."""

    def __init__(self, generators: Mapping[str, Generator]) -> None:
        numpy = sys.modules.get("numpy")
        self._python = random.getstate()
        self._numpy = None if numpy is None else numpy.random.get_state(legacy=False)
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if _uses_cuda() else None
        self._generators = [
            (generator, _native_state(_kind_of(name, generator), generator))
            for name, generator in generators.items()
        ]

    def put_back(self) -> None:
        """Set every generator to the state that it had."""
        random.setstate(self._python)
        if self._numpy is not None:
            importlib.import_module("numpy").random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        for generator, state in self._generators:
            _set_native_state(generator, state)


def _native_state(kind: Kind, generator: Generator) -> Any:
    if kind == "torch":
        return generator.get_state()
    return generator.getstate() if kind == "python" else generator.bit_generator.state


def _set_native_state(generator: Generator, state: Any) -> None:
    kind = _kind_of("", generator)
    if kind == "torch":
        generator.set_state(state)
    elif kind == "python":
        generator.setstate(state)
    else:
        generator.bit_generator.state = state


class _Step(NamedTuple):
    """One generator of a plan: what sets it, or why it is skipped; both if only a part is set."""

    set: Callable[[], None] | None
    reason: str | None = None


class RngPlan:
    """States that were checked and can be set.

    Attributes:
        skipped: The generators that will not be restored, with the reason for each.
    """

    def __init__(self, steps: Mapping[str, _Step], generators: Mapping[str, Generator]) -> None:
        self._steps = steps
        self._generators = generators
        self.skipped = {
            name: step.reason for name, step in steps.items() if step.reason is not None
        }

    def apply(self) -> tuple[str, ...]:
        """Set the generators to the states. If one raises, none of them has changed.

        Returns:
            The generators that were restored: "python RNG", "numpy RNG", "torch RNG", "CUDA RNG",
            "generator 'x'".
        """
        before = RngSnapshot(self._generators)
        try:
            for step in self._steps.values():
                if step.set is not None:
                    step.set()
        except BaseException:
            before.put_back()
            raise
        return tuple(name for name, step in self._steps.items() if step.reason is None)


def plan_rng(states: Mapping[str, Any], generators: Mapping[str, Generator]) -> RngPlan:
    """Check saved states against the generators of this process. No generator changes.

    Args:
        states: What `capture_rng` returned, in this version or an earlier one; or, under the same keys, what
            ``random.getstate``, ``np.random.get_state`` and ``torch.get_rng_state`` return.
        generators: Further generators, by the names that they were saved under.

    Raises:
        ValueError: A state is malformed: its generator does not accept it. The message names the key.
    """
    if not isinstance(states, Mapping):
        raise ValueError(f"rng_states must be a dict, not a {type(states).__name__}")  # noqa: TRY004 - all are ValueErrors
    # An earlier version called them torch_cpu and torch_cuda.
    cuda = states.get("cuda", states.get("torch_cuda"))
    steps = {
        "python RNG": _plan_global("python", states.get("python"), _plan_python),
        "numpy RNG": _plan_global("numpy", states.get("numpy"), _plan_numpy),
        "torch RNG": _plan_global(
            "torch", states.get("torch", states.get("torch_cpu")), _plan_torch
        ),
    }
    if cuda is not None or torch.cuda.is_available():
        steps["CUDA RNG"] = _plan_global("cuda", cuda, _plan_cuda)
    saved = states.get("generators") or {}
    if not isinstance(saved, Mapping):
        raise ValueError(f"rng_states['generators'] must be a dict, not a {type(saved).__name__}")  # noqa: TRY004 - all are ValueErrors
    for name in sorted({*saved, *generators}, key=str):
        steps[f"generator {name!r}"] = _plan_generator(name, saved.get(name), generators.get(name))
    return RngPlan(steps, dict(generators))


def restore_rng(
    states: Mapping[str, Any], generators: Mapping[str, Generator]
) -> tuple[list[str], dict[str, str]]:
    """Check states and set all random number generators of this process to them; see `plan_rng`.

    Returns:
        The generators that were restored, and the reason for each that was not.
    """
    plan = plan_rng(states, generators)
    return list(plan.apply()), plan.skipped


def _uses_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def _kind_of(name: str, generator: Generator) -> Kind:
    if isinstance(generator, torch.Generator):
        return "torch"
    if isinstance(generator, random.Random) and not isinstance(generator, random.SystemRandom):
        return "python"
    # A numpy Generator cannot be had without numpy.
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(generator, numpy.random.Generator):
        return "numpy"
    raise TypeError(
        f"generators[{name!r}] must be a random.Random, a numpy.random.Generator or a "
        f"torch.Generator, not {class_name(type(generator))}"
    )


def _capture(name: str, generator: Generator) -> dict[str, Any]:
    kind = _kind_of(name, generator)
    state = _native_state(kind, generator)
    if kind == "numpy":
        state = encode_arrays(state, lambda data: torch.frombuffer(data, dtype=torch.uint8))
    return {"kind": kind, "state": state}


# Each of these returns a step, or raises one of _REFUSALS.


def _plan_global(key: str, saved: Any, plan: Callable[[Any], _Step]) -> _Step:
    try:
        return plan(saved)
    except _REFUSALS as error:
        raise ValueError(f"rng_states[{key!r}] is malformed: {error}") from error


def _plan_generator(name: str, saved: Any, generator: Generator | None) -> _Step:
    if saved is None:
        return _Step(None, _NOT_SAVED)
    if generator is None:
        return _Step(None, "the checkpoint has its state, but it is not registered (generators=)")
    kind = _kind_of(name, generator)
    try:
        saved_kind, state = saved["kind"], saved["state"]
        if kind != saved_kind:
            return _Step(
                None,
                f"it is a {_CLASSES[kind]}, and the checkpoint has the state of a "
                f"{_CLASSES.get(saved_kind, saved_kind)}",
            )
        if kind == "python":
            return _plan_python(state, generator)
        if kind == "torch":
            return _plan_torch(state, generator)
        return _plan_numpy_generator(state, generator)
    except _REFUSALS as error:
        raise ValueError(f"rng_states['generators'][{name!r}] is malformed: {error}") from error


def _plan_python(saved: Any, generator: Any = random) -> _Step:
    if saved is None:
        return _Step(None, _NOT_SAVED)
    if isinstance(saved, Mapping):
        # The form of an earlier version.
        saved = (saved["version"], saved["state"].tolist(), saved["gauss_next"])
    version, internal, gauss_next = saved
    if not isinstance(gauss_next, (float, type(None))):
        raise TypeError(f"gauss_next is a {type(gauss_next).__name__}, expected float or None")
    state = (version, tuple(internal), gauss_next)
    random.Random().setstate(state)  # noqa: S311 - a scratch generator, never drawn from
    return _Step(lambda: generator.setstate(state))


def _plan_numpy(saved: Any) -> _Step:
    if saved is None:
        return _Step(None, "numpy was not imported when the checkpoint was saved")
    try:
        # The script may import it only later; it would then draw from a fresh state.
        numpy = importlib.import_module("numpy")
    except ImportError:
        return _Step(None, "numpy is not installed here")
    state = read_state(saved, numpy)
    present = numpy.random.get_state(legacy=False)
    if state["bit_generator"] != present["bit_generator"]:
        return _Step(
            None,
            f"numpy's global generator is a {present['bit_generator']}, and was a "
            f"{state['bit_generator']!s:.50}",
        )
    state = fit_state(state, present, numpy)
    try_state(state, numpy, is_global=True)
    return _Step(lambda: numpy.random.set_state(state))


def _plan_numpy_generator(saved: Any, generator: Any) -> _Step:
    numpy = importlib.import_module("numpy")
    bits = generator.bit_generator
    state, present = read_state(saved, numpy), bits.state
    if state["bit_generator"] != present["bit_generator"]:
        return _Step(
            None, f"it is a {present['bit_generator']}, and was a {state['bit_generator']!s:.50}"
        )
    state = fit_state(state, present, numpy)
    try_state(state, numpy, is_global=False)
    return _Step(lambda: _set_native_state(generator, state))


def _plan_torch(saved: Any, generator: torch.Generator | None = None) -> _Step:
    if saved is None:
        return _Step(None, _NOT_SAVED)
    state = _bytes_of(saved)
    if generator is None:
        torch.Generator().set_state(state)
        return _Step(lambda: torch.set_rng_state(state))
    reason = _refusal(state, generator.device)
    return _Step(None if reason else lambda: _set_native_state(generator, state), reason)


def _plan_cuda(saved: Any) -> _Step:
    if saved is None:
        return _Step(None, "CUDA was not in use when the checkpoint was saved")
    if not isinstance(saved, (list, tuple)):
        raise TypeError(f"expected a list of tensors, not a {type(saved).__name__}")
    states = [_bytes_of(one) for one in saved]
    devices = "1 CUDA device" if len(states) == 1 else f"{len(states)} CUDA devices"
    if not torch.cuda.is_available():
        return _Step(None, f"the checkpoint has the states of {devices}, and CUDA is not available")
    present = torch.cuda.device_count()
    for device, state in enumerate(states[:present]):
        reason = _refusal(state, torch.device("cuda", device))
        if reason is not None:
            return _Step(None, reason)
    reason = None
    if present != len(states):
        reason = (
            f"the checkpoint has the states of {devices}, and this machine has {present}: the first "
            f"{min(present, len(states))} are restored"
        )
    return _Step(lambda: _set_cuda(states[:present]), reason)


def _set_cuda(states: list[torch.Tensor]) -> None:
    for device, state in enumerate(states):
        torch.cuda.set_rng_state(state, device)


def _bytes_of(saved: Any) -> torch.Tensor:
    if not isinstance(saved, torch.Tensor) or saved.dtype != torch.uint8 or saved.ndim != 1:
        raise TypeError("expected a one-dimensional tensor of uint8")
    return saved.detach().cpu().contiguous()


def _refusal(state: torch.Tensor, device: torch.device) -> str | None:
    """Say why a generator on a device cannot have a state; None if it can.

    Raises:
        RuntimeError, TypeError: The state is malformed.
    """
    scratch = torch.Generator(device)
    try:
        scratch.set_state(state)
    except (RuntimeError, TypeError):
        expected = scratch.get_state().numel()
        if state.numel() == expected:
            raise
        # Those of another kind of device, or of a torch that kept more, have another size.
        return f"its state has {state.numel()} bytes, and a generator on {device} has {expected}"
    return None
