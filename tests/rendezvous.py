"""Real process groups: ranks in processes of their own, which meet on a socket that is bound before they start."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from tests.faults.children import start
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]


class Rendezvous:
    """The store of a process group, on a port that nobody else can take meanwhile."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener

    def store(self, rank: int, world_size: int) -> TCPStore:
        """Return the store as one rank sees it; that of rank 0 goes with its process."""
        host, port = self._listener.getsockname()
        if rank:
            self._listener.close()
            return TCPStore(host, port, world_size, is_master=False)
        # The store closes what it is given.
        listener = os.dup(self._listener.fileno())
        return TCPStore(host, port, world_size, is_master=True, master_listen_fd=listener)


@contextmanager
def rendezvous() -> Iterator[Rendezvous]:
    """Bind a socket for ranks that are forked inside the block."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield Rendezvous(listener)


def in_ranks(
    meeting: Rendezvous,
    world_size: int,
    work: Callable[[int], Any],
    *,
    meet_again: bool = True,
) -> list[Any]:
    """Run `work(rank)` in a process for each rank of a gloo group; return what each returned.

    Args:
        meeting: Where they meet.
        world_size: How many ranks there are.
        work: What each does.
        meet_again: Whether each waits for the others before it ends.
    """

    def run(rank: int) -> Any:
        store = meeting.store(rank, world_size)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
        value = work(rank)
        if meet_again:
            # The master's store has to live as long as others ask it.
            distributed.barrier()
            distributed.destroy_process_group()
        return value

    children = [start(partial(run, rank)) for rank in range(world_size)]
    outcomes = [child.outcome() for child in children]
    assert all(outcome.ok for outcome in outcomes), "\n".join(map(str, outcomes))
    return [outcome.value for outcome in outcomes]
