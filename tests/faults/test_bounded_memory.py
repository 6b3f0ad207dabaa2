"""Memory that is bounded by what is there: not by what a file claims, and not twice the tensors."""

from __future__ import annotations

import os
import resource
import signal
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.archives import legacy_bytes, torch_bytes
from tests.faults.children import Outcome, run_in_child
from tests.faults.forgery import Entry, Forged, with_pickle
from tests.faults.requirements import need_root
from torch._subclasses.fake_tensor import FakeTensorMode

import fastckpt

MIB = 1 << 20
# The tensors lie in a file that is mapped: pages that the kernel can drop at any time, so that only
# the memory of the save itself counts.
TENSORS_NBYTES = 1024 * MIB
# Less than a sixth of the tensors, for the save and for everything else that the child does.
LIMIT_NBYTES = 160 * MIB
# What the buffers of all threads together take at most, and as much again for all the rest.
BUFFERS_NBYTES = 64 * MIB
REST_NBYTES = 64 * MIB


def mapped_state(directory: Path) -> dict[str, Any]:
    """Make tensors of different sizes over sparse files; they hold zeros but for a few values."""
    state = {}
    for number, part in enumerate((2, 4, 8, 8)):
        path, nbytes = directory / f"tensor{number}", TENSORS_NBYTES // part
        with path.open("wb") as file:
            file.truncate(nbytes)
        tensor = torch.from_file(str(path), shared=True, size=nbytes, dtype=torch.uint8)
        tensor[:: nbytes // 7] = number + 1
        state[str(number)] = tensor
    return state


@contextmanager
def limited_group() -> Iterator[Path]:
    """A control group of version 1 in which processes have only so much memory."""
    need_root()
    group = Path("/sys/fs/cgroup/memory", f"fastckpt-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control groups of version 1 here: {error}")
    try:
        (group / "memory.limit_in_bytes").write_text(str(LIMIT_NBYTES))
        yield group
    finally:
        with suppress(FileNotFoundError):
            # What is cached is charged to it; without it, the group would stay as a zombie.
            (group / "memory.force_empty").write_text("0")
            group.rmdir()


def in_group(group: Path, work: Callable[[], Any]) -> Outcome:
    def enter_and_work() -> Any:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        return work()

    return run_in_child(enter_and_work, timeout_secs=200)


def anonymous_nbytes() -> int:
    """Return the memory that only this process has, and that is no cache."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError


@contextmanager
def watching() -> Iterator[Callable[[], int]]:
    """Yield what tells the most that the process has had above what it had at the beginning."""
    before = anonymous_nbytes()
    peak = before
    stop = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.is_set():
            peak = max(peak, anonymous_nbytes())
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: peak - before
    finally:
        stop.set()
        thread.join()


def test_the_limit_is_one() -> None:
    """A process that takes more is killed: otherwise the tests below would say nothing."""
    with limited_group() as group:
        outcome = in_group(group, lambda: len(b"x" * (2 * LIMIT_NBYTES)))
        assert outcome.code == -signal.SIGKILL, outcome


@pytest.mark.slow
@pytest.mark.parametrize("sync", [True, False])
def test_saving_takes_a_few_buffers(sync: bool, tmp_path: Path) -> None:
    state = mapped_state(tmp_path)
    path = tmp_path / "model.pt"

    def save() -> int:
        with watching() as peak_nbytes:
            fastckpt.save(state, path, sync=sync)
        return peak_nbytes()

    with limited_group() as group:
        outcome = in_group(group, save)
        assert outcome.ok, outcome
        assert outcome.value <= BUFFERS_NBYTES + REST_NBYTES
        _check_under_limit(group, path)
    assert path.stat().st_size > TENSORS_NBYTES


def _check_under_limit(group: Path, path: Path) -> None:
    """Verify the file, and load it without a copy, with as little memory."""

    def verify_and_map() -> int:
        with watching() as peak_nbytes:
            assert fastckpt.verify(path).ok
            found = fastckpt.load(path, mmap=True)
            for number, part in enumerate(found.values()):
                step = part.numel() // 7
                assert part[::step].tolist() == [number + 1] * len(part[::step])
        return peak_nbytes()

    outcome = in_group(group, verify_and_map)
    assert outcome.ok, outcome
    assert outcome.value <= BUFFERS_NBYTES + REST_NBYTES


@pytest.mark.slow
def test_loading_takes_the_tensors_once(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    state = mapped_state(tmp_path)
    fastckpt.save(state, path)

    def load() -> int:
        with watching() as peak_nbytes:
            found = fastckpt.load(path)
            nbytes = sum(part.nbytes for part in found.values())
        assert nbytes == TENSORS_NBYTES
        return peak_nbytes()

    outcome = run_in_child(load, timeout_secs=200)
    assert outcome.ok, outcome
    # The tensors themselves, which the watch has seen, and little more.
    assert TENSORS_NBYTES * 9 // 10 < outcome.value <= TENSORS_NBYTES + REST_NBYTES


@pytest.mark.parametrize("pad", range(0, 16, 5))
def test_a_file_before_torch_1_6_takes_the_tensors_once(pad: int, tmp_path: Path) -> None:
    """Its tensors lie at any offset, where none may lie in memory: they are not copied as a whole."""
    path, nbytes = tmp_path / "old.pt", 192 * MIB
    path.write_bytes(legacy_bytes({"x" * pad: torch.zeros(nbytes, dtype=torch.uint8)}))

    def load() -> int:
        with watching() as peak_nbytes:
            fastckpt.load(path, verify=False)
        return peak_nbytes()

    outcome = run_in_child(load)
    assert outcome.ok, outcome
    assert nbytes * 9 // 10 < outcome.value <= nbytes + REST_NBYTES


def test_a_small_step_takes_little(tmp_path: Path) -> None:
    """Nothing is allocated for the largest file that would be allowed, but for the one there is."""
    state = {"w": torch.ones(3)}

    def save_and_load() -> int:
        fastckpt.save_checkpoint(tmp_path, 1, state, state, {"step": 1})
        fastckpt.load_checkpoint(tmp_path, 1, "cpu", load_optimizer=True)
        assert fastckpt.verify(tmp_path).ok
        tracemalloc.start()
        fastckpt.save_checkpoint(tmp_path, 1, state, state, {"step": 1})
        fastckpt.load_checkpoint(tmp_path, 1, "cpu", load_optimizer=True)
        fastckpt.find_last_good_step(tmp_path)
        assert fastckpt.verify(tmp_path).ok
        return tracemalloc.get_traced_memory()[1]

    outcome = run_in_child(save_and_load)
    assert outcome.ok, outcome
    assert outcome.value < 4 * MIB


# Files that claim more than there is

HUGE = [1 << 31, 1 << 32, 1 << 40, (1 << 62) + 8, (1 << 64) - 1]
# Threads have stacks and arenas of their own, of which only addresses are taken.
ADDRESSES_NBYTES = 2048 * MIB


def _zip64(uncompressed: int, compressed: int, offset: int) -> bytes:
    """Write the extra field that holds what does not fit 32 bits (APPNOTE 4.5.3)."""
    return struct.pack("<HHQQQ", 1, 24, uncompressed, compressed, offset)


def _pickle_of(numel: int) -> bytes:
    """Write a data.pkl with one storage of so many bytes and a tensor over all of it."""
    number = _long(numel)
    persistent = b"(X\7\0\0\0storagectorch\nByteStorage\nX\1\0\0\0000X\3\0\0\0cpu" + number + b"tQ"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    arguments = b"(" + persistent + b"K\0" + number + b"\x85K\1\x85" + hooks + b"t"
    return b"\x80\2}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."


def _long(number: int) -> bytes:
    digits = number.to_bytes(9, "little")
    return b"\x8a" + bytes([len(digits)]) + digits


def _claims() -> Iterator[tuple[str, bytes]]:
    sound = torch_bytes({"w": torch.ones(10)})
    pickle = _pickle_of(40)
    for huge in HUGE:
        yield f"numel {huge}", with_pickle(_pickle_of(huge), ("data/0", bytes(40)))
        extra = _zip64(huge, huge, 0)
        lie = Entry(
            "archive/data/0",
            bytes(40),
            nbytes=0xFFFFFFFF,
            compressed_nbytes=0xFFFFFFFF,
            offset=0xFFFFFFFF,
            extra=extra,
        )
        yield f"record {huge}", Forged([Entry("archive/data.pkl", pickle), lie]).bytes()
        big_pickle = Entry(
            "archive/data.pkl",
            pickle,
            nbytes=0xFFFFFFFF,
            compressed_nbytes=0xFFFFFFFF,
            offset=0xFFFFFFFF,
            extra=extra,
        )
        yield f"pickle {huge}", Forged([big_pickle, Entry("archive/data/0", bytes(40))]).bytes()
        yield f"directory {huge}", sound[:-22] + _zip64_end(huge)
    yield "entries", sound[:-22] + sound[-22:-14] + b"\xff\xff\xff\xff" + sound[-10:]
    yield "string of a pickle", with_pickle(b"\x80\2X\xff\xff\xff\x7fabc.")
    yield "bytes of a pickle", with_pickle(b"\x80\4\x8e" + struct.pack("<Q", 1 << 62) + b"abc.")
    yield "frame of a pickle", with_pickle(b"\x80\4\x95" + struct.pack("<Q", 1 << 62) + b"N.")
    yield "number of a pickle", with_pickle(b"\x80\2\x8b\xff\xff\xff\x7f1.")


def _zip64_end(huge: int) -> bytes:
    """Write an end of the archive whose directory has so many bytes, and so many entries."""
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 0, 45, 0, 0, huge, huge, huge, 0)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, 0, 1)
    end = struct.pack(
        "<4s4H2IH", b"PK\5\6", 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0
    )
    return record + locator + end


def _peaks() -> tuple[int, int]:
    """Return the most memory and the most addresses that this process has had, in bytes."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) << 10, int(status["VmPeak"].split()[0]) << 10


def test_a_claim_costs_nothing(tmp_path: Path) -> None:
    """Sizes in headers and pickles are compared with the file before anything is allocated."""
    claims = dict(_claims())
    path = tmp_path / "hostile.pt"

    def read_all() -> dict[str, list[Any]]:
        found = {}
        fastckpt.save({"w": torch.ones(3)}, path)
        fastckpt.load(path)
        fastckpt.load(path, mmap=True)
        for name, data in claims.items():
            path.write_bytes(data)
            before = _peaks()
            said = []
            for mmap in (False, True):
                try:
                    fastckpt.load(path, mmap=mmap)
                except fastckpt.CheckpointError as error:
                    said.append(type(error).__name__)
                else:
                    said.append("loaded")
            said.append(fastckpt.verify(path).status.value)
            after = _peaks()
            found[name] = [said, after[0] - before[0], after[1] - before[1]]
        return found

    outcome = run_in_child(read_all)
    assert outcome.ok, outcome
    for name, (said, memory_nbytes, addresses_nbytes) in outcome.value.items():
        # A wrong number of entries alone is passed over where all else is sound, and reported.
        assert name == "entries" or "loaded" not in said, name
        assert memory_nbytes < 16 * MIB, name
        assert addresses_nbytes < ADDRESSES_NBYTES, name


def test_a_hole_of_a_terabyte_is_not_loaded_into_memory(tmp_path: Path) -> None:
    """The file is as large as it says, and costs its owner nothing: memory would be another matter."""
    path = tmp_path / "sparse.pt"
    nbytes = 1 << 40
    try:
        with FakeTensorMode(), torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save({"w": torch.empty(nbytes, dtype=torch.uint8)}, path)
    except RuntimeError as error:
        pytest.skip(f"no files of this size here: {error}")
    assert path.stat().st_blocks * 512 < MIB < nbytes < path.stat().st_size

    def load() -> None:
        # As on a machine where no such memory is promised.
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (64 << 30, hard))
        with pytest.raises(MemoryError, match=r"not enough memory: \d{13} bytes were refused"):
            # torch stores no checksum of what it skips.
            fastckpt.load(path, verify=False)

    outcome = run_in_child(load)
    assert outcome.ok, outcome
