# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import gc
import io
import re
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.archives import data_pkl, records, torch_bytes
from tests.specimens import (
    SPECIMENS,
    Specimen,
    can_save,
    dtypes,
    fill,
    objects,
    quiet,
    storage_bytes,
)

from fastckpt._archive.pickling import pickle_object


def assert_pickles_as_torch(obj: Any, protocol: int = 2) -> None:
    with quiet():
        pickled = pickle_object(obj, protocol)
        archive = torch_bytes(obj, pickle_protocol=protocol)
    assert pickled.data == data_pkl(archive)
    found = {f"data/{i}": storage_bytes(s) for i, s in enumerate(pickled.storages)}
    assert found == {k: v for k, v in records(archive).items() if k.startswith("data/")}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("specimen", SPECIMENS, ids=lambda s: s.name)
def test_every_kind_of_object_pickles_as_in_torch(specimen: Specimen, protocol: int) -> None:
    with quiet():
        obj = specimen.make()
    assert_pickles_as_torch(obj, protocol)


@pytest.mark.parametrize("dtype", [d for d in dtypes() if can_save(d)], ids=str)
def test_every_dtype_pickles_as_in_torch(dtype: torch.dtype) -> None:
    assert_pickles_as_torch({"whole": fill(dtype, 5), "part": fill(dtype, 7)[2:5]})


@given(objects(), st.sampled_from([2, 3, 4]))
def test_nested_objects_pickle_as_in_torch(obj: Any, protocol: int) -> None:
    assert_pickles_as_torch(obj, protocol)


def test_storages_come_in_order_of_first_appearance() -> None:
    first, second = torch.ones(3), torch.zeros(2)
    pickled = pickle_object([second, first[1:], second.view(2, 1), first])
    assert [s.data_ptr() for s in pickled.storages] == [second.data_ptr(), first.data_ptr()]


def test_storages_are_not_copied() -> None:
    tensor = torch.ones(3)
    (storage,) = pickle_object(tensor).storages
    assert storage.data_ptr() == tensor.data_ptr()
    assert storage.nbytes() == 12


def test_two_storages_on_one_memory_are_two_records() -> None:
    array = torch.ones(3).numpy()
    pickled = pickle_object([torch.from_numpy(array), torch.from_numpy(array)])
    assert len(pickled.storages) == 2


def test_two_dtypes_on_one_memory_are_refused_as_in_torch() -> None:
    tensor = torch.ones(4)
    for obj in ([tensor, tensor.view(torch.int32)], [tensor, tensor.untyped_storage()]):
        with pytest.raises(RuntimeError, match="view the same data as different types"):
            torch_bytes(obj)
        with pytest.raises(RuntimeError, match="view the same data as different types"):
            pickle_object(obj)


@pytest.mark.parametrize("kind", [torch.Tensor, torch.nn.Parameter])
def test_a_tensor_whose_memory_was_given_back_is_refused(kind: type[torch.Tensor]) -> None:
    """As FSDP leaves full parameters. torch.save writes such files, and nobody can load them."""
    tensor = torch.ones(3, 4)
    held = tensor if kind is torch.Tensor else torch.nn.Parameter(tensor)
    tensor.untyped_storage().resize_(0)
    buffer = io.BytesIO()
    torch.save(held, buffer)
    for weights_only in (True, False):
        buffer.seek(0)
        with pytest.raises(RuntimeError):
            torch.load(buffer, weights_only=weights_only)
    with pytest.raises(RuntimeError, match=r"a tensor of shape \(3, 4\) has no memory"):
        pickle_object({"w": [torch.empty(0), held]})


def test_tensors_without_elements_need_no_memory() -> None:
    assert_pickles_as_torch(
        [torch.empty(0, 5), torch.nn.Parameter(torch.empty(2, 0)), torch.ones(1)[:0]]
    )


def test_empty_storages_may_have_any_dtypes() -> None:
    empty = torch.empty(0)
    assert_pickles_as_torch([empty, empty.view(torch.int32), torch.empty(0, dtype=torch.int8)])


@pytest.mark.parametrize(
    "obj",
    [
        torch.UntypedStorage(8, device="meta"),
        lambda: None,
        (letter for letter in "ab"),
    ],
    ids=["meta storage", "function", "generator"],
)
def test_what_torch_refuses_raises_the_same(obj: Any) -> None:
    with pytest.raises(Exception) as torchs:
        torch_bytes(obj)
    with pytest.raises(Exception) as ours:
        pickle_object(obj)
    assert ours.type is torchs.type
    assert str(torchs.value) in str(ours.value)


def test_memory_formats_are_a_matter_between_torch_and_python() -> None:
    obj = {"format": torch.channels_last}
    try:
        expected = data_pkl(torch_bytes(obj))
    except TypeError as error:  # torch 2.6 on Python 3.10 cannot pickle them; on 3.13 it can
        with pytest.raises(TypeError, match=re.escape(str(error))):
            pickle_object(obj)
    else:
        assert pickle_object(obj).data == expected


@pytest.mark.parametrize("dtype", [d for d in dtypes() if not can_save(d)], ids=str)
def test_dtypes_that_torch_cannot_save_raise_the_same(dtype: torch.dtype) -> None:
    try:
        tensor = fill(dtype, 1)
    except Exception:
        pytest.skip("torch cannot make a plain tensor of it")
    with pytest.raises(Exception) as torchs:
        torch_bytes(tensor)
    with pytest.raises(Exception) as ours:
        pickle_object(tensor)
    assert (ours.type, str(ours.value)) == (torchs.type, str(torchs.value))


def test_nothing_waits_for_the_garbage_collector() -> None:
    # Training scripts switch it off: a cycle would keep the whole state dict in memory.
    gc.collect()
    gc.disable()
    try:
        tensor = torch.nn.Parameter(torch.ones(3))
        seen = weakref.ref(tensor)
        pickled = pickle_object({"a": tensor, "b": [tensor.detach()[1:]]})
        storage = weakref.ref(pickled.storages[0])
        assert storage() is not None
        del tensor, pickled
        assert seen() is None
        assert storage() is None
    finally:
        gc.enable()
