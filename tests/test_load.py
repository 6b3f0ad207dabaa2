"""`fastckpt.load` against torch.load: every kind of object, every setting."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import gc
import io
import os
import random
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.archives import torch_bytes, with_records
from tests.loaded_files import load_bytes
from tests.specimens import (
    SPECIMENS,
    Specimen,
    assert_same,
    can_save,
    dtypes,
    fill,
    objects,
    quiet,
    storage_bytes,
    torch_taking_numbers,
)

import fastckpt


def assert_round_trips(obj: Any, *, weights_only: bool = True) -> Any:
    """Write with each, read with each, plainly and mapped; returns what torch makes of it."""
    with quiet(), tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "model.pt")
        torch.save(obj, path)
        expected = torch.load(path, weights_only=weights_only)
        for save in (torch.save, fastckpt.save):
            save(obj, path)
            for load in (torch.load, fastckpt.load):
                for mmap in (False, True):
                    found = load(path, weights_only=weights_only, mmap=mmap)
                    assert_same(found, expected)
    return expected


# Four directions


@pytest.mark.parametrize("specimen", SPECIMENS, ids=lambda s: s.name)
def test_every_kind_of_object_round_trips(specimen: Specimen) -> None:
    with quiet():
        obj = specimen.make()
    if specimen.is_safe:
        with torch_taking_numbers():
            assert_round_trips(obj)
    assert_round_trips(obj, weights_only=False)


@pytest.mark.parametrize("dtype", [d for d in dtypes() if can_save(d)], ids=str)
def test_every_dtype_round_trips(dtype: torch.dtype) -> None:
    obj = {"plain": fill(dtype, 5), "part": fill(dtype, 9)[2:7], "empty": fill(dtype, 0)}
    assert_same(assert_round_trips(obj), obj)


@given(objects())
def test_nested_objects_round_trip(obj: Any) -> None:
    assert_same(assert_round_trips(obj), obj)


@given(objects(), st.booleans(), st.sampled_from([1, 2, 5]))
def test_file_objects_and_threads_do_not_matter(obj: Any, verify: bool, threads: int) -> None:
    archive = torch_bytes(obj)
    assert_same(load_bytes(archive, verify=verify, threads=threads), obj)


def test_shared_storages_stay_shared() -> None:
    base = torch.arange(6.0)
    loaded = load_bytes(torch_bytes([base, base[2:], base.view(2, 3)]))
    loaded[0][2] = 99
    assert loaded[1][0] == 99
    assert loaded[2][0, 2] == 99


def test_loaded_tensors_can_be_trained_in_place(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.zeros(5000)}, path)
    before = path.read_bytes()
    for mmap in (False, True):
        weight = fastckpt.load(path, mmap=mmap)["w"]
        weight += 1
        assert weight.sum() == 5000
    assert path.read_bytes() == before


@pytest.mark.parametrize("mmap", [False, True])
def test_tensors_outlive_the_file(mmap: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.arange(5000), "s": torch.arange(3)}, path)
    kept = fastckpt.load(path, mmap=mmap)["w"]
    path.unlink()
    gc.collect()
    assert torch.equal(kept, torch.arange(5000))


def test_a_tensor_each_has_a_storage_of_its_own() -> None:
    # One storage for many tensors could not be saved again once they had different dtypes.
    loaded = load_bytes(torch_bytes([torch.ones(3), torch.ones(3, dtype=torch.int64)]))
    assert [t.untyped_storage().nbytes() for t in loaded] == [12, 24]
    torch.save(loaded, io.BytesIO())


def test_a_storage_of_seven_bytes_may_be_viewed_as_floats() -> None:
    storage = torch.arange(7, dtype=torch.uint8).untyped_storage()
    archive = torch_bytes(torch.empty(0).set_(storage, 0, (1,), (1,)))
    loaded = load_bytes(archive)
    assert loaded.untyped_storage().nbytes() == 4
    assert storage_bytes(loaded.untyped_storage()) == bytes(range(4))


def test_optimizer_states_load_into_an_optimizer(tmp_path: Path) -> None:
    parameters = [torch.nn.Parameter(torch.ones(4)) for _ in range(3)]
    optimizer = torch.optim.AdamW(parameters)
    torch.stack([p.sum() for p in parameters]).sum().backward()
    optimizer.step()
    fastckpt.save(optimizer.state_dict(), tmp_path / "optim.pt")
    loaded = fastckpt.load(tmp_path / "optim.pt")
    assert_same(loaded, optimizer.state_dict())
    torch.optim.AdamW(parameters).load_state_dict(loaded)


def test_nothing_waits_for_the_garbage_collector() -> None:
    with quiet():
        archives = [torch_bytes({"w": torch.ones(3)}), torch_bytes([torch.eye(2).to_sparse()])]
    gc.collect()
    gc.disable()
    try:
        for archive in archives:
            for weights_only in (True, False):
                with quiet():
                    loaded = load_bytes(archive, weights_only=weights_only)
                tensor = loaded["w"] if isinstance(loaded, dict) else loaded[0]
                seen = weakref.ref(tensor)
                del loaded, tensor
                assert seen() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(3)}, path)
    fastckpt.load(path)
    before = len(os.listdir("/proc/self/fd"))
    kept = [fastckpt.load(path, mmap=mmap) for mmap in (False, True) for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(kept) == 10


# Settings and modes


def test_mmap_is_configurable(tmp_path: Path) -> None:
    config = pytest.importorskip("torch.utils.serialization.config")
    path = tmp_path / "model.pt"
    torch.save(torch.ones(3), path)
    config.load.mmap = True
    try:
        with pytest.raises(ValueError, match="mmap"):
            load_bytes(path.read_bytes())
        assert torch.equal(fastckpt.load(path), torch.ones(3))
        assert torch.equal(load_bytes(path.read_bytes(), mmap=False), torch.ones(3))
    finally:
        config.load.mmap = False


def test_the_default_device_does_not_matter() -> None:
    archive = torch_bytes({"w": torch.arange(3.0), "e": torch.empty(0)})
    with torch.device("meta"):
        loaded = load_bytes(archive)
    assert_same(loaded, {"w": torch.arange(3.0), "e": torch.empty(0)})


def test_fake_tensors_are_left_to_torch(tmp_path: Path) -> None:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(3)}, path)
    with FakeTensorMode():
        loaded = fastckpt.load(path)
    assert isinstance(loaded["w"], FakeTensor)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("weights_only", [True, False])
def test_progress_counts_up_to_the_whole(mmap: bool, weights_only: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(
        with_records(torch_bytes([torch.ones(300_000), range(3)]), {"data/9": b"spare"})
    )
    calls: list[tuple[int, int]] = []
    with torch.serialization.safe_globals([range]):
        fastckpt.load(
            path,
            mmap=mmap,
            weights_only=weights_only,
            progress=lambda done, total: calls.append((done, total)),
        )
    assert calls == sorted(calls)
    assert calls[-1] == (1_200_005, 1_200_005)
    assert {total for _, total in calls} == {1_200_005}


def test_an_error_in_progress_ends_the_load() -> None:
    def stop(done: int, total: int) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        load_bytes(torch_bytes(torch.ones(1_000_000)), progress=stop)


def test_import_is_light() -> None:
    script = (
        "import sys, fastckpt; assert fastckpt.FormatError; dir(fastckpt);"
        "print([m for m in ('torch', 'rich', 'typer', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def test_public_names() -> None:
    names: dict[str, Any] = {}
    exec("from fastckpt import *", names)
    assert set(fastckpt.__all__) <= set(names)
    assert set(fastckpt.__all__) <= set(dir(fastckpt))
    assert isinstance(fastckpt.__version__, str)
    with pytest.raises(AttributeError, match="module 'fastckpt' has no attribute 'nothing'"):
        fastckpt.nothing  # noqa: B018


def test_random_state_is_untouched() -> None:
    archive = torch_bytes({"w": torch.ones(3)})
    torch.manual_seed(1)
    random.seed(1)
    before = (torch.get_rng_state(), random.getstate(), torch.get_num_threads())
    load_bytes(archive)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), torch.get_num_threads()) == before[1:]
