"""A small model, checkpoints of it, and what is compared with it."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastckpt import ModelExporter

CONFIG = {"n_layer": 2, "rates": [0.5, None], "name": "tiny"}


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.embed(x)))
        return result


def checkpoint(path: Path, model: nn.Module, **more: Any) -> Path:
    moments = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    saved = {
        "epoch": 3,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": {"state": moments, "moments": [torch.ones(1000)]},
        "model_config": CONFIG,
        **more,
    }
    torch.save(saved, path)
    return path


def make_model() -> Tiny:
    torch.manual_seed(0)
    return Tiny()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert torch.equal(found[name], value), name


def refused(source: Path, kind: type[Exception], message: str) -> None:
    output = source.parent.parent / "out.pt"
    with pytest.raises(kind, match=message):
        ModelExporter.import_safetensors(source, output)
    assert not output.exists()
