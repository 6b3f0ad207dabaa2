"""A training script's own CheckpointManager, of the kind that people have copied from a guide.

What it writes and reads is what such scripts write and read: torch.save of a dict, numpy's state as it is, a
history with one list a metric. Written anew from a description of them.
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass
class CheckpointConfig:
    checkpoint_dir: str = "checkpoints"
    save_total_limit: int = 5
    save_best_only: bool = False
    metric_name: str = "val_loss"
    metric_mode: str = "min"
    save_optimizer: bool = True
    save_rng_state: bool = True


class CheckpointManager:
    def __init__(
        self, config: Any, model: Any, optimizer: Any, scheduler: Any, scaler: Any = None
    ) -> None:
        self.config, self.model, self.optimizer = config, model, optimizer
        self.scheduler, self.scaler = scheduler, scaler
        self.checkpoint_dir = Path(config.checkpoint_dir)
        self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        self.best_metric = float("inf") if config.metric_mode == "min" else float("-inf")
        self.metrics_history: dict[str, list[float]] = {}
        found = self.checkpoint_dir.glob("checkpoint_*.pt")
        self.checkpoints = sorted(found, key=lambda path: path.stat().st_mtime)

    def save(
        self, epoch: int, step: int, metrics: Any, model_config: Any = None, extra_state: Any = None
    ) -> Path | None:
        value = metrics.get(self.config.metric_name, 0)
        is_min = self.config.metric_mode == "min"
        is_best = value < self.best_metric if is_min else value > self.best_metric
        if self.config.save_best_only and not is_best:
            return None
        if is_best:
            self.best_metric = value
        for name, one in metrics.items():
            self.metrics_history.setdefault(name, []).append(one)
        contents = {
            "epoch": epoch,
            "global_step": step,
            "model_state_dict": self.model.state_dict(),
            "best_metric": self.best_metric,
            "metrics": metrics,
            "metrics_history": self.metrics_history,
            "timestamp": datetime.now().isoformat(),  # noqa: DTZ005
        }
        if self.config.save_optimizer:
            contents["optimizer_state_dict"] = self.optimizer.state_dict()
        for name in ("scheduler", "scaler"):
            if getattr(self, name) is not None:
                contents[f"{name}_state_dict"] = getattr(self, name).state_dict()
        if self.config.save_rng_state:
            contents["rng_states"] = rng_states()
        if model_config is not None:
            contents["model_config"] = model_config
        if extra_state is not None:
            contents["extra_state"] = extra_state
        path = self.checkpoint_dir / f"checkpoint_epoch{epoch:04d}_step{step:08d}.pt"
        torch.save(contents, path.with_suffix(".pt.tmp"))
        os.replace(path.with_suffix(".pt.tmp"), path)
        self.checkpoints.append(path)
        if is_best:
            shutil.copy(path, self.checkpoint_dir / "best_model.pt")
        while len(self.checkpoints) > self.config.save_total_limit:
            self.checkpoints.pop(0).unlink(missing_ok=True)
        return path

    def load(
        self, checkpoint_path: Any = None, load_optimizer: bool = True, load_rng_state: bool = True
    ) -> dict[str, Any]:
        path: Any = checkpoint_path or self.get_latest_checkpoint()
        contents: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(contents["model_state_dict"])
        if load_optimizer and "optimizer_state_dict" in contents:
            self.optimizer.load_state_dict(contents["optimizer_state_dict"])
        if self.scheduler is not None and "scheduler_state_dict" in contents:
            self.scheduler.load_state_dict(contents["scheduler_state_dict"])
        if self.scaler is not None and "scaler_state_dict" in contents:
            self.scaler.load_state_dict(contents["scaler_state_dict"])
        if load_rng_state and "rng_states" in contents:
            set_rng_states(contents["rng_states"])
        self.best_metric = contents.get("best_metric", self.best_metric)
        self.metrics_history = contents.get("metrics_history", {})
        return contents

    def load_best(self, **options: Any) -> dict[str, Any]:
        return self.load(self.checkpoint_dir / "best_model.pt", **options)

    def get_latest_checkpoint(self) -> Path | None:
        return self.checkpoints[-1] if self.checkpoints else None

    def get_best_checkpoint(self) -> Path | None:
        path = self.checkpoint_dir / "best_model.pt"
        return path if path.exists() else None


def resume_training(
    checkpoint_path: Any, model: Any, optimizer: Any, scheduler: Any, scaler: Any = None
) -> dict[str, Any]:
    contents = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
    model.load_state_dict(contents["model_state_dict"])
    if "optimizer_state_dict" in contents:
        optimizer.load_state_dict(contents["optimizer_state_dict"])
    if scheduler is not None and "scheduler_state_dict" in contents:
        scheduler.load_state_dict(contents["scheduler_state_dict"])
    if scaler is not None and "scaler_state_dict" in contents:
        scaler.load_state_dict(contents["scaler_state_dict"])
    if "rng_states" in contents:
        set_rng_states(contents["rng_states"])
    return {
        "epoch": contents["epoch"],
        "global_step": contents["global_step"],
        "best_metric": contents.get("best_metric"),
        "metrics_history": contents.get("metrics_history", {}),
    }


def rng_states() -> dict[str, Any]:
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_rng_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
