"""The guide's classes, written down from its description: what a script that was made for them expects.

They are short and trusting, on purpose: nothing is checked. They load with ``weights_only=False``, which was
torch's default when the guide was written.
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tests.guide_manager import rng_states
from torch import Tensor, nn

# The guide prints; what it prints is compared with our log.
said = logging.getLogger("guide")


class EMAModel:
    """Averages under the model's own names; each update makes new tensors."""

    def __init__(
        self, model: nn.Module, decay: float = 0.9999, device: torch.device | None = None
    ) -> None:
        self.model, self.decay, self.device = model, decay, device
        self.backup: dict[str, Tensor] = {}
        self.shadow = {name: value.clone().to(device) for name, value in self._weights().items()}

    def _weights(self) -> dict[str, Tensor]:
        return {n: p.data for n, p in self.model.named_parameters() if p.requires_grad}

    def update(self) -> None:
        for name, value in self._weights().items():
            if name in self.shadow:
                self.shadow[name] = self.decay * self.shadow[name] + (1 - self.decay) * value

    def apply(self) -> None:
        for name, value in self._weights().items():
            if name in self.shadow:
                self.backup[name] = value.clone()
                value.copy_(self.shadow[name])

    def restore(self) -> None:
        for name, value in self._weights().items():
            if name in self.backup:
                value.copy_(self.backup[name])
        self.backup = {}

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow.copy(), "decay": self.decay}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.shadow = state_dict["shadow"]
        self.decay = state_dict.get("decay", self.decay)


class ModelSelector:
    """Reads every checkpoint in full; the average is in float32."""

    @staticmethod
    def average_checkpoints(
        checkpoints: Sequence[Path],
        model: nn.Module,  # noqa: ARG004 - a reference, which is not even looked at
    ) -> dict[str, Tensor]:
        said.info("Averaging %d checkpoints...", len(checkpoints))
        loaded = [torch.load(path, map_location="cpu", weights_only=False) for path in checkpoints]
        states = [one["model_state_dict"] for one in loaded]
        return {
            key: torch.stack([state[key].float() for state in states]).mean(dim=0)
            for key in states[0]
        }

    @staticmethod
    def select_top_k_by_metric(
        checkpoints: Sequence[Path], metric_name: str = "val_loss", mode: str = "min", k: int = 5
    ) -> list[Path]:
        worst = float("inf") if mode == "min" else float("-inf")

        def value(path: Path) -> float:
            found = torch.load(path, map_location="cpu", weights_only=False).get("metrics", {})
            return float(found.get(metric_name, worst))

        return sorted(checkpoints, key=value, reverse=mode == "max")[:k]


class ModelExporter:
    """Keeps the weights and what is under ``model_config``."""

    @staticmethod
    def export_inference_checkpoint(
        checkpoint_path: str, output_path: str, include_config: bool = True
    ) -> None:
        whole = torch.load(checkpoint_path, map_location="cpu", weights_only=False)
        kept = ["model_state_dict", *(["model_config"] if include_config else [])]
        torch.save({key: whole[key] for key in kept if key in whole}, output_path)
        before, after = os.path.getsize(checkpoint_path), os.path.getsize(output_path)
        said.info("Exported inference checkpoint:")
        said.info("  Reduction: %.1f%%", (1 - after / before) * 100)


def checkpoint(path: Path, model: nn.Module, step: int, **more: Any) -> Path:
    """Write what the guide's manager writes."""
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    states = model.state_dict()
    saved = {name: value.clone() for name, value in states.items()}
    optimizer.step()
    with torch.no_grad():
        for name, value in states.items():
            value.copy_(saved[name])
    whole = {
        "epoch": step // 10,
        "global_step": step,
        "model_state_dict": model.state_dict(),
        "best_metric": 1.0,
        "metrics": {"val_loss": 1.0},
        "metrics_history": {"val_loss": [1.0]},
        "timestamp": "2026-01-01T00:00:00",
        "optimizer_state_dict": optimizer.state_dict(),
        "rng_states": rng_states(),
        **more,
    }
    torch.save(whole, path)
    return path
