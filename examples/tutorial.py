"""From a checkpoint to a model that works: rebuild, check, resume, generate.

    python examples/tutorial.py [CHECKPOINT.pt]

The checkpoint is one plain file, {"model_state", "gpt_cfg", "step", "val_loss"}, which torch.load reads too.
If there is none, a small GPT is trained for a moment and saved first. To copy: `save` and `load`.
"""

import argparse
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastckpt
from gpt import GPT, GPTConfig
from train import Text

SEED = 1337
CONFIG = GPTConfig(sequence_len=64, n_layer=2, n_head=2, n_kv_head=2, n_embd=64)
FIRST_STEPS, MORE_STEPS = 30, 20
# A batch of its own, far from where training begins.
VALIDATION_POSITION = 2 << 20
PROMPT, NEW_TOKENS = b"def __init__(self", 60
DEFAULT_PATH = Path(__file__).resolve().parents[1] / "build/examples/tutorial.pt"


def make_model(config: GPTConfig) -> GPT:
    """Make a model with fresh weights; they are replaced where a checkpoint is loaded."""
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    model.init_weights()
    return model


def train(model: GPT, text: Text, steps: int) -> None:
    """Train for some steps, on the text from where it is."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        model(*text.next_batch(model.config.sequence_len)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def validation_loss(model: GPT) -> float:
    """Return the loss on text that was not trained on, in nats for each byte."""
    text = Text()
    text.position = VALIDATION_POSITION
    model.eval()
    return float(model(*text.next_batch(model.config.sequence_len)))


def save(path: Path, model: GPT, step: int) -> None:
    """Save the checkpoint; it is on the disk, whole, when this returns."""
    checkpoint = {
        "model_state": model.state_dict(),
        "gpt_cfg": asdict(model.config),
        "step": step,
        "val_loss": validation_loss(model),
    }
    fastckpt.save(checkpoint, path)


def load(path: Path) -> tuple[GPT, dict[str, Any]]:
    """Rebuild the model from its own config, and check that it computes.

    Every byte of the file is compared with its checksum; a key or a shape that does not fit raises.
    """
    checkpoint: dict[str, Any] = fastckpt.load(path)
    model = make_model(GPTConfig(**checkpoint["gpt_cfg"]))
    model.load_state_dict(checkpoint["model_state"], strict=True)
    model.eval()
    with torch.no_grad():
        logits = model(torch.zeros(1, 8, dtype=torch.int64))
    if logits.shape != (1, 8, model.config.vocab_size) or not logits.isfinite().all():
        raise RuntimeError(f"{path}: the rebuilt model gives {tuple(logits.shape)}, or no numbers")
    return model, checkpoint


@torch.no_grad()
def generate(model: GPT, prompt: bytes, new_tokens: int) -> bytes:
    """Continue a text, drawing byte by byte. In eval mode: dropout would change it."""
    model.eval()
    generator = torch.Generator().manual_seed(SEED)
    tokens: Tensor = torch.tensor([list(prompt)])
    for _ in range(new_tokens):
        window = tokens[:, -model.config.sequence_len :]
        likelihood = model(window)[:, -1].softmax(-1)
        tokens = torch.cat((tokens, likelihood.multinomial(1, generator=generator)), dim=1)
    return bytes(tokens[0].tolist())


def main() -> None:
    """Do all of it once."""
    parser = argparse.ArgumentParser(description="Rebuild a model from one checkpoint file.")
    parser.add_argument("checkpoint", type=Path, nargs="?", default=DEFAULT_PATH)
    path: Path = parser.parse_args().checkpoint
    torch.manual_seed(SEED)

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = make_model(CONFIG)
        train(fresh, Text(), FIRST_STEPS)
        save(path, fresh, FIRST_STEPS)
        print(f"no checkpoint at {path}: trained {FIRST_STEPS} steps and saved one")

    model, checkpoint = load(path)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    nbytes = path.stat().st_size
    print(f"step {checkpoint['step']}, validation loss {checkpoint['val_loss']:.3f}")
    print(f"{parameters:,} parameters, {nbytes:,} bytes on the disk; forward pass checked")
    if not math.isclose(validation_loss(model), checkpoint["val_loss"], rel_tol=1e-5):
        raise RuntimeError("the rebuilt model is not the one that was saved")

    text = Text()
    text.position = checkpoint["step"] * model.config.sequence_len * 8
    train(model, text, MORE_STEPS)
    save(path, model, checkpoint["step"] + MORE_STEPS)
    model, checkpoint = load(path)
    print(f"resumed to step {checkpoint['step']}: validation loss {checkpoint['val_loss']:.3f}")
    print(repr(generate(model, PROMPT, NEW_TOKENS)))


if __name__ == "__main__":
    main()
