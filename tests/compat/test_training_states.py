"""What training leaves behind, with its nesting and its numbers of tensors."""

from __future__ import annotations

import io
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.archives import mask_serialization_id, torch_bytes, torch_writes_current_layout
from tests.specimens import assert_same, fill
from torch import nn

import fastckpt


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.register_buffer("mask", torch.arange(width) > 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        update: torch.Tensor = self.mlp(self.norm(x))
        return x + update


class Tied(nn.Module):
    """A model with nested blocks whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.blocks = nn.ModuleList([Block(16) for _ in range(3)])
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(x)
        return logits


def trained() -> tuple[Tied, torch.optim.AdamW]:
    torch.manual_seed(3)
    model = Tied()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "lr": 1e-2}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, amsgrad=True)
    for step in range(3):
        train(model, optimizer, step)
    return model, optimizer


def train(model: Tied, optimizer: torch.optim.AdamW, step: int) -> float:
    tokens = (torch.arange(24).view(2, 12) * 7 + step) % 50
    loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def adamw() -> Any:
    model, optimizer = trained()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "rng": torch.get_rng_state(),
        "step": 3,
    }


def muon() -> Any:
    """Make buffers as Muon keeps them: the momenta of equal shapes, stacked, and views of them."""
    state = {}
    for index, shape in enumerate([(12, 64, 64), (4, 64, 256), (1, 8, 8)]):
        stacked = fill(torch.float32, shape[0] * shape[1] * shape[2], seed=index).view(shape)
        state[index] = {
            "momentum_buffer": stacked,
            "second_momentum_buffer": stacked[..., :1].contiguous().to(torch.bfloat16),
            "rows": list(stacked.unbind(0)),
        }
    groups = [{"params": list(range(3)), "lr": 0.02, "momentum": 0.95, "ns_steps": 5}]
    return {"state": state, "param_groups": groups}


def a_thousand() -> Any:
    return {f"layer.{i}.weight": fill(torch.bfloat16, 50 + i, seed=i) for i in range(1000)}


STATES: list[Callable[[], Any]] = [adamw, muon, a_thousand]


@pytest.mark.parametrize("make", STATES)
def test_each_reads_what_the_other_writes(make: Callable[[], Any], tmp_path: Path) -> None:
    obj, path = make(), tmp_path / "archive.pt"
    fastckpt.save(obj, path)
    if torch_writes_current_layout():
        assert mask_serialization_id(path.read_bytes()) == mask_serialization_id(torch_bytes(obj))
    assert fastckpt.verify(path).ok
    for mmap in (False, True):
        assert_same(torch.load(path, mmap=mmap), obj)
        assert_same(fastckpt.load(path, mmap=mmap), obj)
    assert_zip_tools_accept(path)


def test_training_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    model, optimizer = trained()
    fastckpt.save(model.state_dict(), tmp_path / "model.pt")
    fastckpt.save(optimizer.state_dict(), tmp_path / "optim.pt")
    losses = [train(model, optimizer, step) for step in range(3, 8)]
    for mmap in (False, True):
        again, its_optimizer = trained()
        again.load_state_dict(fastckpt.load(tmp_path / "model.pt", mmap=mmap), assign=True)
        # The tie is the model's: load_state_dict assigns each name for itself.
        again.head.weight = again.embedding.weight
        for group, parameters in zip(
            its_optimizer.param_groups,
            (
                [p for p in again.parameters() if p.dim() > 1],
                [p for p in again.parameters() if p.dim() <= 1],
            ),
            strict=True,
        ):
            group["params"] = parameters
        its_optimizer.load_state_dict(fastckpt.load(tmp_path / "optim.pt", mmap=mmap))
        assert [train(again, its_optimizer, step) for step in range(3, 8)] == losses
    # Training changed neither file, mapped or not.
    assert fastckpt.verify(tmp_path).ok


@pytest.mark.slow
def test_seventy_thousand_tensors(tmp_path: Path) -> None:
    """More records than a zip directory without zip64 counts, and than a process may map."""
    obj = {f"t{i}": torch.full((i % 7,), float(i)) for i in range(70_000)}
    path = tmp_path / "archive.pt"
    fastckpt.save(obj, path)
    if torch_writes_current_layout():
        expected = torch_bytes(obj)
        assert path.stat().st_size == len(expected)
        # Without its last record: masking looks at each of 70,000 entries.
        assert path.read_bytes()[: len(expected) // 3] == expected[: len(expected) // 3]
    assert fastckpt.verify(path).ok
    for mmap in (False, True):
        found = fastckpt.load(path, mmap=mmap)
        assert list(found) == list(obj)
        assert torch.equal(torch.cat(list(found.values())), torch.cat(list(obj.values())))
    archive = zipfile.ZipFile(path)
    assert len(archive.infolist()) == 70_006
    assert archive.testzip() is None
    assert torch.equal(torch.load(path, weights_only=False)["t69999"], obj["t69999"])


def assert_zip_tools_accept(path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        assert archive.testzip() is None
    if shutil.which("unzip") is None:
        return
    result = subprocess.run(["unzip", "-tqq", path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
