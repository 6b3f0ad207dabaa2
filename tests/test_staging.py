# mypy: untyped-calls-exclude=torch

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.specimens import fill, storage_bytes

from fastckpt._archive import staging
from fastckpt._archive.staging import PAGE_NBYTES, StorageLoader, StorageSaver, staged_positions

SLOT_NBYTES = PAGE_NBYTES


class DelayedLane:
    """A device that copies only when somebody waits: the worst that a stream may do."""

    def __init__(self) -> None:
        self.queue: list[Callable[[], Any]] = []
        self.joined = False

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> DelayedLane:
        self.queue.append(lambda: target.copy_(source))
        return self

    def synchronize(self) -> None:
        while self.queue:
            self.queue.pop(0)()

    def join(self) -> None:
        self.joined = True


def delay(stager: Any) -> DelayedLane:
    """Put the CPU behind a lane that delays, so that the order of waiting is tested here too."""
    lane = DelayedLane()
    stager._lanes[torch.device("cpu")] = lane
    return lane


def fill_slot(stager: Any, slot: int, data: bytes) -> None:
    view = torch.empty(0, dtype=torch.uint8).set_(stager.buffers[slot])
    view[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)


def load_all(records: list[bytes], destinations: list[torch.UntypedStorage]) -> DelayedLane:
    """Read records through the slots, as the core does."""
    with StorageLoader(destinations, slot_count=2, slot_nbytes=SLOT_NBYTES) as loader:
        lane = delay(loader)
        turn = 0
        for index, record in enumerate(records):
            for offset in range(0, len(record), SLOT_NBYTES // 2):
                slot = turn % 2
                turn += 1
                part = record[offset : offset + SLOT_NBYTES // 2]
                loader.release(slot)
                fill_slot(loader, slot, bytes(7) + part)
                loader.place(slot, 7, index, offset, len(part))
    return lane


def test_buffers_begin_at_pages() -> None:
    with StorageLoader([], slot_count=3, slot_nbytes=3 * PAGE_NBYTES) as loader:
        assert [b.nbytes() for b in loader.buffers] == [3 * PAGE_NBYTES] * 3
        assert all(b.data_ptr() % PAGE_NBYTES == 0 for b in loader.buffers)


def test_host_memory_is_bounded() -> None:
    assert staging.SLOT_COUNT * staging.SLOT_NBYTES <= 64 << 20
    assert staging.SLOT_NBYTES % PAGE_NBYTES == 0


@given(st.lists(st.integers(0, 3 * SLOT_NBYTES), max_size=5))
def test_loads_every_byte_although_copies_are_late(sizes: list[int]) -> None:
    records = [bytes(storage_bytes(fill(torch.uint8, n, seed=n).untyped_storage())) for n in sizes]
    destinations = [torch.UntypedStorage(n) for n in sizes]
    lane = load_all(records, destinations)
    assert [storage_bytes(d) for d in destinations] == records
    assert lane.joined


def test_a_record_longer_than_its_storage_is_cut() -> None:
    # A storage of 7 bytes viewed as float32 has a record of 7 bytes and 1 element.
    destination = torch.UntypedStorage(4)
    load_all([b"1234567"], [destination])
    assert storage_bytes(destination) == b"1234"


def test_an_error_waits_for_the_copies_too() -> None:
    destination = torch.UntypedStorage(4)
    lanes = []

    def fail() -> None:
        with StorageLoader([destination], slot_count=1, slot_nbytes=SLOT_NBYTES) as loader:
            lanes.append(delay(loader))
            fill_slot(loader, 0, b"abcd")
            loader.place(0, 0, 0, 0, 4)
            raise RuntimeError("checksum")

    with pytest.raises(RuntimeError, match="checksum"):
        fail()
    assert not lanes[0].queue
    assert storage_bytes(destination) == b"abcd"


def test_saves_every_byte_although_copies_are_late() -> None:
    source = fill(torch.uint8, 3 * SLOT_NBYTES + 5).untyped_storage()
    found = b""
    with StorageSaver([source], slot_count=2, slot_nbytes=SLOT_NBYTES) as saver:
        delay(saver)
        for turn, offset in enumerate(range(0, source.nbytes(), SLOT_NBYTES)):
            nbytes = min(SLOT_NBYTES, source.nbytes() - offset)
            saver.start(turn % 2, 0, offset, nbytes)
            saver.finish(turn % 2)
            found += storage_bytes(saver.buffers[turn % 2])[:nbytes]
    assert found == storage_bytes(source)


def test_storages_on_the_cpu_are_not_staged() -> None:
    storages = [torch.UntypedStorage(4), torch.UntypedStorage(4, device="meta")]
    assert staged_positions(storages) == [1]


@pytest.mark.cuda
@given(st.lists(st.integers(0, 5 * SLOT_NBYTES), min_size=1, max_size=5))
def test_cuda_round_trip(sizes: list[int]) -> None:
    sources = [fill(torch.uint8, n, seed=n) for n in sizes]
    storages = [torch.empty(n, dtype=torch.uint8, device="cuda").untyped_storage() for n in sizes]
    with StorageLoader(storages, slot_count=2, slot_nbytes=SLOT_NBYTES) as loader:
        turn = 0
        for index, source in enumerate(sources):
            data = storage_bytes(source.untyped_storage())
            for offset in range(0, len(data), SLOT_NBYTES):
                slot = turn % 2
                turn += 1
                loader.release(slot)
                fill_slot(loader, slot, data[offset : offset + SLOT_NBYTES])
                part = min(SLOT_NBYTES, len(data) - offset)
                loader.place(slot, 0, index, offset, part)
    assert [storage_bytes(s.cpu()) for s in storages] == [
        storage_bytes(s.untyped_storage()) for s in sources
    ]
