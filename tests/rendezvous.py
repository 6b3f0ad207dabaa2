"""Where the ranks of a process group meet: a socket that is bound before they start."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

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
