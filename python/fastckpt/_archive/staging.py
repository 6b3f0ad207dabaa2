"""Bounded host buffers between files and accelerators.

The native core reads into, or writes from, a few host buffers ("slots"). This module moves their bytes
to or from the device. On CUDA (and ROCm) the buffers are pinned and the copies run
on a side stream, so that they overlap with the disk and the checksums; other accelerators copy
synchronously. Either way no more than `SLOT_COUNT` x `SLOT_NBYTES` of host memory is in use,
whatever the size of the checkpoint.
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from typing_extensions import Self

# Four slots keep disk, checksum and copy busy at once; 16 MiB is past the size from which a
# PCIe copy runs at full speed.
SLOT_COUNT = 4
SLOT_NBYTES = 16 << 20
# Direct I/O wants its memory at a page boundary.
PAGE_NBYTES = 4096


class _Copy(Protocol):
    """A copy that was started; torch.cuda.Event is one."""

    def synchronize(self) -> None: ...


class _Lane(Protocol):
    """The way to and from one device."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> _Copy | None:
        """Start copying; None if it is done already."""
        ...

    def join(self) -> None:
        """Let later work on the device's current stream see what was copied."""
        ...


class _SyncLane:
    """Copies at once: every accelerator without streams that we know."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)

    def join(self) -> None:
        pass


class _CudaLane:
    """Copies on a side stream of one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._current = torch.cuda.current_stream(device)
        self._side: torch.cuda.Stream = torch.cuda.Stream(device)
        # The allocator may have handed out memory that kernels queued on the current stream
        # still use, and tensors to be saved may still be computed there.
        self._side.wait_stream(self._current)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> _Copy:
        with torch.cuda.stream(self._side):
            target.copy_(source, non_blocking=True)
            event: torch.cuda.Event = self._side.record_event()
            return event

    def join(self) -> None:
        self._current.wait_stream(self._side)


def _open_lane(device: torch.device) -> _Lane:
    return _CudaLane(device) if device.type == "cuda" else _SyncLane()


class _Stager:
    """What both directions share: slots, lanes and the copies that are under way.

    Use as a context manager: leaving it waits for all copies, also after an error, so that no
    copy is still running into or out of memory that somebody else is given.
    """

    def __init__(
        self, storages: Sequence[torch.UntypedStorage], *, slot_count: int, slot_nbytes: int
    ) -> None:
        self._storages = storages
        devices = {s.device for s in storages if s.device.type != "cpu"}
        pinned = any(device.type == "cuda" for device in devices)
        self.buffers = [_host_buffer(slot_nbytes, pinned=pinned) for _ in range(slot_count)]
        self._lanes: dict[torch.device, _Lane] = {d: _open_lane(d) for d in devices}
        self._slots = [_as_bytes(buffer) for buffer in self.buffers]
        # The last copy of each slot and device; earlier ones of the same stream end before it.
        self._running: list[dict[torch.device, _Copy]] = [{} for _ in self.buffers]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for lane in self._lanes.values():
            lane.join()
        for slot in range(len(self.buffers)):
            self._wait(slot)

    def _copy(self, slot: int, target: torch.Tensor, source: torch.Tensor) -> None:
        device = target.device if target.device.type != "cpu" else source.device
        lane = self._lanes.setdefault(device, _SyncLane())
        copy = lane.copy(target, source)
        if copy is not None:
            self._running[slot][device] = copy

    def _wait(self, slot: int) -> None:
        for copy in self._running[slot].values():
            copy.synchronize()
        self._running[slot].clear()


