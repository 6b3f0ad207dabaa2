"""Steps to be verified, and damage to them."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import torch


def write_step(directory: Path, step: int, ranks: Sequence[int] = ()) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    weights = {"wte": torch.arange(64.0), "head.weight": torch.ones(3, 5)}
    torch.save(weights, directory / f"model_{step:06d}.pt")
    (directory / f"meta_{step:06d}.json").write_text(json.dumps({"step": step}, indent=2))
    for rank in ranks:
        torch.save({"state": {0: {"exp_avg": torch.zeros(9)}}}, shard(directory, step, rank))


def shard(directory: Path, step: int, rank: int) -> Path:
    return directory / f"optim_{step:06d}_rank{rank}.pt"


def flip_bit(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def flip_payload(path: Path, payload: bytes) -> None:
    flip_bit(path, 8 * path.read_bytes().index(payload))


WTE_BYTES = struct.pack("<64f", *range(64))
