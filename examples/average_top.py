"""Average the best five checkpoints of a run, and compare with the best single one on text that neither saw.

    python -m examples.average_top DIRECTORY

Trains first if the directory has no checkpoints. The validation split chooses the five, the test split judges:
whatever was used to choose looks better than it is.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
from examples.gpt import GPT, GPTConfig
from examples.train import Text
from examples.tutorial import make_model, validation_loss

import fastckpt
from fastckpt import CheckpointConfig, CheckpointManager, ModelSelector

SEED = 1337
CONFIG = GPTConfig(sequence_len=64, n_layer=2, n_head=2, n_kv_head=2, n_embd=64)
STEPS, SAVE_EVERY, BEST = 80, 5, 5
# Bytes of the text that are neither trained on nor validated with.
TEST_POSITION, TEST_BATCHES = 3 << 20, 8


def train(directory: Path) -> None:
    """Train a small GPT, keeping every checkpoint."""
    torch.manual_seed(SEED)
    model = make_model(CONFIG)
    # A constant learning rate: the weights wander around a minimum, and their mean is nearer to it.
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    config = CheckpointConfig(directory, save_total_limit=None, save_every_steps=SAVE_EVERY)
    manager = CheckpointManager(config, model, optimizer, scheduler=None)
    text = Text()
    for step in range(1, STEPS + 1):
        model.train()
        model(*text.next_batch(CONFIG.sequence_len)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % SAVE_EVERY == 0:
            metrics = {"val_loss": validation_loss(model)}
            manager.save(0, step, metrics, model_config=asdict(CONFIG))


@torch.no_grad()
def test_loss(model: GPT) -> float:
    """Return the loss on the test split, in nats for each byte."""
    text = Text()
    text.position = TEST_POSITION
    model.eval()
    losses = [model(*text.next_batch(CONFIG.sequence_len)) for _ in range(TEST_BATCHES)]
    return float(torch.stack(losses).mean())


def main() -> None:
    """Choose, average, compare."""
    parser = argparse.ArgumentParser(description="Average the best checkpoints of a run.")
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory
    if not any(directory.glob("checkpoint_*.pt")):
        train(directory)

    # Reads the metrics of each checkpoint, and none of its tensors.
    chosen = ModelSelector.select_top_k_by_metric(directory, "val_loss", "min", BEST)
    print("by val_loss:", ", ".join(Path(path).stem for path in chosen))
    model = make_model(CONFIG)
    model.load_state_dict(fastckpt.load(chosen[0])["model_state_dict"])
    single = test_loss(model)
    # In float64, tensor by tensor.
    model.load_state_dict(ModelSelector.average_checkpoints(chosen, model))
    average = test_loss(model)
    print(f"test loss of the best one: {single:.4f}")
    print(f"test loss of the average:  {average:.4f} ({average - single:+.4f})")


if __name__ == "__main__":
    main()