class StorageLoader(_Stager):
    """Moves bytes from host buffers into storages on devices: the core's `LoadStager`.

    Args:
        destinations: Storages to fill, in the order of the records that are read.
        slot_count: Number of host buffers.
        slot_nbytes: Size of each in bytes, a multiple of 4096.
    """

    def __init__(
        self,
        destinations: Sequence[torch.UntypedStorage],
        *,
        slot_count: int = SLOT_COUNT,
        slot_nbytes: int = SLOT_NBYTES,
    ) -> None:
        super().__init__(destinations, slot_count=slot_count, slot_nbytes=slot_nbytes)

    def place(self, slot: int, slot_offset: int, index: int, offset: int, nbytes: int) -> None:
        """Start copying from a host buffer to a destination.

        What lies past the end of the destination is left out: a record may have up to one
        element more than its storage.
        """
        destination = self._storages[index]
        nbytes = min(nbytes, destination.nbytes() - offset)
        if nbytes <= 0:
            return
        source = self._slots[slot][slot_offset : slot_offset + nbytes]
        self._copy(slot, _as_bytes(destination)[offset : offset + nbytes], source)

    def release(self, slot: int) -> None:
        """Return when nothing is copied out of the buffer any more."""
        self._wait(slot)


class StorageSaver(_Stager):
    """Moves bytes from storages on devices into host buffers: the core's `SaveStager`.

    Args:
        storages: All storages to write; those on the CPU are not staged.
        slot_count: Number of host buffers.
        slot_nbytes: Size of each in bytes.
    """

    def __init__(
        self,
        storages: Sequence[torch.UntypedStorage],
        *,
        slot_count: int = SLOT_COUNT,
        slot_nbytes: int = SLOT_NBYTES,
    ) -> None:
        super().__init__(storages, slot_count=slot_count, slot_nbytes=slot_nbytes)
        self.staged = staged_positions(storages)
        self._places = {index: _place_of(storages[index]) for index in self.staged}
        # What each slot is being filled from.
        self._sources: dict[int, int] = {}

    def start(self, slot: int, index: int, offset: int, nbytes: int) -> None:
        """Start copying a part of a storage to the beginning of a host buffer."""
        self._require_unchanged(index)
        self._sources[slot] = index
        source = _as_bytes(self._storages[index])[offset : offset + nbytes]
        self._copy(slot, self._slots[slot][:nbytes], source)

    def finish(self, slot: int) -> None:
        """Return when the bytes asked for last are in the buffer.

        Raises:
            RuntimeError: Their storage is not what it was when the save began.
        """
        self._wait(slot)
        self._require_unchanged(self._sources[slot])

    def _require_unchanged(self, index: int) -> None:
        now = _place_of(self._storages[index])
        nbytes, _ = before = self._places.setdefault(index, now)
        if now != before:
            raise RuntimeError(
                f"the storage of record data/{index} ({nbytes} bytes, on {self._storages[index].device}) "
                "was resized, moved or freed while it was saved. Until the save has returned, do not call "
                "resize_, and with FSDP do not train or unshard; or save a copy"
            )


def staged_positions(storages: Sequence[torch.UntypedStorage]) -> list[int]:
    """Return the positions of the storages that the core cannot read where they are."""
    return [i for i, storage in enumerate(storages) if storage.device.type != "cpu"]


def _place_of(storage: torch.UntypedStorage) -> tuple[int, int]:
    """Return size and address, which FSDP changes between two uses of a parameter."""
    return storage.nbytes(), storage.data_ptr()


def _as_bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    """View a storage as a tensor of uint8, shape `(nbytes,)`, sharing its memory."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _host_buffer(nbytes: int, *, pinned: bool) -> torch.UntypedStorage:
    """Allocate host memory that begins at a page; pinned if that is asked for and possible."""
    for extra in (0, PAGE_NBYTES):
        storage = _allocate(nbytes + extra, pinned=pinned)
        start = -storage.data_ptr() % PAGE_NBYTES
        if start + nbytes <= storage.nbytes():
            return storage if start == 0 and extra == 0 else storage[start : start + nbytes]
    raise AssertionError("a page boundary lies within any 4096 bytes")


def _allocate(nbytes: int, *, pinned: bool) -> torch.UntypedStorage:
    if pinned:
        try:
            return _empty(nbytes, pinned=True)
        except RuntimeError:
            # The system's limit on locked memory. Copies from pageable memory are slower, and
            # torch makes them synchronous, but right.
            pass
    return _empty(nbytes, pinned=False)


def _empty(nbytes: int, *, pinned: bool) -> torch.UntypedStorage:
    tensor = torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=pinned)
    return tensor.untyped_storage()
