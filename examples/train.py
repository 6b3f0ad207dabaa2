"""Train the small GPT on Python's own source, with checkpoints through the nanochat functions.

    python examples/train.py [DIRECTORY] [--steps 48] [--save-every 8] [--resume]

Started again with `--resume`, it resumes from the last step that is whole in DIRECTORY. Each step's loss is
added to DIRECTORY/losses.jsonl, exactly (`float.hex`). To copy: `Run.save` and `Run.resume`.
"""

import argparse
import base64
import json
import logging
import sysconfig
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastckpt import find_last_good_step, load_checkpoint, save_checkpoint
from gpt import GPT, GPTConfig

SEED = 1337
BATCH_SIZE = 8
TEXT_NBYTES = 4 << 20
DEFAULT_DIRECTORY = Path(__file__).resolve().parents[1] / "build/examples/train"


class Text:
    """Batches of bytes, in reading order, from the standard library's source files."""

    def __init__(self) -> None:
        """Read the text; the same on each start, since the files are sorted by name."""
        library = Path(sysconfig.get_paths()["stdlib"])
        text = b"".join(path.read_bytes() for path in sorted(library.glob("*.py")))
        self.tokens = torch.frombuffer(bytearray(text[:TEXT_NBYTES]), dtype=torch.uint8)
        self.position = 0

    def next_batch(self, sequence_len: int) -> tuple[Tensor, Tensor]:
        """Return the next tokens and the tokens that follow each of them, both (batch, position)."""
        count = BATCH_SIZE * sequence_len
        if self.position + count + 1 > len(self.tokens):
            self.position = 0
        chunk = self.tokens[self.position : self.position + count + 1].long()
        self.position += count
        return chunk[:-1].view(BATCH_SIZE, -1), chunk[1:].view(BATCH_SIZE, -1)


class Run:
    """All that training changes: model, optimizer, place in the text, losses, RNG."""

    def __init__(self, directory: Path, config: GPTConfig) -> None:
        """Begin a new run."""
        self.directory = directory
        self.config = config
        self.text = Text()
        self.smooth_loss = 0.0
        self.seconds = 0.0
        torch.manual_seed(SEED)
        with torch.device("meta"):
            self.model = GPT(config)
        self.model.to_empty(device="cpu")
        self.model.init_weights()
        self.optimizer = self.make_optimizer()

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Make the optimizer over the model's present parameters."""
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        scalars = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": 0.1},
            {"params": scalars, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))

    def save(self, step: int) -> None:
        """Save everything as of `step` finished steps."""
        meta: dict[str, Any] = {
            "step": step,
            "val_bpb": None,
            "model_config": asdict(self.config),
            "user_config": {},
            "device_batch_size": BATCH_SIZE,
            "max_seq_len": self.config.sequence_len,
            "total_batch_size": BATCH_SIZE * self.config.sequence_len,
            "dataloader_state_dict": {"position": self.text.position},
            "loop_state": {
                "min_val_bpb": float("inf"),
                "smooth_train_loss": self.smooth_loss,
                "total_training_time": self.seconds,
                "rng_state": base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode(),
            },
        }
        save_checkpoint(
            self.directory, step, self.model.state_dict(), self.optimizer.state_dict(), meta
        )

    def resume(self, step: int) -> None:
        """Go back to where the run was when `step` was saved."""
        model_data, optimizer_data, meta = load_checkpoint(
            self.directory, step, "cpu", load_optimizer=True
        )
        self.model.load_state_dict(model_data, strict=True, assign=True)
        self.optimizer = self.make_optimizer()  # the loaded tensors are the parameters now
        self.optimizer.load_state_dict(optimizer_data)
        self.text.position = meta["dataloader_state_dict"]["position"]
        loop_state = meta["loop_state"]
        self.smooth_loss = loop_state["smooth_train_loss"]
        self.seconds = loop_state["total_training_time"]
        rng_state = bytearray(base64.b64decode(loop_state["rng_state"]))
        torch.set_rng_state(torch.frombuffer(rng_state, dtype=torch.uint8))

    def train_step(self) -> float:
        """Do one step of training; return its loss."""
        started = time.monotonic()
        loss = self.model(*self.text.next_batch(self.config.sequence_len))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.smooth_loss = 0.9 * self.smooth_loss + 0.1 * loss.item()
        self.seconds += time.monotonic() - started
        return float(loss.item())


def last_save(directory: Path) -> int:
    """Return the step to resume from; 0 if the run ended before its first save."""
    try:
        return find_last_good_step(directory)
    except FileNotFoundError:
        return 0


def train(run: Run, steps: int, save_every: int, losses: Path, *, resume: bool) -> None:
    """Train to step `steps`, from the last whole checkpoint or from the beginning."""
    first = last_save(run.directory) if resume else 0
    if first:
        run.resume(first)
    run.model.train()
    with open(losses, "a", encoding="utf-8") as file:
        for step in range(first + 1, steps + 1):
            loss = run.train_step()
            file.write(json.dumps({"step": step, "loss": loss.hex()}) + "\n")
            file.flush()
            if step % save_every == 0 or step == steps:
                run.save(step)


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description="Train the small GPT.")
    parser.add_argument("directory", type=Path, nargs="?", default=DEFAULT_DIRECTORY)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--save-every", type=int, default=8)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Sums in another order give other bits: one thread, whatever else the machine is doing.
    torch.set_num_threads(1)
    directory: Path = arguments.directory
    directory.mkdir(parents=True, exist_ok=True)
    run = Run(directory, GPTConfig(dropout=0.1))
    train(
        run,
        arguments.steps,
        arguments.save_every,
        directory / "losses.jsonl",
        resume=arguments.resume,
    )
    last = find_last_good_step(directory)
    print(f"last whole step in {directory}: {last}; smoothed loss there {run.smooth_loss:.3f}")
    print(f"fastckpt verify {directory}    # reads every byte of it")


if __name__ == "__main__":
    main()
