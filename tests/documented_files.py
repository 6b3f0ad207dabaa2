"""The files and names that blocks of the pages need and do not show: `<!-- setup: NAME -->`.

Each function fills the present directory, which is new and empty, and may put names into the namespace of the
page. What is on a page in figures is not what is here: that is as small as it can be.
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import os
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastckpt
from fastckpt._steps import save_id as save_id_module

Namespace = dict[str, Any]
SETUPS: dict[str, Callable[[Namespace], None]] = {}


def setup(name: str) -> Callable[[Callable[[Namespace], None]], Callable[[Namespace], None]]:
    """Make a function known by the name that the pages use."""

    def register(function: Callable[[Namespace], None]) -> Callable[[Namespace], None]:
        SETUPS[name] = function
        return function

    return register


# What runs are made of.


def gpt_weights(
    width: int, layers: int, vocab: int, *, embedding: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Make the state dict of a GPT, with the names of nanochat; weights are random."""
    state = {"transformer.wte.weight": torch.randn(vocab, width).to(embedding)}
    for layer in range(layers):
        for name in ("c_q", "c_k", "c_v", "c_proj"):
            state[f"transformer.h.{layer}.attn.{name}.weight"] = torch.randn(width, width)
        state[f"transformer.h.{layer}.mlp.c_fc.weight"] = torch.randn(4 * width, width)
        state[f"transformer.h.{layer}.mlp.c_proj.weight"] = torch.randn(width, 4 * width)
    state["lm_head.weight"] = torch.randn(vocab, width)
    state["resid_lambdas"] = torch.ones(layers)
    state["x0_lambdas"] = torch.ones(layers)
    return state


def save_step(
    directory: str,
    step: int,
    model: dict[str, Tensor],
    meta: dict[str, Any] | None = None,
    *,
    ranks: Sequence[int] = (0,),
    world_size: int = 1,
    optimizer: bool = True,
) -> None:
    """Save a step of a run; ranks that are left out never come to it."""
    with save_id_module.agreed(1_000_000 + step, world_size):
        for rank in sorted(ranks, reverse=True):
            shard = {"exp_avg": torch.randn(64)} if optimizer else None
            fastckpt.save_checkpoint(
                directory, step, model, shard, {"step": step, **(meta or {})}, rank=rank
            )


