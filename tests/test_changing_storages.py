"""Storages that are resized, moved or freed while they are saved: an error, and no file of what they were."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import torch
from tests.faults.children import run_in_child

from fastckpt._archive import staging
from fastckpt._archive.pickling import pickle_object
from fastckpt._archive.save import write_into
from fastckpt._archive.staging import StorageSaver
from fastckpt._native import Commit, write_archive_to

MIB = 1 << 20
# What a worker composes at a time.
CHUNK_NBYTES = 2 * MIB
CHANGED = "was resized, moved or freed while it was saved"


class Storage:
    """Stands for a torch.UntypedStorage whose memory stays, wherever it says that it is.

    What is tested here is that fastckpt asks: freed memory that is read may end the process.
    """

    device = torch.device("cpu")

    def __init__(self, nbytes: int) -> None:
        self._tensor = torch.zeros(nbytes, dtype=torch.uint8)
        self.shift = 0
        self.surplus = 0
        self.questions = 0

    def nbytes(self) -> int:
        return self._tensor.nbytes + self.surplus

    def data_ptr(self) -> int:
        self.questions += 1
        return self._tensor.data_ptr() + self.shift


def as_torchs(storages: list[Storage]) -> list[torch.UntypedStorage]:
    return cast("list[torch.UntypedStorage]", storages)


def resize(storage: Storage) -> None:
    storage.surplus = 1


def move(storage: Storage) -> None:
    storage.shift = 4096


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("change", [resize, move])
@pytest.mark.parametrize("changed", [0, 1, 2])
def test_a_storage_that_changes_fails_the_save(
    tmp_path: Path, changed: int, change: Callable[[Storage], None], threads: int, sync: bool
) -> None:
    storages = [Storage(n) for n in (7, 5 * MIB, 100)]
    looks = 0

    def progress(done: int, total: int) -> None:
        nonlocal looks
        looks += 1

    with Commit(sync=sync) as commit:
        # As late as it can be seen: when it has been read for the first time.
        ask = storages[changed].data_ptr

        def data_ptr() -> int:
            address = ask()
            change(storages[changed])
            return address

        storages[changed].data_ptr = data_ptr  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match=rf"record data/{changed} \(.*{CHANGED}"):
            commit.write_archive(
                tmp_path / "model.pt", b"", as_torchs(storages), threads=threads, progress=progress
            )
        assert looks == 0, "it was said to be done"
    assert os.listdir(tmp_path) == []


def test_storages_that_stay_are_asked_twice(tmp_path: Path) -> None:
    storages = [Storage(4096) for _ in range(1000)]
    with Commit() as commit:
        commit.write_archive(tmp_path / "model.pt", b"", as_torchs(storages))
        commit.publish([tmp_path / "model.pt"])
    # A slow disk gives time for looks at some of them.
    asked = sum(storage.questions for storage in storages)
    assert asked >= 2 * len(storages)
    assert {storage.questions for storage in storages[300:]} <= {2, 3}


def written_until_failure(storages: list[Storage], change: Callable[[], None]) -> int:
    """Write in sequence, slowly enough for a look before each chunk; return how many were written."""
    chunks = 0

    def write(_data: memoryview) -> None:
        nonlocal chunks
        chunks += 1
        if chunks == 1:
            change()
        # Longer than the time between two looks.
        time.sleep(0.06)

    with pytest.raises(RuntimeError, match=CHANGED):
        write_archive_to(write, b"", as_torchs(storages))
    return chunks


@pytest.mark.parametrize("changed", [0, 5, 9])
def test_a_change_is_seen_before_the_storage_is_written(changed: int) -> None:
    storages = [Storage(4 * MIB) for _ in range(10)]
    chunks = written_until_failure(storages, lambda: resize(storages[changed]))
    assert chunks <= 3 < 10 * 4 * MIB // CHUNK_NBYTES


def test_of_many_storages_only_the_next_are_looked_at() -> None:
    storages = [Storage(8192) for _ in range(3000)]
    chunks = written_until_failure(storages, lambda: move(storages[-1]))
    # All were written; the last look found it.
    assert chunks == 3000 * 8192 // CHUNK_NBYTES + 1
    asked = sum(storage.questions for storage in storages)
    assert asked <= 2 * len(storages) + (chunks + 1) * 256


def test_a_size_that_is_not_the_pickled_one_is_refused(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(10), "b": torch.ones(1000)}
    pickled = pickle_object(tensors)
    tensors["b"].untyped_storage().resize_(8)
    with Commit() as commit, pytest.raises(RuntimeError, match=rf"data/1 \(4000 bytes\) {CHANGED}"):
        write_into(commit, tmp_path / "model.pt", pickled)
    with pytest.raises(RuntimeError, match=CHANGED):
        write_archive_to(lambda _: None, b"", pickled.storages, nbytes=pickled.nbytes)
    with pytest.raises(ValueError, match="a size for each storage"):
        write_archive_to(lambda _: None, b"", pickled.storages, nbytes=[40])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("change", ["freed", "grown", "moved"])
def test_a_staged_storage_that_changes_fails_the_save(
    change: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU instead of a device: what is staged is asked for its place all the same."""
    source = torch.ones(8192, dtype=torch.uint8).untyped_storage()
    monkeypatch.setattr(staging, "staged_positions", lambda storages: list(range(len(storages))))
    with StorageSaver([source], slot_count=2, slot_nbytes=4096) as saver:
        saver.start(0, 0, 0, 4096)
        saver.finish(0)
        if when == "meanwhile":
            saver.start(1, 0, 4096, 4096)
        if change == "moved":
            # As FSDP's: gone and back, somewhere else.
            place = staging._place_of(source)
            monkeypatch.setattr(staging, "_place_of", lambda _: (place[0], place[1] + 4096))
        else:
            source.resize_(0 if change == "freed" else 12 << 10)
        wait = partial(saver.finish, 1)
        begin = partial(saver.start, 1, 0, 4096, 4096)
        with pytest.raises(RuntimeError, match=rf"data/0 \(8192 bytes, on cpu\) {CHANGED}"):
            (wait if when == "meanwhile" else begin)()


_STORAGES = 24


def _free_meanwhile(path: str, delay_secs: float) -> str:
    """Write while another thread frees the last storage; say what came of it."""
    state = {str(n): torch.full((1_000_000,), float(n)) for n in range(_STORAGES)}
    last = state[str(_STORAGES - 1)].untyped_storage()

    def free() -> None:
        time.sleep(delay_secs)
        last.resize_(0)

    pickled = pickle_object(state)
    thread = threading.Thread(target=free)
    thread.start()
    with Commit() as commit:
        try:
            write_into(commit, path, pickled)
            commit.publish([path])
        except RuntimeError as error:
            return "refused" if CHANGED in str(error) else str(error)
        finally:
            thread.join()
    return "saved"


@pytest.mark.timeout(300)
def test_what_is_freed_is_never_saved_as_if_it_were_there(tmp_path: Path) -> None:
    """In children, which may die of it: that is not promised, and has not been seen here."""
    outcomes: Counter[str] = Counter()
    for delay_msecs in range(0, 60, 4):
        path = tmp_path / f"{delay_msecs}.pt"
        child = run_in_child(partial(_free_meanwhile, str(path), delay_msecs / 1000))
        assert child.raised is None, child
        outcome = str(child.value) if child.code == 0 else "died"
        outcomes[outcome] += 1
        assert path.exists() == (outcome == "saved")
        if outcome == "saved":
            found = torch.load(path)
            assert all(bool((found[str(n)] == n).all()) for n in range(_STORAGES))
    print(outcomes)
    assert outcomes["refused"] > 0
