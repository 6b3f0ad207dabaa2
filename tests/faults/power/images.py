"""Crash states as block devices: images in memory, one copy for each state."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.power.block_log import BlockLog, Entry
from tests.faults.power.crash_states import CrashState


class Image:
    """A disk in memory, which takes the room of what is on it and leaves nothing behind."""

    def __init__(self, name: str, nbytes: int) -> None:
        self.descriptor = os.memfd_create(name)
        self.nbytes = nbytes
        os.ftruncate(self.descriptor, nbytes)

    def close(self) -> None:
        os.close(self.descriptor)

    def put(self, data: bytes, offset: int) -> None:
        """Write; memory takes it all at once."""
        assert os.pwrite(self.descriptor, data, offset) == len(data)

    def copy_of(self, source: int) -> None:
        """Become a copy of another disk, a file that is open."""
        os.ftruncate(self.descriptor, 0)
        os.ftruncate(self.descriptor, self.nbytes)
        for start, end in _extents(source):
            os.lseek(self.descriptor, start, os.SEEK_SET)
            done = start
            while done < end:
                sent = os.sendfile(self.descriptor, source, done, end - done)
                assert sent > 0
                done += sent


def _extents(descriptor: int) -> Iterator[tuple[int, int]]:
    """Yield where a file has data; the rest are holes."""
    end = 0
    while True:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # ENXIO: no data from here on
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


class Replay:
    """Makes one crash state after the other, in the order of their cuts."""

    def __init__(self, log: BlockLog, fresh: Path) -> None:
        """Begin with the disk as it was before the first entry of the log, an image file."""
        self._log = log
        nbytes = fresh.stat().st_size
        # All that is flushed up to the state that was asked for last; nobody mounts this one.
        self._flushed = Image("flushed", nbytes)
        self._state = Image("state", nbytes)
        self._done = 0
        with fresh.open("rb") as file:
            self._flushed.copy_of(file.fileno())

    def close(self) -> None:
        self._flushed.close()
        self._state.close()

    def make(self, state: CrashState) -> int:
        """Return the descriptor of an image of this state, valid until the next is made."""
        durable = self._log.count_durable(state.cut)
        assert durable >= self._done, "states are made in the order of their cuts"
        for entry in self._log.entries[self._done : durable]:
            self._flushed.put(self._log.bytes_of(entry), entry.offset)
        self._done = durable
        self._state.copy_of(self._flushed.descriptor)
        for i in range(durable, state.cut):
            if i not in state.lost:
                self._put(i, self._log.entries[i], state)
        return self._state.descriptor

    def _put(self, i: int, entry: Entry, state: CrashState) -> None:
        data, offset, tear = self._log.bytes_of(entry), entry.offset, state.tear
        if tear is not None and tear.entry == i:
            if tear.keeps_beginning:
                data = data[: tear.nbytes]
            else:
                data, offset = data[tear.nbytes :], offset + tear.nbytes
        self._state.put(data, offset)


@contextmanager
def replaying(log: BlockLog, fresh: Path) -> Iterator[Replay]:
    """Replay a log over the disk as it was before; the memory is freed at the end."""
    replay = Replay(log, fresh)
    try:
        yield replay
    finally:
        replay.close()
