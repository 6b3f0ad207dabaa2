"""Every kind of random number generator, what is drawn from them, and their states through a file."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastckpt

BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")


def through_a_file(states: dict[str, Any], directory: Path) -> Any:
    fastckpt.save(states, directory / "rng.pt")
    return torch.load(directory / "rng.pt", weights_only=True)


def draw_all(generators: dict[str, Any]) -> list[Any]:
    """Draw from everything, also what keeps a number for the next time."""
    drawn: list[Any] = [random.random(), random.gauss(0, 1), random.getrandbits(70)]
    drawn += [np.random.standard_normal(3).tolist(), np.random.randint(0, 99, 3).tolist()]  # noqa: NPY002
    drawn += [torch.rand(3).tolist(), torch.randn(1).item(), torch.randperm(5).tolist()]
    for generator in generators.values():
        if isinstance(generator, torch.Generator):
            drawn.append(torch.rand(3, generator=generator).tolist())
        elif isinstance(generator, random.Random):
            drawn.append([generator.gauss(0, 1), generator.random()])
        else:
            drawn.append(
                [generator.random(3).tolist(), generator.integers(0, 9, 3, "uint8").tolist()]
            )
    return drawn


def make_generators(seed: int) -> dict[str, Any]:
    made = {name: np.random.Generator(getattr(np.random, name)(seed)) for name in BIT_GENERATORS}
    return made | {"torch": torch.Generator().manual_seed(seed), "python": random.Random(seed)}
