"""A whole training loop with CheckpointManager; a run that is stopped and resumed is the run that was not.

    python examples/manager_loop.py [DIRECTORY] [--steps 60]

With DIRECTORY it trains there. Kill it whenever you like and start it again: it resumes from the newest good
checkpoint. SIGTERM makes it save and end at the next step. Without DIRECTORY it trains once undisturbed and
once with a stop in the middle, and compares the losses bit for bit. To copy: `train`.
"""

import argparse
import logging
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from fastckpt import CheckpointConfig, CheckpointManager
from gpt import GPTConfig
from train import Text
from tutorial import make_model, validation_loss

SEED = 1337
CONFIG = GPTConfig(sequence_len=64, n_layer=2, n_head=2, n_kv_head=2, n_embd=64, dropout=0.1)
EVALUATE_EVERY = 5


def train(directory: Path, steps: int, stop_after: int | None = None) -> dict[int, str]:
    """Train to the end from wherever the directory is; return each step's loss, exactly."""
    torch.manual_seed(SEED)
    model = make_model(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    config = CheckpointConfig(
        directory, save_total_limit=3, save_every_steps=10, metric_name="val_loss"
    )
    manager = CheckpointManager(config, model, optimizer, scheduler)
    text, first, metrics, losses = Text(), 0, {}, {}
    if manager.get_latest_checkpoint() is not None:
        resumed = manager.load()
        first, metrics = resumed["global_step"], resumed["metrics"]
        text.position = resumed["extra_state"]["position"]
        print(f"resumed at step {first}, best val_loss {resumed['best_metric']:.4f}", flush=True)

    with manager.preemption() as preemption:
        for step in range(first + 1, steps + 1):
            model.train()
            loss = model(*text.next_batch(CONFIG.sequence_len))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            scheduler.step()
            losses[step] = loss.item().hex()
            print(f"step {step} loss {losses[step]}", flush=True)
            if step % EVALUATE_EVERY == 0:
                metrics = {"val_loss": validation_loss(model), "train_loss": loss.item()}
            if manager.should_save(step, metrics):
                manager.save(
                    epoch=0,
                    step=step,
                    metrics=metrics,
                    model_config=asdict(CONFIG),
                    extra_state={"position": text.position},
                )
            if preemption.requested:
                print(f"asked to end: saved step {step}", flush=True)
                break
            if step == stop_after:
                break
    print(f"best: {manager.get_best_checkpoint()}")
    return losses


def compare(work: Path, steps: int) -> bool:
    """Train undisturbed, and with a stop after five sixths; return whether the losses are the same."""
    undisturbed = train(work / "undisturbed", steps)
    # After the last save some steps are done twice.
    stopped = train(work / "stopped", steps, stop_after=steps * 5 // 6 + 1)
    resumed = train(work / "stopped", steps)
    same = {**stopped, **resumed} == undisturbed and min(resumed) <= max(stopped)
    print(
        f"stopped after step {max(stopped)}, resumed at step {min(resumed) - 1}: "
        f"all {steps} losses are {'bit for bit the same' if same else 'NOT the same'}"
    )
    return same


def main() -> int:
    """Train in the directory that is given, or show that resuming is exact."""
    parser = argparse.ArgumentParser(description="Train a small GPT with a CheckpointManager.")
    parser.add_argument("directory", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Sums in another order give other bits: one thread, whatever else the machine is doing.
    torch.set_num_threads(1)
    if arguments.directory is not None:
        train(arguments.directory, arguments.steps)
        return 0
    with tempfile.TemporaryDirectory() as work:
        return 0 if compare(Path(work), arguments.steps) else 1


if __name__ == "__main__":
    raise SystemExit(main())
