"""Checkpoints to be looked into, and the looking."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

import fastckpt
from fastckpt import FileContents
from fastckpt._inspect.run_report import DirectoryContents


def inspected(path: Path) -> FileContents:
    contents = fastckpt.inspect(path)
    assert isinstance(contents, FileContents)
    return contents


def saved(root: Any, path: Path) -> FileContents:
    torch.save(root, path)
    return inspected(path)


def inspected_directory(path: Path) -> DirectoryContents:
    contents = fastckpt.inspect(path)
    assert isinstance(contents, DirectoryContents)
    return contents


def model() -> OrderedDict[str, torch.Tensor]:
    return OrderedDict(
        [
            ("transformer.wte.weight", torch.ones(8, 4, dtype=torch.bfloat16)),
            ("transformer.h.0.weight", torch.ones(4, 4)),
            ("lm_head.weight", torch.ones(8, 4)),
        ]
    )


def managed(step: int, epoch: int = 1, **metrics: Any) -> dict[str, Any]:
    """Make a checkpoint with the keys of `CheckpointManager`."""
    weights = model()
    state = {
        number: {"step": torch.tensor(1.0), "exp_avg": torch.zeros_like(weight)}
        for number, weight in enumerate(weights.values())
    }
    groups = [{"lr": 0.5, "betas": (0.9, 0.95), "params": [0, 1, 2]}]
    return {
        "epoch": epoch,
        "global_step": step,
        "model_state_dict": weights,
        "optimizer_state_dict": {"state": state, "param_groups": groups},
        "scheduler_state_dict": {"last_epoch": step},
        "metrics": metrics,
        "metrics_history": [{"epoch": epoch, "step": step, **metrics}],
        "rng_states": {"python": (3, tuple(range(625)), None), "torch": torch.zeros(16)},
        "config": {"metric_name": "val_loss", "save_total_limit": 5},
        "model_config": {"n_layer": 12, "dtype": torch.bfloat16},
    }
