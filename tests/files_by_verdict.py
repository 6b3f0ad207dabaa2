"""Files and directories of which the verdict is known."""

from __future__ import annotations

from pathlib import Path

import torch


def write_step(directory: Path, step: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    torch.save({"wte": torch.arange(64.0)}, directory / f"model_{step:06d}.pt")
    (directory / f"meta_{step:06d}.json").write_text("{}")


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def good(tmp_path: Path) -> Path:
    write_step(tmp_path, 1)
    return tmp_path


def damaged(tmp_path: Path) -> Path:
    write_step(tmp_path, 1)
    torch.save({"w": torch.zeros(4000)}, tmp_path / "model_000001.pt")
    damage(tmp_path / "model_000001.pt")
    return tmp_path


def incomplete(tmp_path: Path) -> Path:
    write_step(tmp_path, 1)
    (tmp_path / "meta_000001.json").unlink()
    return tmp_path


def not_found(tmp_path: Path) -> Path:
    return tmp_path / "nothing"


def unchecked(tmp_path: Path) -> Path:
    path = tmp_path / "old.pt"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    return path
