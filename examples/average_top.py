"""Average the best five checkpoints of a run, and compare with the best single one.

    python examples/average_top.py [DIRECTORY]

Trains first if DIRECTORY has no checkpoints. The validation split chooses the five, the test split judges:
whatever was used to choose looks better than it is.

The learning rate is constant and high. The weights then wander around a minimum, and their mean is nearer to
it than any of them. With a learning rate that has decayed to zero, the mean gains little or nothing: compare
before you deploy one. To copy: the end of `main`.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

import fastckpt
from fastckpt import CheckpointConfig, CheckpointManager, ModelSelector
from gpt import GPT, GPTConfig
from train import Text
from tutorial import VALIDATION_POSITION, make_model

SEED = 1337
CONFIG = GPTConfig(sequence_len=64, n_layer=2, n_head=2, n_kv_head=2, n_embd=64)
LEARNING_RATE = 1e-2
STEPS, FIRST_SAVE, SAVE_EVERY, BEST = 300, 200, 20, 5
# Bytes of the text that are neither trained on nor validated with.
TEST_POSITION = 3 << 20
BATCHES = 8
DEFAULT_DIRECTORY = Path(__file__).resolve().parents[1] / "build/examples/average_top"


@torch.no_grad()
def loss_from(model: GPT, position: int) -> float:
    """Return the loss on the text from a position on, in nats for each byte."""
    text = Text()
    text.position = position
    model.eval()
    losses = [model(*text.next_batch(CONFIG.sequence_len)) for _ in range(BATCHES)]
    return float(torch.stack(losses).mean())


def train(directory: Path) -> None:
    """Train a small GPT; keep every checkpoint of the last third."""
    torch.manual_seed(SEED)
    model = make_model(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    config = CheckpointConfig(directory, save_total_limit=None)
    manager = CheckpointManager(config, model, optimizer, scheduler=None)
    text = Text()
    for step in range(1, STEPS + 1):
        model.train()
        model(*text.next_batch(CONFIG.sequence_len)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step >= FIRST_SAVE and step % SAVE_EVERY == 0:
            metrics = {"val_loss": loss_from(model, VALIDATION_POSITION)}
            manager.save(0, step, metrics, model_config=asdict(CONFIG))


def main() -> None:
    """Choose, average, compare."""
    parser = argparse.ArgumentParser(description="Average the best checkpoints of a run.")
    parser.add_argument("directory", type=Path, nargs="?", default=DEFAULT_DIRECTORY)
    directory: Path = parser.parse_args().directory
    # Sums in another order give other bits: one thread, so that each run is the same.
    torch.set_num_threads(1)
    if not any(directory.glob("checkpoint_*.pt")):
        train(directory)

    # Reads the metrics of each checkpoint, and none of its tensors.
    chosen = ModelSelector.select_top_k_by_metric(directory, "val_loss", "min", BEST)
    print("best by val_loss:", ", ".join(Path(path).stem for path in chosen))
    model = make_model(CONFIG)
    model.load_state_dict(fastckpt.load(chosen[0])["model_state_dict"])
    single = loss_from(model, TEST_POSITION)
    # In float64, tensor by tensor.
    model.load_state_dict(ModelSelector.average_checkpoints(chosen, model))
    average = loss_from(model, TEST_POSITION)
    print(f"test loss of the best one:       {single:.4f}")
    print(f"test loss of the average of {BEST}:   {average:.4f} ({average - single:+.4f})")


if __name__ == "__main__":
    main()