def flip_bit(path: str, record: str) -> None:
    """Flip a bit in the middle of a record of an archive."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{Path(path).stem}/{record}")
    with open(path, "r+b") as file:
        # The last four bytes of a local header are the lengths of name and extra field.
        file.seek(entry.header_offset + 26)
        payload = entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
        file.seek(payload + entry.file_size // 2)
        (value,) = file.read(1)
        file.seek(payload + entry.file_size // 2)
        file.write(bytes([value ^ 1]))


# Directories of nanochat.


@setup("a run whose newest model is damaged")
def damaged_run(_: Namespace) -> None:
    for step in (1200, 1300):
        save_step("runs/d12", step, gpt_weights(16, 6, 64))
    flip_bit("runs/d12/model_001300.pt", "data/23")


@setup("a run of three steps")
def run_of_three_steps(_: Namespace) -> None:
    for step, loss in ((100, 0.9), (200, 0.8), (300, 0.85)):
        save_step("runs/d12", step, gpt_weights(16, 2, 64), {"val_bpb": loss})


@setup("two steps with other weights")
def two_steps(_: Namespace) -> None:
    names = [
        f"transformer.h.{layer}.{name}.weight"
        for layer in (0, 1)
        for name in ("attn.c_q", "attn.c_proj", "mlp.c_fc")
    ]
    # None so large that a small change would be rounded away.
    model = {name: torch.rand(64, 64) for name in names}
    model["lm_head.weight"] = torch.rand(500, 64)
    model["x0_lambdas"] = torch.ones(2)
    save_step("runs/d12", 100, model, {"val_bpb": 0.9}, optimizer=False)
    changed = {
        name: tensor + (0.01 * torch.randn_like(tensor) if tensor.dim() > 1 else 0)
        for name, tensor in model.items()
    }
    save_step("runs/d12", 200, changed, {"val_bpb": 0.8}, optimizer=False)


@setup("a run of two ranks, killed while step 1200 was saved")
def run_of_two_ranks(_: Namespace) -> None:
    losses = {200: 0.93, 400: 0.81, 600: 0.85, 800: 0.84, 1000: 0.83}
    for step, loss in losses.items():
        save_step(
            "runs/d12", step, gpt_weights(16, 1, 64), {"val_bpb": loss}, ranks=(0, 1), world_size=2
        )
    save_step("runs/d12", 1200, gpt_weights(16, 1, 64), {"val_bpb": 0.82}, world_size=2)


@setup("the same run from step 400 on, every 400 steps")
def run_every_400_steps(namespace: Namespace) -> None:
    run_of_two_ranks(namespace)
    for path in (*Path("runs/d12").glob("*_000200*"), *Path("runs/d12").glob("*_000600*")):
        path.unlink()


@setup("the same run, one shard of step 800 damaged")
def run_with_a_damaged_shard(namespace: Namespace) -> None:
    run_of_two_ranks(namespace)
    flip_bit("runs/d12/optim_000800_rank1.pt", "data/0")


@setup("two runs, the newest step of one is torn")
def two_runs(_: Namespace) -> None:
    for directory, layers, losses in (
        ("runs/d4", 4, (1.2137, 1.1394, 1.0991)),
        ("runs/d6", 6, (1.1052, 1.0309, 0.9906)),
    ):
        for number, loss in enumerate(losses, 1):
            shown = directory == "runs/d4" and number == 3
            width, vocab = (256, 8192) if shown else (16, 64)
            model = gpt_weights(width, layers, vocab, embedding=torch.bfloat16)
            meta = nanochat_meta(layers, number, loss)
            save_step(directory, 500 * number, model, meta)
    os.unlink("runs/d6/optim_001500_rank0.pt")


def nanochat_meta(layers: int, number: int, loss: float) -> dict[str, Any]:
    """Make what the training script of nanochat puts beside a step."""
    seconds = 123.4 if layers == 4 else 185.1
    return {
        "val_bpb": loss,
        "model_config": {
            "sequence_len": 2048,
            "vocab_size": 8192,
            "n_layer": layers,
            "n_head": layers,
            "n_kv_head": layers,
            "n_embd": 64 * layers,
        },
        "user_config": {"run": "dummy", "depth": layers},
        "device_batch_size": 32,
        "max_seq_len": 2048,
        "total_batch_size": 524288,
        "dataloader_state_dict": {"pq_idx": 3, "rg_idx": 4},
        "loop_state": {
            "min_val_bpb": loss,
            "smooth_train_loss": 2.68,
            "total_training_time": round(seconds * number, 1),
        },
        **({"core_metric": 0.1822} if number == 3 else {}),
    }


# Single files, and what a training script has at hand.


@setup("a damaged file")
def damaged_file(_: Namespace) -> None:
    weights = {f"h.{number}.w": torch.randn(100, 30) for number in range(4)}
    fastckpt.save(weights, "model_000100.pt")
    flip_bit("model_000100.pt", "data/1")


class TiedGPT(nn.Module):
    """Enough of a GPT for a state dict of 74 tensors, two of which are the same."""

    def __init__(self, width: int, vocab: int) -> None:
        super().__init__()
        self.wte = nn.utils.skip_init(nn.Embedding, vocab, width)
        self.h = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(6)) for _ in range(12)
        )
        self.lm_head = nn.utils.skip_init(nn.Linear, width, vocab, bias=False)
        self.lm_head.weight = self.wte.weight


@setup("a checkpoint of a manager with moving averages")
def managed_checkpoint(_: Namespace) -> None:
    model = TiedGPT(width=64, vocab=75_000)
    nn.init.ones_(model.wte.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ema = fastckpt.EMAModel(model)
    config = fastckpt.CheckpointConfig("run", metric_name="val_loss")
    manager = fastckpt.CheckpointManager(config, model, optimizer, None, ema=ema)
    path = manager.save(1, 100, {"val_loss": 2.5}, model_config={"width": 64})
    assert path is not None
    for name in (path.name, "checkpoint.pt"):
        os.link(path, name)


@setup("a training loop")
def training_loop(namespace: Namespace) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
    x = torch.randn(16, 4)
    target = x.sum(1, keepdim=True)

    def train_one_step(*_: Any) -> float:
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        return float(loss.detach())

    @torch.no_grad()
    def evaluate(*_: Any) -> float:
        return float((model(x) - target).square().mean())

    namespace.update(
        torch=torch,
        fastckpt=fastckpt,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler("cpu"),
        x=x,
        batch=x,
        loader=[x] * 3,
        epoch=0,
        last=1000,
        path="checkpoint.pt",
        train_one_step=train_one_step,
        train_step=train_one_step,
        evaluate=evaluate,
    )


# What fails.


@setup("files and objects that fail")
def failing_files(namespace: Namespace) -> None:
    training_loop(namespace)
    damaged_run(namespace)
    os.makedirs("runs/empty")
    save_step("runs/d20", 1000, gpt_weights(16, 1, 64), ranks=(0, 1), world_size=2)
    save_step("runs/d20", 1200, gpt_weights(16, 1, 64), world_size=2)
    Path("script.py").write_text("import torch\n")
    whole = Path("runs/d12/model_001200.pt").read_bytes()
    Path("truncated.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"state_dict": {}, "hyper_parameters": Fraction(1, 3)}, "objects.pt")
    fastckpt.save({"step": 1, "names": ["a"]}, "numbers.pt")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), "program.pt")
    torch.save({"w": torch.ones(2)}, "old.pt", _use_new_zipfile_serialization=False)
    manager = fastckpt.CheckpointManager("runs/a", namespace["model"], namespace["optimizer"])
    manager.save(epoch=1, step=100, metrics={"val_loss": 2.5})
    wider = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    namespace.update(
        manager=manager,
        wider=wider,
        sgd=torch.optim.SGD(namespace["model"].parameters(), lr=0.1, momentum=0.9),
        Path=Path,
    )
