"""The values of a model from before the averages were put into it."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fastckpt._bare_model import bare_name, bare_names, parameters_named

from .averaging import copy_values


def put_back_parameters(model: nn.Module, backup: Mapping[str, Tensor]) -> None:
    """Write copies of parameters back, bit for bit; their names may be those in a wrapper."""
    present = {bare_name(name) for name, _ in model.named_parameters()}
    copies = {bare: backup[name] for name, bare in bare_names(backup, present).items()}
    # By name: `model.to(...)` meanwhile may have made new tensors of them.
    copy_values(parameters_named(model, copies), copies)


class SavedBuffers:
    """Copies of all buffers of a model, taken when this is made."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._buffers = {
            name: (buffer, buffer._version, buffer.detach().clone())
            for name, buffer in model.named_buffers()
        }

    def put_back(self) -> None:
        """Write the copies back where a value has changed, bit for bit."""
        for name, now in self.model.named_buffers():
            buffer, version, kept = self._buffers.get(name, (now, now._version, now))
            # Not where nothing has changed: an expanded buffer cannot be written to.
            if now is not buffer or now._version != version:
                now.copy_(kept)
