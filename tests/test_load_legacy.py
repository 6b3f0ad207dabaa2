"""Files of torch before 1.6 (`_use_new_zipfile_serialization=False`): what loads, and what is said of it."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import gzip
import io
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.archives import legacy_bytes, torch_bytes, torchscript_bytes
from tests.faults.opcodes import program
from tests.legacy_files import legacy_file, persistent_id, stored, tar_file, view_of
from tests.legacy_specimens import OLD_FORMS, REFUSED, SIX, WRONG_SIZES, over_six, rebuilt
from tests.loaded_files import load_bytes
from tests.specimens import SPECIMENS, Specimen, assert_same, can_save, dtypes, fill, quiet

import fastckpt
from fastckpt import ChecksumError, FormatError, MissingChecksumWarning

# There are never any, which tests at the end are about.
pytestmark = pytest.mark.filterwarnings("ignore::fastckpt.MissingChecksumWarning")


# What loads


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("specimen", SPECIMENS, ids=lambda specimen: specimen.name)
def test_every_object_comes_back(specimen: Specimen, weights_only: bool) -> None:
    with quiet():
        data = legacy_bytes(specimen.make())
        if weights_only and not specimen.is_safe:
            with pytest.raises(fastckpt.UnsafePickleError, match="Weights only load failed"):
                load_bytes(data)
            return
        # torch cannot load all of what it writes in this format, but in the other.
        expected = torch.load(io.BytesIO(torch_bytes(specimen.make())), weights_only=False)
        assert_same(load_bytes(data, weights_only=weights_only), expected)


@pytest.mark.parametrize("dtype", [d for d in dtypes() if can_save(d)], ids=str)
def test_every_dtype_comes_back(dtype: torch.dtype) -> None:
    """torch 2.15 itself cannot load those whose storages have no type of their own."""
    with quiet():
        expected = {"w": fill(dtype, 7), "part": fill(dtype, 5)[2:], "none": fill(dtype, 0)}
        data = legacy_bytes(expected)
        assert_same(load_bytes(data), expected)
        assert_same(load_bytes(data, weights_only=False), expected)


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("name", OLD_FORMS)
def test_what_older_torch_wrote_is_what_torch_loads(name: str, weights_only: bool) -> None:
    with quiet():
        expected = torch.load(io.BytesIO(OLD_FORMS[name]), weights_only=weights_only)
        found = load_bytes(OLD_FORMS[name], weights_only=weights_only)
    assert_same(found, expected)


def test_views_share_their_storage() -> None:
    part, _, whole = load_bytes(OLD_FORMS["one_view_twice"])
    part[0] = 70.0
    assert whole[0, 2] == 70.0


@pytest.mark.parametrize("pickle_protocol", [2, 3])
def test_protocols_load_as_in_torch(pickle_protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    obj = {"w": torch.arange(5.0), "n": [1, "two"]}
    torch.save(obj, path, pickle_protocol=pickle_protocol, _use_new_zipfile_serialization=False)
    with quiet():
        assert_same(fastckpt.load(path), torch.load(path))


@pytest.mark.parametrize("pickle_protocol", [0, 1, 4, 5])
def test_protocols_that_torch_refuses_are_refused(pickle_protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    obj = {"n": [1, "two"]}
    torch.save(obj, path, pickle_protocol=pickle_protocol, _use_new_zipfile_serialization=False)
    with quiet():
        with pytest.raises(Exception, match="Weights only load failed"):
            torch.load(path)
        with pytest.raises(fastckpt.UnsafePickleError, match="Weights only load failed"):
            fastckpt.load(path)
        assert fastckpt.load(path, weights_only=False) == obj


@pytest.mark.parametrize(
    "map_location",
    [None, "cpu", torch.device("cpu"), {"cpu": "meta"}, lambda storage, _location: storage],
    ids=["none", "cpu", "device", "dict", "function"],
)
def test_locations_are_those_of_torch(map_location: Any) -> None:
    data = legacy_bytes({"w": torch.arange(4.0), "row": torch.ones(3, 2)[1]})
    if isinstance(map_location, dict):
        # torch reads the payload into a storage that has no memory.
        assert load_bytes(data, map_location)["w"].is_meta
        return
    assert_same(load_bytes(data, map_location), torch.load(io.BytesIO(data), map_location))


def test_to_the_meta_device_no_payload_is_read() -> None:
    data = legacy_bytes({"w": torch.arange(4.0)})
    found = load_bytes(data, "meta")["w"]
    assert found.is_meta
    offset = found.untyped_storage()._checkpoint_offset
    assert data[offset:] == struct.pack("<4f", *range(4))


def test_threads_and_progress_work_as_in_archives(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    obj = [fill(torch.int64, 400_000, seed) for seed in range(3)]
    path.write_bytes(legacy_bytes(obj))
    calls: list[tuple[int, int]] = []
    found = fastckpt.load(path, threads=2, progress=lambda done, of: calls.append((done, of)))
    assert_same(found, obj)
    assert calls[-1] == (9_600_000, 9_600_000)


def test_tensors_lie_where_elements_may(tmp_path: Path) -> None:
    """Whatever the length of the pickles in front of them."""
    path = tmp_path / "old.pt"
    for pad in range(16):
        obj = {"x" * pad: fill(torch.complex128, 300_000), "small": fill(torch.complex128, 3)}
        path.write_bytes(legacy_bytes(obj))
        found = fastckpt.load(path)
        assert_same(found, obj)
        assert all(tensor.data_ptr() % 16 == 0 for tensor in found.values())


@pytest.mark.parametrize("count", [2_000, 40_000])
def test_pickles_may_be_of_any_length(count: int) -> None:
    """They are read in pieces that double, until the last of them has ended."""
    obj = {f"layer.{number}.weight": number for number in range(count)} | {"w": torch.ones(3)}
    data = legacy_bytes(obj)
    assert_same(load_bytes(data), obj)
    with pytest.raises(FormatError, match="inside the pickle of the object: it is truncated"):
        load_bytes(data[: len(data) // 2])


# Where a file object stands


@pytest.mark.parametrize("wrap", ["file", "unbuffered", "bytes", "gzip"])
def test_objects_may_lie_one_behind_the_other(wrap: str, tmp_path: Path) -> None:
    path = tmp_path / "two.pt"
    first, second = {"w": torch.arange(9)}, [torch.ones(3), "two"]
    data = b"in front" + legacy_bytes(first) + legacy_bytes(second)
    path.write_bytes(gzip.compress(data) if wrap == "gzip" else data)
    opened: dict[str, Callable[[], Any]] = {
        "file": lambda: path.open("rb"),
        "unbuffered": lambda: path.open("rb", buffering=0),
        "bytes": lambda: io.BytesIO(data),
        "gzip": lambda: gzip.GzipFile(path),
    }
    for load in (torch.load, fastckpt.load):
        with opened[wrap]() as file:
            file.seek(len(b"in front"))
            assert_same(load(file), first)
            assert_same(load(file), second)
            assert file.tell() == len(data)


def test_what_follows_the_object_is_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    path.write_bytes(legacy_bytes(torch.arange(3)) + b"anything")
    assert_same(fastckpt.load(path), torch.load(path))


# What is refused


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_file_that_is_cut_is_refused_wherever(weights_only: bool) -> None:
    data = legacy_bytes({"w": torch.arange(4.0), "v": torch.ones(2, dtype=torch.int8)})
    for nbytes in range(40, len(data)):
        with pytest.raises(FormatError, match="truncated"):
            load_bytes(data[:nbytes], weights_only=weights_only)


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("name", WRONG_SIZES)
def test_sizes_that_do_not_agree_are_refused(name: str, weights_only: bool, tmp_path: Path) -> None:
    data, reason = WRONG_SIZES[name]
    path = tmp_path / "old.pt"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=reason) as error:
        fastckpt.load(path, weights_only=weights_only)
    assert str(path) in str(error.value)
    assert error.value.path == str(path)


BEYOND = {
    "view": persistent_id("1", 6, view_of("2", 2, 3)),
    "storage": persistent_id("1", 2),
}


@pytest.mark.parametrize("name", BEYOND)
def test_no_storage_is_made_larger(name: str) -> None:
    """Neither here nor by torch, which makes it so large first and compares then."""
    storage = [stored(6 if name == "view" else 2, SIX)]
    body = rebuilt(BEYOND[name], b"K\x04\x85", b"K\x01\x85")
    with pytest.raises(FormatError, match=r"cannot be built: .* not resizable"):
        load_bytes(legacy_file(program(body), ["1"], storage))
    with pytest.raises(RuntimeError, match="not resizable"):
        load_bytes(legacy_file(program(body), ["1"], storage), weights_only=False)


@pytest.mark.parametrize("name", REFUSED)
def test_pickles_that_ask_for_too_much_are_refused(name: str) -> None:
    with pytest.raises(fastckpt.UnsafePickleError, match="the pickle of the object, byte"):
        load_bytes(over_six(REFUSED[name]))


def test_mapping_is_refused_in_the_words_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    path.write_bytes(legacy_bytes(torch.ones(3)))
    for source in (path, str(path)):
        with pytest.raises(RuntimeError) as torchs:
            torch.load(source, mmap=True)
        with pytest.raises(RuntimeError) as ours:
            fastckpt.load(source, mmap=True)
        assert str(ours.value) == str(torchs.value)


# That there are no checksums


@pytest.mark.parametrize("form", ["legacy", "undecodable", "tar", "torchscript", "safetensors"])
def test_what_has_no_checksums_says_so(form: str, tmp_path: Path) -> None:
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "old.pt")
    if form == "safetensors":
        save_file = pytest.importorskip("safetensors.torch").save_file
        save_file({"w": torch.ones(3)}, path)
    else:
        contents: dict[str, Callable[[], bytes]] = {
            "legacy": lambda: legacy_bytes({"w": torch.ones(3)}),
            "undecodable": lambda: legacy_bytes([1], pickle_protocol=4),
            "tar": tar_file,
            "torchscript": torchscript_bytes,
        }
        path.write_bytes(contents[form]())
    with quiet():
        with pytest.raises(ChecksumError, match="cannot be found") as error:
            fastckpt.load(path, weights_only=False, verify="require")
        assert error.value.path == str(path)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            fastckpt.load(path, weights_only=False)
        ours = [warning for warning in said if warning.category is MissingChecksumWarning]
        assert len(ours) == 1
        assert ours[0].filename == __file__
        assert str(path) in str(ours[0].message)
        with warnings.catch_warnings():
            warnings.simplefilter("error", MissingChecksumWarning)
            fastckpt.load(path, weights_only=False, verify=False)


def test_a_refusal_comes_before_the_warning() -> None:
    with pytest.raises(fastckpt.UnsafePickleError):
        load_bytes(over_six(REFUSED["five_parts"]))
