"""The memory of loaded tensors: whose it is, what it shares, and when it goes."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.specimens import fill

import fastckpt

MMAP = pytest.mark.parametrize("mmap", [False, True])
PAGE_NBYTES = os.sysconf("SC_PAGE_SIZE")


@contextmanager
def collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def resident_nbytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_NBYTES


def mixed() -> dict[str, torch.Tensor]:
    """Make storages of both kinds: small ones that share an arena, large ones on their own."""
    large = {f"large{i}": fill(torch.uint8, (4 << 20) + i, seed=i) for i in range(3)}
    return large | {f"small{i}": fill(torch.uint8, 100 + i, seed=i) for i in range(50)}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    fastckpt.save(mixed(), path)
    return path


@MMAP
def test_changing_one_tensor_changes_no_other(mmap: bool, saved: Path) -> None:
    before = saved.read_bytes()
    expected, found = mixed(), fastckpt.load(saved, mmap=mmap)
    again = fastckpt.load(saved, mmap=mmap)
    for name in list(found):
        found[name].fill_(0xAA)
        expected[name].fill_(0xAA)
        assert all(torch.equal(found[other], expected[other]) for other in found)
    assert all(torch.equal(again[name], tensor) for name, tensor in mixed().items())
    assert saved.read_bytes() == before


@MMAP
@pytest.mark.parametrize("name", ["small7", "large1"])
def test_the_last_tensor_keeps_its_memory(name: str, mmap: bool, saved: Path) -> None:
    with collector_off():
        kept = fastckpt.load(saved, mmap=mmap)[name]
        saved.unlink()
        # Memory that had been given back would be given out again here.
        others = [torch.full((1 << 20,), 0xEE, dtype=torch.uint8) for _ in range(20)]
        assert torch.equal(kept, mixed()[name])
        kept.fill_(1)
        assert all((other == 0xEE).all() for other in others)


@MMAP
def test_views_of_a_tensor_keep_its_memory(mmap: bool, saved: Path) -> None:
    with collector_off():
        view = fastckpt.load(saved, mmap=mmap)["large0"][1000:][::3].view(-1, 1)
        assert torch.equal(view, mixed()["large0"][1000:][::3].view(-1, 1))
        storage = fastckpt.load(saved, mmap=mmap)["small3"].untyped_storage()
        assert bytes(storage.tolist()) == bytes(mixed()["small3"].tolist())
        array = fastckpt.load(saved, mmap=mmap)["large2"].numpy()
        assert (array == mixed()["large2"].numpy()).all()


@MMAP
@pytest.mark.parametrize("weights_only", [True, False])
def test_memory_goes_with_the_last_tensor(weights_only: bool, mmap: bool, tmp_path: Path) -> None:
    """Without the garbage collector: 40 loads of 25 MB would be seen."""
    path = tmp_path / "model.pt"
    fastckpt.save({f"w{i}": torch.ones(1_250_000) for i in range(5)}, path, sync=False)

    def load() -> float:
        found = fastckpt.load(path, mmap=mmap, weights_only=weights_only)
        return sum(float(tensor[-1]) for tensor in found.values())

    with collector_off():
        assert load() == load() == 5
        before = resident_nbytes()
        for _ in range(40):
            load()
        assert resident_nbytes() - before < 60_000_000


@MMAP
def test_failed_loads_leave_no_memory(mmap: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    fastckpt.save({"good": torch.zeros(5_000_000), "bad": torch.ones(5_000_000)}, path, sync=False)
    with path.open("r+b") as file:
        file.seek(-5_000_000, os.SEEK_END)
        file.write(b"\1")

    def load() -> None:
        with pytest.raises(fastckpt.ChecksumError):
            fastckpt.load(path, mmap=mmap)

    with collector_off():
        load()
        load()
        before = resident_nbytes()
        for _ in range(20):
            load()
        gc.collect()  # pytest.raises keeps the error, and its traceback, in a cycle
        assert resident_nbytes() - before < 60_000_000


@MMAP
def test_saving_over_its_own_file_again_and_again(mmap: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    fastckpt.save({"w": torch.zeros(2_000_000), "step": 0}, path)
    kept: list[torch.Tensor] = []
    for step in range(5):
        state: dict[str, Any] = fastckpt.load(path, mmap=mmap)
        kept.append(state["w"])
        assert state["step"] == step
        fastckpt.save({"w": state["w"] + 1, "step": step + 1}, path)
    for step, tensor in enumerate(kept):
        assert (tensor == step).all()


def test_a_save_needs_little_memory_of_its_own(tmp_path: Path) -> None:
    state = {f"w{i}": torch.ones(25_000_000) for i in range(5)}  # 500 MB
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_nbytes()
    for sync in (False, True):
        fastckpt.save(state, tmp_path / "model.pt", sync=sync, threads=16)
    peak = next(
        int(line.split()[1]) << 10
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    assert peak - before < 128 << 20


@MMAP
@pytest.mark.parametrize("weights_only", [True, False])
def test_random_states_and_threads_are_untouched(
    weights_only: bool, mmap: bool, saved: Path
) -> None:
    random.seed(5)
    torch.manual_seed(5)
    threads, default = torch.get_num_threads(), torch.get_default_dtype()
    before = (torch.get_rng_state(), random.getstate())
    state = fastckpt.load(saved, mmap=mmap, weights_only=weights_only)
    fastckpt.save(state, saved)
    fastckpt.verify(saved)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, default)


@pytest.mark.slow
def test_a_file_larger_than_memory_can_be_mapped(tmp_path: Path) -> None:
    """Its pages are copied only where they are written to, so they need no memory up front."""
    memory_nbytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    nbytes = memory_nbytes * 3 // 2
    hole, path = tmp_path / "hole", tmp_path / "model.pt"
    storage = torch.UntypedStorage.from_file(str(hole), shared=True, nbytes=nbytes)
    weight = torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[arg-type]
    with torch.serialization.skip_data():
        torch.save({"w": weight}, path)
    loaded = fastckpt.load(path, mmap=True, verify=False)["w"]
    assert loaded.shape == (nbytes,)
    loaded[-1] = 7
    assert (loaded[0], loaded[-1]) == (0, 7)
