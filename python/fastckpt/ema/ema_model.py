"""`EMAModel`: the averages, put into a model and taken out again, saved and resumed."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fastckpt._bare_model import (
    bare_names,
    persistent_buffers,
    trainable_parameters,
    unwrap,
    wrapped_names,
)

from .averaging import copy_values, first_average, move_averages, move_buffers, mover
from .checks import check_same, check_shapes, check_unchanged, refuse_meta
from .originals import SavedBuffers, put_back_parameters
from .states import EMAState, check_decay, read_state


class EMAModel:
    """Keep an exponential moving average of a model's trainable parameters.

    Each `update` moves every average by ``average += (1 - decay) * (weight - average)``. The averages begin
    at the weights that the model has when the EMAModel is made. Frozen parameters (``requires_grad=False``)
    are not stored: their average is their value. Tied parameters are averaged once.

    The averages are detached copies. Weights narrower than 32 bits (bfloat16, float16, float8) are averaged
    in float32: a bfloat16 average would round every update away at a decay of 0.9999.

    Args:
        model: The model that trains. It may be inside torch.compile or DistributedDataParallel in one process
            and bare in another: averages and weights are matched by the names of the bare model.
        decay: Share of the old average that an update keeps, 0 to 1. At 0 the averages are the weights. At 1
            they never change, not even where a weight is infinite. In between, the average of a weight that
            was once infinite or NaN is never finite again.
        device: Where the averages live; None: with their parameters, also when these move. ``"cpu"`` saves
            memory of the model's device, and costs a copy for each update.
        use_buffers: Whether to average the floating buffers of the state dict too, and to keep the integer
            ones of the last update. False: buffers stay the model's own.
        warmup: Use ``min(decay, (1 + t) / (10 + t))`` for update number t, counted from 0, so that the first
            weights are soon forgotten. TensorFlow's ``tf.train.ExponentialMovingAverage(num_updates=t)`` has
            this formula.
        dtype: Floating dtype of the averages; None: each weight's own, or float32 where that is narrower.
            Averages of complex weights keep theirs.

    Attributes:
        model: The model that trains, as it was given.
        device: Where the averages live; None: with their parameters.
        shadow: The averages, a dict of tensors by the names of ``model.named_parameters()``. Tensors in it
            may be replaced, and so may the dict. Once a script has looked at it, an update puts new tensors
            into it: those that were taken out stay as they are.
        backup: The weights that `apply` has replaced, by the same names; empty when the averages are not in
            the model.
        decay: Share of the old average that an update keeps, once it is warmed up.
        warmup: Whether the decay is warmed up.
        use_buffers: Whether floating buffers are averaged.
        num_updates: The number of updates so far.

    Raises:
        ValueError: `decay` is out of range, no parameter is trainable, one is on the meta device, or
            `dtype` is not a floating dtype.

    Example:
        >>> import torch, fastckpt
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> ema = fastckpt.EMAModel(model, decay=0.5)
        >>> before = model.weight.detach().clone()
        >>> with torch.no_grad():
        ...     _ = model.weight.add_(1)
        >>> ema.update()
        >>> with ema.applied():
        ...     assert torch.allclose(model.weight, before + 0.5)
        >>> assert torch.allclose(model.weight, before + 1)
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.9999,
        device: torch.device | str | int | None = None,
        *,
        use_buffers: bool = False,
        warmup: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating dtype, or None to choose, not {dtype}")
        self.model = model
        self.device = None if device is None else torch.device(device)
        self.backup: dict[str, Tensor] = {}
        self.decay = decay
        self.warmup = warmup
        self.use_buffers = use_buffers
        self.num_updates = 0
        self._dtype = dtype
        self._saved_buffers: SavedBuffers | None = None
        self._shadow: dict[str, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}
        # Whether somebody may hold the tensors: until the next update, or for ever.
        self._is_shared = self._is_seen = False
        self.follow_model()
        if not self._shadow:
            raise ValueError("no parameter of the model is trainable: there is nothing to average")

    @property
    def shadow(self) -> dict[str, Tensor]:
        """The averages, by the names of ``model.named_parameters()``."""
        self._is_seen = True
        return self._shadow

    @shadow.setter
    def shadow(self, averages: dict[str, Tensor]) -> None:
        self._is_seen = True
        self._shadow = averages

    @property
    def decay(self) -> float:
        """Share of the old average that an update keeps, once it is warmed up."""
        return self._decay

    @decay.setter
    def decay(self, decay: float) -> None:
        self._decay = check_decay(decay)

    @property
    def next_decay(self) -> float:
        """The decay of the next update."""
        if not self.warmup:
            return self._decay
        return min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))

    @property
    def is_applied(self) -> bool:
        """Whether the averages are in a model now."""
        return bool(self.backup)

    @torch.no_grad()
    def update(self, model: nn.Module | None = None) -> None:
        """Move the averages towards the weights. Call it after each step of the optimizer.

        Args:
            model: A model with the same parameters; None: `self.model`.

        Raises:
            RuntimeError: The averages are in the model: call `restore` first. Or the trainable parameters
                have changed; the message names them.
        """
        self._refuse_applied("update")
        parameters, buffers = self._tensors_of(model)
        self._take_over()
        self._follow_device(parameters, buffers)
        move = mover(self.next_decay)
        move_averages(self._averages(parameters), parameters, move)
        if self.use_buffers:
            move_buffers(self._buffers, buffers, move)
        self.num_updates += 1

    @torch.no_grad()
    def apply(self, model: nn.Module | None = None) -> None:
        """Put the averages into the model, and keep what was there for `restore`.

        The parameters stay the same objects; their values are replaced in place. The copies take the memory
        of the trainable parameters and of all buffers once more, on the model's device. Buffers are copied
        so that `restore` undoes what an evaluation or ``update_bn`` does to them.

        Args:
            model: A model with the same parameters; None: `self.model`.

        Raises:
            RuntimeError: The averages are applied already: another `apply` would lose the weights. Or the
                trainable parameters have changed.
        """
        if self.is_applied:
            raise RuntimeError(
                "the averages are in the model already, and apply cannot be nested: restore() first"
            )
        given = self.model if model is None else model
        parameters, buffers = self._tensors_of(given)
        names = wrapped_names(given)
        self._saved_buffers = SavedBuffers(unwrap(given))
        self.backup = {names[name]: value.clone() for name, value in parameters.items()}
        try:
            copy_values(parameters, self._averages(parameters))
            copy_values(buffers, self._buffers)
        except BaseException:
            self.restore()
            raise

    @torch.no_grad()
    def restore(self) -> None:
        """Put back, bit for bit, what `apply` has replaced. Do nothing if the averages are not applied."""
        saved = self._saved_buffers
        if self.backup:
            put_back_parameters(unwrap(self.model) if saved is None else saved.model, self.backup)
            if saved is not None:
                saved.put_back()
        self.backup, self._saved_buffers = {}, None

    @contextmanager
    def applied(self, model: nn.Module | None = None) -> Iterator[nn.Module]:
        """Put the averages into the model for a ``with`` block; an exception restores the model too.

        Yields the bare model. Arguments and errors are those of `apply`.
        """
        self.apply(model)
        try:
            yield unwrap(self.model if model is None else model)
        finally:
            self.restore()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: plain values and tensors, which weights_only=True accepts.

        The keys are shadow (the averages by name), decay, warmup, use_buffers, num_updates and buffers. The
        tensors are not copies. The next update puts new tensors in their place, so a state that you keep does
        not change.
        """
        self._is_shared = True
        return {
            "shadow": dict(self._shadow),
            "decay": self._decay,
            "warmup": self.warmup,
            "use_buffers": self.use_buffers,
            "num_updates": self.num_updates,
            "buffers": dict(self._buffers),
        }

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raise what `load_state_dict` would raise for a state; nothing changes."""
        self._read(state_dict)

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state, its decay included. Every value is copied, bit for bit.

        If an error is raised, nothing has changed.

        Args:
            state_dict: What `state_dict` returned, in this version or an earlier one. A dict with only
                `shadow`, or `shadow` and `decay`, is a state too: it sets ``warmup=False``, and a missing
                `decay` leaves the present one. Names may have the prefixes of torch.compile and
                DistributedDataParallel. Averages may have a narrower floating dtype than here.

        Raises:
            RuntimeError: The averages are in the model.
            ValueError: This is not the state of an EMAModel, or names, shapes or dtypes differ; the message
                says which.
        """
        state = self._read(state_dict)
        # An earlier state may share the tensors.
        self._take_over()
        if state.decay is not None:
            self._decay = state.decay
        self.warmup, self.num_updates = state.warmup, state.num_updates
        copy_values(self._averages(state.shadow), state.shadow)
        copy_values(self._buffers, state.buffers)

    @torch.no_grad()
    def reset(self) -> None:
        """Begin the averages anew at the model's present weights, as a new EMAModel would.

        Raises:
            RuntimeError: The averages are in the model.
        """
        self._refuse_applied("reset")
        self.follow_model()
        self._take_over()
        parameters, buffers = self._tensors_of(None)
        self._follow_device(parameters, buffers)
        copy_values(self._averages(parameters), parameters)
        copy_values(self._buffers, buffers)
        self.num_updates = 0

    @torch.no_grad()
    def follow_model(self, model: nn.Module | None = None) -> None:
        """Average the parameters that are trainable now, after some were added, removed or frozen.

        The average of a new parameter begins at its value. The averages of frozen and removed parameters are
        dropped. All others stay.
        """
        self._refuse_applied("follow_model")
        given = self.model if model is None else model
        parameters = trainable_parameters(unwrap(given))
        buffers = persistent_buffers(unwrap(given)) if self.use_buffers else {}
        refuse_meta({**parameters, **buffers})
        present, names = self._averages(parameters), wrapped_names(given)
        self._shadow = {
            names[name]: self._kept(present.get(name), value) for name, value in parameters.items()
        }
        self._buffers = {
            name: self._kept(self._buffers.get(name), value) for name, value in buffers.items()
        }

    def __repr__(self) -> str:
        """Return the number of parameters, the decay and the number of updates."""
        return (
            f"EMAModel({len(self._shadow)} parameters, decay={self._decay}, "
            f"num_updates={self.num_updates})"
        )

    def _read(self, state_dict: Mapping[str, Any]) -> EMAState:
        """Read a state, and check it against what is averaged; its averages get the bare model's names."""
        self._refuse_applied("load_state_dict")
        state = read_state(state_dict)
        if state.use_buffers != self.use_buffers:
            raise ValueError(
                f"the state was made with use_buffers={state.use_buffers}, "
                f"and this EMAModel with use_buffers={self.use_buffers}"
            )
        own = self._averages(trainable_parameters(unwrap(self.model)))
        names = bare_names(state.shadow, own)
        shadow = {names[name]: value for name, value in state.shadow.items()}
        if len(shadow) != len(names):
            raise ValueError("two names in the state mean the same parameter")
        check_same("parameter", own, shadow)
        check_same("buffer", self._buffers, state.buffers)
        return replace(state, shadow=shadow)

    def _averages(self, present: Container[str]) -> dict[str, Tensor]:
        """Return the averages by the names of the bare model."""
        names = bare_names(self._shadow, present)
        averages = {bare: self._shadow[name] for name, bare in names.items()}
        if len(averages) != len(names):
            raise RuntimeError("two names in `shadow` mean the same parameter")
        return averages

    def _take_over(self) -> None:
        """Put new tensors in the place of those that others may hold, or that may be others' own."""
        if self._is_seen or self._is_shared:
            for averages in (self._shadow, self._buffers):
                for name, average in averages.items():
                    # One after the other: what nobody holds is freed at once.
                    averages[name] = first_average(average, self.device, self._dtype)
        self._is_shared = False

    def _kept(self, average: Tensor | None, value: Tensor) -> Tensor:
        if average is not None and average.shape == value.shape:
            return average
        return first_average(value, self.device, self._dtype)

    def _tensors_of(self, model: nn.Module | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the model's averaged parameters and buffers; raise where they do not match the averages."""
        target = unwrap(self.model if model is None else model)
        parameters = trainable_parameters(target)
        buffers = persistent_buffers(target) if self.use_buffers else {}
        averages = self._averages(parameters)
        check_unchanged(averages, parameters, target)
        check_shapes("parameter", averages, parameters)
        check_shapes("buffer", self._buffers, buffers)
        return parameters, buffers

    def _follow_device(
        self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> None:
        """Follow the model to another device, where no device was asked for."""
        if self.device is not None:
            return
        names = bare_names(self._shadow, parameters)
        for name, average in self._shadow.items():
            self._shadow[name] = average.to(parameters[names[name]].device)
        for name, average in self._buffers.items():
            self._buffers[name] = average.to(buffers[name].device)

    def _refuse_applied(self, action: str) -> None:
        if self.is_applied:
            raise RuntimeError(
                f"{action}() while the averages are in the model would take them for its weights: "
                "restore() first"
            )
