"""A model with all that moving averages have to tell apart, and what training does to it."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Tied weights, buffers of every kind, a frozen parameter."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4, dtype=dtype)
        self.norm = nn.BatchNorm1d(4, dtype=dtype)
        self.head = nn.Linear(4, 5, bias=False, dtype=dtype)
        self.head.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False)
        self.register_buffer("mask", torch.full((2, 2), -torch.inf, dtype=dtype).triu(1))
        self.register_buffer("scratch", torch.zeros(3, dtype=dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.embed(x)))
        return result


def change(model: nn.Module, seed: int) -> None:
    """Move every parameter and floating buffer that is not constant, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise.to(parameter.device, parameter.dtype))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                assert module.running_mean is not None
                assert module.num_batches_tracked is not None
                module.running_mean.add_(torch.randn(4, generator=generator))
                module.num_batches_tracked.add_(7)


def bits(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    return {
        name: bytes(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        for name, value in tensors.items()
    }
