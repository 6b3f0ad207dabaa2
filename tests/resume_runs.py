"""Small training runs that use everything a checkpoint holds; a module of its own for fresh processes.

    python -m tests.resume_runs whole DIR     # k steps, save, k more
    python -m tests.resume_runs resume DIR    # a process that was never there: resume, k more

Both write what they saw of the k last steps to DIR, number for number.
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

import fastckpt

STEPS = 7
_ROWS, _FEATURES = 24, 8
_BATCH = 6

_SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda o: schedules.StepLR(o, 3, 0.5),
    "CosineAnnealingLR": lambda o: schedules.CosineAnnealingLR(o, 2 * STEPS),
    "OneCycleLR": lambda o: schedules.OneCycleLR(o, 0.05, 2 * STEPS),
    "ReduceLROnPlateau": lambda o: schedules.ReduceLROnPlateau(o, factor=0.7, patience=1),
    "LambdaLR": lambda o: schedules.LambdaLR(o, lambda step: 0.9**step),
    "SequentialLR": lambda o: schedules.SequentialLR(
        o,
        [schedules.LinearLR(o, 0.1, 1.0, STEPS - 2), schedules.ExponentialLR(o, 0.9)],
        [STEPS + 1],
    ),
    "MultiStepLR": lambda o: schedules.MultiStepLR(o, [2, STEPS + 3], 0.3),
    "CosineAnnealingWarmRestarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 3, 2),
    "CyclicLR": lambda o: schedules.CyclicLR(o, 0.001, 0.02, 3, cycle_momentum=False),
    "ChainedScheduler": lambda o: schedules.ChainedScheduler(
        [schedules.ConstantLR(o, 0.5, STEPS + 2), schedules.ExponentialLR(o, 0.8)]
    ),
}
_OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
}


class Combination(NamedTuple):
    """One kind of run."""

    scheduler: str
    optimizer: str
    scaler: bool
    manager: bool

    def __str__(self) -> str:
        scaler = "scaler" if self.scaler else "no-scaler"
        return f"{self.scheduler}-{self.optimizer}-{scaler}-{'load' if self.manager else 'resume'}"


def combinations() -> list[Combination]:
    """Return all kinds; manager.load and resume_training take turns."""
    rest = itertools.product(_SCHEDULERS, _OPTIMIZERS, (False, True))
    return [
        Combination(scheduler, optimizer, scaler, number % 3 > 0)
        for number, (scheduler, optimizer, scaler) in enumerate(rest)
    ]


class TrainingRun:
    """A run with dropout, batch norm, AMP, an average of the weights, and five sources of chance."""

    def __init__(self, combination: Combination, directory: Path, seed: int) -> None:
        self.combination = combination
        # Each process has seeds of its own: what agrees afterwards comes from the file.
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the legacy generator is what many scripts use
        torch.manual_seed(seed)
        self.generators: dict[str, Any] = {
            "order": np.random.default_rng(seed),
            "augment": random.Random(seed),
            "loader": torch.Generator().manual_seed(seed),
        }
        data = torch.Generator().manual_seed(0)
        self.x = torch.randn(_ROWS, _FEATURES, generator=data)
        self.y = torch.randn(_ROWS, 1, generator=data)
        self.model = nn.Sequential(
            nn.Linear(_FEATURES, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(16, 1),
        )
        self.optimizer = _OPTIMIZERS[combination.optimizer](self.model.parameters())
        self.scheduler = _SCHEDULERS[combination.scheduler](self.optimizer)
        self.scaler = torch.amp.GradScaler(
            "cpu", init_scale=1024.0, growth_interval=3, enabled=combination.scaler
        )
        self.ema = torch.optim.swa_utils.AveragedModel(
            self.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        config = fastckpt.CheckpointConfig(directory / str(combination), metric_name="loss")
        self.manager = fastckpt.CheckpointManager(
            config,
            self.model,
            self.optimizer,
            self.scheduler,
            self.scaler,
            ema=self.ema,
            generators=self.generators,
        )

    def train(self, first: int) -> list[dict[str, Any]]:
        """Train some steps; return what was seen in each of them."""
        return [self._step(step) for step in range(first, first + STEPS)]

    def _step(self, step: int) -> dict[str, Any]:
        order = np.random.permutation(_ROWS)  # noqa: NPY002
        order = order[self.generators["order"].permutation(_ROWS)].tolist()
        random.shuffle(order)
        noise = self.generators["augment"].gauss(0, 0.1)
        more = torch.randperm(_ROWS, generator=self.generators["loader"])[:_BATCH].tolist()
        rows = [order[place] for place in more]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.combination.scaler):
            output = self.model(self.x[rows] + noise)
            loss = nn.functional.mse_loss(output.float(), self.y[rows])
        if step % 5 == 4:
            loss = loss * float("inf")  # the scaler steps back, and skips the step
        self.optimizer.zero_grad()
        if self.combination.scaler or step % 5 != 4:
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.ema.update_parameters(self.model)
        if isinstance(self.scheduler, schedules.ReduceLROnPlateau):
            self.scheduler.step(loss.detach())
        else:
            self.scheduler.step()
        return {
            "step": step,
            "rows": rows,
            "loss": float(loss).hex(),
            "lrs": [group["lr"].hex() for group in self.optimizer.param_groups],
            "groups": [_plain(group) for group in self.optimizer.param_groups],
            "scale": self.scaler.get_scale(),
        }

    def draws(self) -> list[Any]:
        """Draw from every source of chance."""
        return [
            random.random(),
            random.gauss(0, 1),
            np.random.standard_normal(3).tolist(),  # noqa: NPY002
            self.generators["order"].random(3).tolist(),
            self.generators["augment"].random(),
            torch.rand(3).tolist(),
            torch.rand(3, generator=self.generators["loader"]).tolist(),
        ]

    def states(self) -> dict[str, Any]:
        """Return all state, for a comparison bit by bit."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict(),
        }


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def train_whole(combination: Combination, directory: Path) -> dict[str, Any]:
    """Train, save, and train on as if nothing had been saved."""
    run = TrainingRun(combination, directory, seed=1)
    run.train(0)
    metrics = {"loss": torch.tensor(0.25), "lr": np.float64(0.5), "step_count": STEPS}
    run.manager.save(3, STEPS, metrics, {"features": _FEATURES}, {"position": 17})
    return {"seen": run.train(STEPS), "draws": run.draws(), "states": run.states()}


def resume(combination: Combination, directory: Path) -> dict[str, Any]:
    """Go on in a process that has never trained."""
    run = TrainingRun(combination, directory, seed=2)
    if combination.manager:
        resumed = run.manager.load()
    else:
        resumed = fastckpt.resume_training(
            run.manager.get_latest_checkpoint() or "",
            run.model,
            run.optimizer,
            run.scheduler,
            run.scaler,
            ema=run.ema,
            generators=run.generators,
        )
    seen = run.train(resumed["global_step"])
    return {
        "seen": seen,
        "draws": run.draws(),
        "states": run.states(),
        # The states are the live ones; they are compared above.
        "resumed": {
            key: resumed[key] for key in resumed if not key.endswith(("_dict", "rng_states"))
        },
        "skipped": resumed.skipped,
    }


def main() -> None:
    """Do all runs of one role."""
    role, directory = sys.argv[1], Path(sys.argv[2])
    # Sums in another order give other bits.
    torch.set_num_threads(1)
    work = {"whole": train_whole, "resume": resume}[role]
    results = {str(one): work(one, directory) for one in combinations()}
    states = {name: result.pop("states") for name, result in results.items()}
    torch.save(states, directory / f"{role}.pt")
    (directory / f"{role}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
