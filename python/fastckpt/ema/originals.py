"""What a model held before the averages were put into it."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fastckpt._bare_model import parameters_named

from .averaging import copy_values


class Originals:
    """Copies of a model's trainable parameters and of all its buffers, taken when it is made."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        self._model = model
        self._parameters = {name: value.detach().clone() for name, value in parameters.items()}
        self._buffers = {
            name: (buffer, buffer._version, buffer.detach().clone())
            for name, buffer in model.named_buffers()
        }

    def put_back(self) -> None:
        """Write the copies back where a value has changed, bit for bit."""
        # By name: `model.to(...)` meanwhile makes new tensors of the buffers.
        copy_values(parameters_named(self._model, self._parameters), self._parameters)
        for name, now in self._model.named_buffers():
            buffer, version, kept = self._buffers.get(name, (now, now._version, now))
            # Not where nothing has changed: an expanded buffer cannot be written to.
            if now is not buffer or now._version != version:
                now.copy_(kept)
