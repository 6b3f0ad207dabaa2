"""`EMAModel`: the averages, put into a model and taken out again, saved and resumed."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastckpt._bare_model import persistent_buffers, trainable_parameters, unwrap
from fastckpt._wording import some_names

from .averaging import copy_values, first_average, move_averages, move_buffers, mover
from .checks import check_same, check_shapes, check_unchanged, refuse_meta
from .originals import Originals

_STATE_KEYS = {"decay", "warmup", "use_buffers", "num_updates", "parameters", "buffers"}


class EMAModel:
    """Keep an exponential moving average of a model's trainable parameters.

    Each `update` moves every average by ``average += (1 - decay) * (weight - average)``; the averages begin
    at the weights that the model has when this is made. Frozen parameters (``requires_grad=False``) are
    not stored: their average is their value. Tied parameters are averaged once.

    The averages are detached copies. Weights narrower than 32 bits (bfloat16, float16, float8) are
    averaged in float32: at a decay of 0.9999 an update is smaller than half a unit in the last place of
    a bfloat16, and would be rounded away.

    Args:
        model: The model that trains. torch.compile and DistributedDataParallel may be around it, now or
            later, or in one process and not in another: the names of the averages are the bare model's.
        decay: Share of the old average that an update keeps, 0 to 1. At 0 the averages are the weights,
            at 1 they stay as they are, whatever the weights are, infinite ones included. In between,
            the average of a weight that was infinite or NaN once is never finite again.
        device: Where the averages live; None: with their parameters, also when these move. Another
            device than the model's (the CPU, say) spares its memory and costs a copy for each update.
        use_buffers: False: a model to which the averages are applied has its own buffers, as
            ``swa_utils.AveragedModel`` keeps a copy of them. True: floating buffers that the state dict
            holds are averaged as parameters are, and integer ones are those of the last update.
        warmup: Use ``min(decay, (1 + t) / (10 + t))`` for update number t, counted from 0, so that the
            first weights do not weigh for thousands of steps. The formula is that of TensorFlow's
            ``tf.train.ExponentialMovingAverage(num_updates=t)``.
        dtype: Floating dtype of all averages but those of complex weights; None: each weight's own, or
            float32 where that is narrower.

    Raises:
        ValueError: `decay` is out of range, no parameter is trainable, one is on the meta device, or
            `dtype` is not a floating one.

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
            raise ValueError(f"dtype must be a floating one, or None to choose, not {dtype}")
        self._model = unwrap(model)
        self._device = None if device is None else torch.device(device)
        self._dtype = dtype
        self._applied: Originals | None = None
        self.decay = decay
        #: Whether the decay is warmed up.
        self.warmup = warmup
        #: Whether floating buffers are averaged.
        self.use_buffers = use_buffers
        #: How many updates there have been.
        self.num_updates = 0
        self._parameters: dict[str, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}
        self.follow_model()
        if not self._parameters:
            raise ValueError("no parameter of the model is trainable: there is nothing to average")

    @property
    def decay(self) -> float:
        """Share of the old average that an update keeps, once it is warmed up."""
        return self._decay

    @decay.setter
    def decay(self, decay: float) -> None:
        # Written so that NaN fails.
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay must be 0 to 1, not {decay}")
        self._decay = float(decay)

    @property
    def next_decay(self) -> float:
        """The decay of the next update."""
        if not self.warmup:
            return self._decay
        return min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))

    @property
    def is_applied(self) -> bool:
        """Whether the averages are in a model now."""
        return self._applied is not None

    @torch.no_grad()
    def update(self, model: nn.Module | None = None) -> None:
        """Move the averages towards the weights; call it after each step of the optimizer.

        Args:
            model: A model with the same parameters; None: the one that this was made with.

        Raises:
            RuntimeError: The averages are in the model (`restore` first), or its parameters are no
                longer those that are averaged; the message names them.
        """
        self._refuse_applied("update")
        parameters, buffers = self._tensors_of(model)
        self._follow_device(parameters, buffers)
        move = mover(self.next_decay)
        move_averages(self._parameters, parameters, move)
        if self.use_buffers:
            move_buffers(self._buffers, buffers, move)
        self.num_updates += 1

    @torch.no_grad()
    def apply(self, model: nn.Module | None = None) -> None:
        """Put the averages into the model, and keep what was there for `restore`.

        The parameters stay the objects that they are; their values are exchanged in place. What is kept
        takes the memory of the model's trainable parameters and of all its buffers, on its device:
        buffers are kept too, so that what an evaluation or ``update_bn`` does to them is undone.

        Args:
            model: A model with the same parameters; None: the one that this was made with.

        Raises:
            RuntimeError: The averages are applied already, or the parameters are not those that are
                averaged.
        """
        if self._applied is not None:
            raise RuntimeError(
                "the averages are in the model already, and apply cannot be nested: restore() first"
            )
        target = self._model if model is None else unwrap(model)
        parameters, buffers = self._tensors_of(target)
        self._applied = Originals(target, parameters)
        try:
            copy_values(parameters, self._parameters)
            copy_values(buffers, self._buffers)
        except BaseException:
            self.restore()
            raise

    @torch.no_grad()
    def restore(self) -> None:
        """Put back, bit for bit, what `apply` has replaced.

        Raises:
            RuntimeError: The averages are not in a model.
        """
        if self._applied is None:
            raise RuntimeError("the averages are not in the model: apply() first")
        self._applied.put_back()
        self._applied = None

    @contextmanager
    def applied(self, model: nn.Module | None = None) -> Iterator[nn.Module]:
        """Have the averages in the model within a ``with`` block; an exception restores it too.

        Yields the bare model. For arguments and errors see `apply`.
        """
        self.apply(model)
        try:
            yield self._model if model is None else unwrap(model)
        finally:
            # The block may have restored by itself.
            if self._applied is not None:
                self.restore()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold: plain values and tensors, fit for weights_only=True.

        The keys are decay, warmup, use_buffers, num_updates, parameters and buffers (dicts of tensors).
        The tensors are the averages themselves, not copies, as in ``Module.state_dict``.
        """
        return {
            "decay": self._decay,
            "warmup": self.warmup,
            "use_buffers": self.use_buffers,
            "num_updates": self.num_updates,
            "parameters": dict(self._parameters),
            "buffers": dict(self._buffers),
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state, its decay included; every value is copied, bit for bit.

        Either all of it is taken over or, where an error is raised, nothing.

        Raises:
            RuntimeError: The averages are in the model.
            ValueError: It is not what `state_dict` returns, or of other parameters, shapes or dtypes; the
                message names them.
        """
        self._refuse_applied("load_state_dict")
        if state_dict.keys() != _STATE_KEYS:
            raise ValueError(
                f"not the state of an EMAModel: it has the keys {some_names(state_dict)}, "
                f"expected {', '.join(sorted(_STATE_KEYS))}"
            )
        if state_dict["use_buffers"] != self.use_buffers:
            raise ValueError(
                f"the state was made with use_buffers={state_dict['use_buffers']}, "
                f"and this EMAModel with use_buffers={self.use_buffers}"
            )
        check_same("parameter", self._parameters, state_dict["parameters"])
        check_same("buffer", self._buffers, state_dict["buffers"])
        num_updates = int(state_dict["num_updates"])
        self.decay = state_dict["decay"]
        self.warmup, self.num_updates = bool(state_dict["warmup"]), num_updates
        copy_values(self._parameters, state_dict["parameters"])
        copy_values(self._buffers, state_dict["buffers"])

    @torch.no_grad()
    def follow_model(self, model: nn.Module | None = None) -> None:
        """Take up the model's trainable parameters as they are now, after some were added or frozen.

        The averages of new ones begin at their value; those of parameters that are frozen or gone are
        dropped. The others are kept.
        """
        self._refuse_applied("follow_model")
        target = self._model if model is None else unwrap(model)
        parameters = trainable_parameters(target)
        buffers = persistent_buffers(target) if self.use_buffers else {}
        refuse_meta({**parameters, **buffers})
        self._parameters = {
            name: self._kept(self._parameters.get(name), value)
            for name, value in parameters.items()
        }
        self._buffers = {
            name: self._kept(self._buffers.get(name), value) for name, value in buffers.items()
        }

    def __repr__(self) -> str:
        """Say what is averaged."""
        return (
            f"EMAModel({len(self._parameters)} parameters, decay={self._decay}, "
            f"num_updates={self.num_updates})"
        )

    def _kept(self, average: Tensor | None, value: Tensor) -> Tensor:
        if average is not None and average.shape == value.shape:
            return average
        return first_average(value, self._device, self._dtype)

    def _tensors_of(self, model: nn.Module | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the model's parameters and buffers of which there are averages, checked."""
        target = self._model if model is None else unwrap(model)
        parameters = trainable_parameters(target)
        buffers = persistent_buffers(target) if self.use_buffers else {}
        check_unchanged(self._parameters, parameters, target)
        for kind, averages, values in (
            ("parameter", self._parameters, parameters),
            ("buffer", self._buffers, buffers),
        ):
            check_shapes(kind, averages, values)
        return parameters, buffers

    def _follow_device(
        self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> None:
        """Follow the model to another device, where no device was asked for."""
        if self._device is not None:
            return
        for averages, values in ((self._parameters, parameters), (self._buffers, buffers)):
            for name, value in values.items():
                if averages[name].device != value.device:
                    averages[name] = averages[name].to(value.device)

    def _refuse_applied(self, action: str) -> None:
        if self._applied is not None:
            raise RuntimeError(
                f"{action}() while the averages are in the model would take them for its weights: "
                "restore() first"
            )
