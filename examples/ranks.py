"""Several ranks save one step, each its own optimizer shard, as nanochat does.

    python examples/ranks.py [DIRECTORY] [--ranks 2]

The model is the same on every rank, and rank 0 saves it; each rank has a part of the optimizer's state, and
saves that. No rank waits for another while it saves. The step counts as saved once all of its files are there,
and are of one save: `find_last_good_step` tells. To copy: `work`.
"""

import argparse
import multiprocessing
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from fastckpt import (
    IncompleteCheckpointError,
    barrier_commit,
    find_last_good_step,
    load_checkpoint,
    save_checkpoint,
)

STEPS, SAVE_EVERY = 20, 10
WIDTH = 64
DEFAULT_DIRECTORY = Path(__file__).resolve().parents[1] / "build/examples/ranks"


def rows_of(rank: int, world_size: int) -> slice:
    """Return the rows of the weight whose optimizer state a rank has."""
    return slice(rank * WIDTH // world_size, (rank + 1) * WIDTH // world_size)


def work(rank: int, world_size: int, port: int, directory: Path) -> None:
    """Train on one rank, from the last whole step on."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    own = rows_of(rank, world_size)
    weight = torch.zeros(WIDTH, WIDTH)
    momentum = torch.zeros(weight[own].shape)
    first = 0
    try:
        # Of any number of ranks: where it is another than now, the load refuses, and nothing starts anew.
        first = find_last_good_step(directory)
        model, shard, _ = load_checkpoint(directory, first, "cpu", load_optimizer=True, rank=rank)
        weight, momentum = model["weight"], shard["momentum"]
    except FileNotFoundError:
        pass  # The first run.

    for step in range(first + 1, first + STEPS + 1):
        gradient = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(step))
        momentum.mul_(0.9).add_(gradient[own])
        parts = [torch.empty(weight[rows_of(r, world_size)].shape) for r in range(world_size)]
        dist.all_gather(parts, momentum)
        weight -= 0.01 * torch.cat(parts)
        if step % SAVE_EVERY == 0:
            save_checkpoint(
                directory,
                step,
                {"weight": weight},
                {"momentum": momentum},
                {"step": step, "world_size": world_size},
                rank=rank,
            )
            # Only for those who want to know that it is whole on every rank before they continue.
            barrier_commit(directory, step)
    dist.destroy_process_group()


def main() -> None:
    """Run the ranks, then look at what they saved, and at what a lost shard does."""
    parser = argparse.ArgumentParser(description="Save a step from several ranks.")
    parser.add_argument("directory", type=Path, nargs="?", default=DEFAULT_DIRECTORY)
    parser.add_argument("--ranks", type=int, default=2)
    arguments = parser.parse_args()
    directory: Path = arguments.directory
    context = multiprocessing.get_context("spawn")
    # The store finds a free port, and the ranks find it there.
    port = TCPStore("127.0.0.1", 0, is_master=True).port
    ranks = [
        context.Process(target=work, args=(rank, arguments.ranks, port + 1, directory))
        for rank in range(arguments.ranks)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        raise SystemExit("a rank has failed")

    last = find_last_good_step(directory)
    print(f"last whole step: {last}, of {arguments.ranks} ranks")
    shard = directory / f"optim_{last:06d}_rank{arguments.ranks - 1}.pt"
    aside = shard.with_suffix(".aside")
    shard.rename(aside)
    try:
        load_checkpoint(directory, last, "cpu", load_optimizer=True)
    except IncompleteCheckpointError as error:
        print(f"without one shard: {error}")
    print(f"last whole step then: {find_last_good_step(directory)}")
    aside.rename(shard)


if __name__ == "__main__":
    main()
