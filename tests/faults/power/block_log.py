"""What the recorder wrote down, entry by entry."""

from __future__ import annotations

import bisect
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.power.recorder import FLUSH, HEADER, WRITE, WRITE_THROUGH, ZERO


@dataclass(frozen=True)
class Entry:
    """One request that the disk answered.

    Attributes:
        kind: As in the recorder.
        offset: Where on the disk.
        nbytes: How many bytes it changed.
        data: Where in the log they lie.
        end: Size of the log when this was in it.
    """

    kind: bytes
    offset: int
    nbytes: int
    data: int
    end: int


class BlockLog:
    """The entries of a log that is complete. Their bytes stay in the file until they are asked for."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            nbytes = os.fstat(file.fileno()).st_size
            self._bytes = mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_READ)
        self.nbytes = nbytes
        self.entries = self._parse(nbytes)
        self._ends = [entry.end for entry in self.entries]
        self.flushes = [i for i, entry in enumerate(self.entries) if entry.kind == FLUSH]

    def close(self) -> None:
        self._bytes.close()

    def _parse(self, nbytes: int) -> list[Entry]:
        entries, position = [], 0
        while position < nbytes:
            kind, offset, length = HEADER.unpack_from(self._bytes, position)
            data = position + HEADER.size
            position = data + (length if kind in (WRITE, WRITE_THROUGH) else 0)
            entries.append(Entry(kind, offset, length, data, position))
        assert position == nbytes, "the log ends in the middle of an entry"
        return entries

    def bytes_of(self, entry: Entry) -> bytes:
        """Return what an entry put on the disk."""
        if entry.kind == ZERO:
            return bytes(entry.nbytes)
        return self._bytes[entry.data : entry.data + entry.nbytes]

    def count_at(self, nbytes: int) -> int:
        """Return how many entries there were when the log had this size."""
        return bisect.bisect_right(self._ends, nbytes)

    def count_durable(self, cut: int) -> int:
        """Return how many of the first `cut` entries no power cut can touch: up to the last flush."""
        flush = bisect.bisect_left(self.flushes, cut) - 1
        return self.flushes[flush] + 1 if flush >= 0 else 0


@contextmanager
def open_log(path: Path) -> Iterator[BlockLog]:
    """Read a log."""
    log = BlockLog(path)
    try:
        yield log
    finally:
        log.close()
