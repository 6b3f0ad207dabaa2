"""A whole training loop with CheckpointManager: what is saved, what is kept, and going on exactly.

    python -m examples.manager_loop DIRECTORY [--steps 60]

Kill it whenever you like and start it again: it goes on from the newest good checkpoint, and its losses are bit
for bit those of a run that nobody killed. SIGTERM makes it save and end at the next step.
"""

import argparse
import logging
from dataclasses import asdict
from pathlib import Path

import torch
from examples.gpt import GPTConfig
from examples.train import Text
from examples.tutorial import make_model, validation_loss

from fastckpt import CheckpointConfig, CheckpointManager

SEED = 1337
CONFIG = GPTConfig(sequence_len=64, n_layer=2, n_head=2, n_kv_head=2, n_embd=64, dropout=0.1)
EVALUATE_EVERY = 5


def main() -> None:
    """Train to the end, from wherever the directory is."""
    parser = argparse.ArgumentParser(description="Train a small GPT with a CheckpointManager.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Sums in another order give other bits: one thread, whatever else the machine is doing.
    torch.set_num_threads(1)
    torch.manual_seed(SEED)

    model = make_model(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=arguments.steps)
    config = CheckpointConfig(
        arguments.directory, save_total_limit=3, save_every_steps=10, metric_name="val_loss"
    )
    manager = CheckpointManager(config, model, optimizer, scheduler)
    text, first, metrics = Text(), 0, {}
    if manager.get_latest_checkpoint() is not None:
        resumed = manager.load()
        first, metrics = resumed["global_step"], resumed["metrics"]
        text.position = resumed["extra_state"]["position"]
        print(f"resumed at step {first}, best val_loss {resumed['best_metric']:.4f}", flush=True)

    with manager.preemption() as preemption:
        for step in range(first + 1, arguments.steps + 1):
            model.train()
            loss = model(*text.next_batch(CONFIG.sequence_len))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            scheduler.step()
            print(f"step {step} loss {loss.item().hex()}", flush=True)
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
    print(f"best: {manager.get_best_checkpoint()}")


if __name__ == "__main__":
    main()
