# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import gc
import gzip
import io
import os
import pickle
import random
import subprocess
import sys
import tarfile
import tempfile
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.archives import (
    legacy_bytes,
    plain_zip,
    record_range,
    records,
    torch_bytes,
    torchscript_bytes,
    with_records,
    without_checksums,
    write_archive,
)
from tests.specimens import (
    SPECIMENS,
    Labelled,
    Specimen,
    assert_same,
    can_save,
    dtypes,
    fill,
    objects,
    quiet,
    storage_bytes,
)

import fastckpt
from fastckpt import FormatError, MissingChecksumWarning, UnsafePickleError

OTHER_ORDER = "big" if sys.byteorder == "little" else "little"


def load_bytes(archive: bytes, *arguments: Any, **options: Any) -> Any:
    return fastckpt.load(io.BytesIO(archive), *arguments, **options)


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


# map_location


@pytest.mark.parametrize(
    "map_location",
    [
        None,
        "cpu",
        torch.device("cpu"),
        {"cpu": "cpu"},
        {},
        "meta",
        torch.device("meta"),
        {"cpu": "meta"},
        lambda storage, _: storage,
        lambda *_: None,
        lambda storage, _: torch.UntypedStorage(storage.nbytes(), device="meta"),
    ],
    ids=["None", "str", "device", "dict", "{}", "meta", "device meta", "dict meta", "f", "g", "h"],
)
@pytest.mark.parametrize("weights_only", [True, False])
def test_map_location_means_what_it_means_to_torch(map_location: Any, weights_only: bool) -> None:
    obj = {"w": torch.arange(6.0).reshape(2, 3).t(), "p": torch.nn.Parameter(torch.ones(2))}
    archive = torch_bytes(obj)
    expected = torch.load(io.BytesIO(archive), map_location, weights_only=weights_only)
    assert_same(load_bytes(archive, map_location, weights_only=weights_only), expected)


def test_a_function_sees_filled_storages_and_their_locations() -> None:
    seen = []

    def place(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage:
        seen.append((storage_bytes(storage), location))
        return storage

    load_bytes(torch_bytes([torch.tensor([1, 2], dtype=torch.uint8)]), place)
    assert seen == [(b"\x01\x02", "cpu")]


def test_an_error_of_the_function_is_raised_as_it_is() -> None:
    def refuse(storage: torch.UntypedStorage, location: str) -> None:
        raise LookupError("no place")

    with pytest.raises(LookupError, match="no place"):
        load_bytes(torch_bytes(torch.ones(2)), refuse)


@pytest.mark.parametrize(
    "map_location", ["cuda:77", "nonsense", "cpu:0", {"cpu": "cuda:77"}, b"cpu", 3], ids=repr
)
def test_devices_that_are_not_there_raise_as_in_torch(map_location: Any) -> None:
    archive = torch_bytes(torch.ones(2))
    with pytest.raises((RuntimeError, TypeError, AttributeError)) as torchs:
        torch.load(io.BytesIO(archive), map_location)
    with pytest.raises(torchs.type) as ours:
        load_bytes(archive, map_location)
    assert str(ours.value) == str(torchs.value)


def test_meta_reads_no_payload_and_says_where_it_lies(tmp_path: Path) -> None:
    archive = bytearray(torch_bytes({"w": torch.ones(3)}))
    payload = record_range(bytes(archive), "data/0")
    archive[payload.start] ^= 1
    (tmp_path / "model.pt").write_bytes(archive)
    loaded = fastckpt.load(tmp_path / "model.pt", "meta")
    assert loaded["w"].is_meta
    assert loaded["w"].untyped_storage()._checkpoint_offset == payload.start


@pytest.mark.cuda
@pytest.mark.parametrize("map_location", ["cuda", "cuda:0", torch.device("cuda"), {"cpu": "cuda"}])
def test_cuda_round_trip(map_location: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    base = torch.arange(20_000_000)
    obj = {"base": base, "view": base[5:], "half": base.half(), "empty": torch.empty(0)}
    fastckpt.save(obj, path)
    expected = torch.load(path, map_location)
    assert_same(fastckpt.load(path, map_location), expected)
    fastckpt.save(expected, path)
    assert_same(fastckpt.load(path), torch.load(path))


# weights_only


class Planted:
    """Runs a command where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(2), "x": Planted(tmp_path / "ran")}, path)
    with pytest.raises(UnsafePickleError) as error:
        fastckpt.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "posix.mkdir" in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("specimen", [s for s in SPECIMENS if not s.is_safe], ids=lambda s: s.name)
def test_what_torch_refuses_is_refused(specimen: Specimen) -> None:
    with quiet():
        archive = torch_bytes(specimen.make())
        try:
            expected = torch.load(io.BytesIO(archive), weights_only=True)
        except pickle.UnpicklingError:
            # Both what torch raises and what we document.
            with pytest.raises(UnsafePickleError, match="Weights only load failed"):
                load_bytes(archive)
            with pytest.raises(pickle.UnpicklingError):
                load_bytes(archive)
        else:  # some versions of torch allow nested tensors
            assert_same(load_bytes(archive), expected)


def test_a_refusal_has_the_advice_of_torch() -> None:
    archive = torch_bytes(torch.ones(3).as_subclass(Labelled))
    with pytest.raises(UnsafePickleError, match=r"add_safe_globals\(\[.*Labelled\]\)"):
        load_bytes(archive)


def test_safe_globals_are_honoured() -> None:
    archive = torch_bytes({"t": torch.ones(3).as_subclass(Labelled)})
    with torch.serialization.safe_globals([Labelled]):
        loaded = load_bytes(archive)["t"]
    assert type(loaded) is Labelled
    assert torch.equal(loaded.as_subclass(torch.Tensor), torch.ones(3))


def test_false_is_pythons_own_pickle() -> None:
    class_free = [range(3), slice(1, 2), Planted]
    assert load_bytes(torch_bytes(class_free), weights_only=False) == class_free


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_false_takes_every_pickle_protocol(protocol: int) -> None:
    obj = {"w": torch.arange(3), "x": range(4)}
    assert_same(load_bytes(torch_bytes(obj, pickle_protocol=protocol), weights_only=False), obj)


@pytest.mark.parametrize(
    ("variables", "argument", "is_loaded"),
    [
        ({}, True, False),
        ({}, None, False),
        ({}, False, True),
        ({"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}, False, False),
        ({"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "yes"}, None, True),
        # What the caller says is stronger: the default is True, not silence.
        ({"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}, True, False),
    ],
)
def test_environment(
    variables: dict[str, str],
    argument: bool | None,
    is_loaded: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    archive = torch_bytes(range(3))
    if is_loaded:
        assert load_bytes(archive, weights_only=argument) == range(3)
    else:
        with pytest.raises(UnsafePickleError):
            load_bytes(archive, weights_only=argument)


def test_contradicting_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(RuntimeError, match="Only one of"):
        load_bytes(torch_bytes(1))


def test_bad_sparse_indices_are_found() -> None:
    with quiet():
        sparse = torch.sparse_coo_tensor(torch.tensor([[0, 1]]), torch.ones(2), (2,))
        bad = with_records(
            torch_bytes(sparse), {"data/0": (0).to_bytes(8, "little") + (9).to_bytes(8, "little")}
        )
        with pytest.raises(FormatError, match=r"BytesIO.*size is inconsistent with indices"):
            load_bytes(bad)
        # Nothing of it is left for the next load to stumble over.
        load_bytes(torch_bytes(sparse))


def test_an_object_that_cannot_be_built_names_the_file() -> None:
    with quiet():
        archive = torch_bytes(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
        broken = records(archive)["data.pkl"].replace(b"per_tensor_affine", b"per_channel_affine")
        with pytest.raises(FormatError, match=r"BytesIO.*cannot be built"):
            load_bytes(with_records(archive, {"data.pkl": broken}))


# Checksums (which bits are found is tested elsewhere)


@pytest.mark.parametrize("mmap", [False, True])
def test_a_damaged_tensor_is_named(mmap: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    archive = bytearray(torch_bytes({"good": torch.ones(3), "bad": torch.ones(5)}))
    payload = record_range(bytes(archive), "data/1")
    archive[payload.start + 2] ^= 0x10
    path.write_bytes(archive)
    torch.load(path)  # says nothing
    with pytest.raises(fastckpt.ChecksumError) as error:
        fastckpt.load(path, mmap=mmap)
    assert error.value.path == str(path)
    assert error.value.record == "data/1"
    assert error.value.tensors == ["bad"]
    assert error.value.offset == payload.start
    assert error.value.nbytes == 20
    assert error.value.expected != error.value.found
    assert "'bad'" in str(error.value)
    assert str(path) in str(error.value)
    assert isinstance(error.value, RuntimeError)
    with pytest.raises(fastckpt.ChecksumError):
        fastckpt.load(path, weights_only=False, mmap=mmap)
    assert not torch.equal(fastckpt.load(path, verify=False)["bad"], torch.ones(5))


def test_records_that_nobody_asks_for_are_checked_too() -> None:
    archive = with_records(torch_bytes({"w": torch.ones(3)}), {"data/7": b"spare"})
    assert torch.equal(load_bytes(archive)["w"], torch.ones(3))
    damaged = bytearray(archive)
    damaged[record_range(archive, "data/7").start] ^= 1
    with pytest.raises(fastckpt.ChecksumError, match="data/7"):
        load_bytes(bytes(damaged))
    load_bytes(bytes(damaged), verify=False)


def test_a_file_without_checksums_loads_with_one_warning() -> None:
    archive = without_checksums({"a": torch.ones(3), "b": torch.ones(2)})
    with pytest.warns(MissingChecksumWarning, match=r"<BytesIO>.*no checksums") as caught:
        loaded = load_bytes(archive)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert_same(loaded, {"a": torch.ones(3), "b": torch.ones(2)})


def test_require_refuses_a_file_without_checksums() -> None:
    archive = without_checksums({"a": torch.ones(3)})
    with pytest.raises(fastckpt.ChecksumError, match="no checksums"):
        load_bytes(archive, verify="require")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_bytes(archive, verify=False)
        load_bytes(torch_bytes({"a": torch.ones(3)}), verify="require")


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="verify must be True, False or 'require', not 'yes'"):
        load_bytes(b"", verify="yes")
    with pytest.raises(ValueError, match="threads must be at least 1"):
        load_bytes(b"", threads=0)


# What is no zip of torch.save


@pytest.mark.parametrize("weights_only", [True, False])
def test_files_before_torch_1_6_are_left_to_torch(weights_only: bool, tmp_path: Path) -> None:
    obj = {"w": torch.arange(3.0), "v": [torch.ones(2)]}
    path = tmp_path / "old.pt"
    path.write_bytes(legacy_bytes(obj))
    assert_same(fastckpt.load(path, weights_only=weights_only), obj)
    assert_same(load_bytes(path.read_bytes(), weights_only=weights_only), obj)


def test_torchscript_is_left_to_torch(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    path.write_bytes(torchscript_bytes())
    with quiet():
        with pytest.raises(RuntimeError, match="TorchScript"):
            fastckpt.load(path)
        module = fastckpt.load(path, weights_only=False)
        assert load_bytes(path.read_bytes(), weights_only=False)(torch.ones(1, 2)).shape == (1, 2)
    assert module(torch.ones(1, 2)).shape == (1, 2)


def test_tar_files_are_left_to_torch(tmp_path: Path) -> None:
    path = tmp_path / "old.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    with pytest.raises(Exception) as torchs:
        torch.load(path)
    with pytest.raises(torchs.type) as ours:
        fastckpt.load(path)
    assert str(ours.value) == str(torchs.value)


def test_safetensors_are_left_to_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"anything")
    calls = []
    monkeypatch.setattr(torch, "load", lambda *args, **options: calls.append((args, options)))
    fastckpt.load(path, "cpu")
    assert calls == [((path, "cpu"), {"weights_only": True, "mmap": False})]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (bytes(4096), "begins with zeros"),
        (b"{'json': 1}", "its first bytes are"),
        (b"PYTORCH1rest", "preview of torch 1.0"),
        (pickle.dumps({"a": 1}), "its first bytes are"),
    ],
)
def test_other_files_are_refused_by_name(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=reason) as error:
        fastckpt.load(path)
    assert str(error.value).startswith(f"{path} is not a checkpoint")
    assert error.value.path == str(path)
    with pytest.raises(FormatError, match=reason):
        load_bytes(content)


def test_a_zip_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "exported.pt2"
    path.write_bytes(write_archive([("archive_format", b"pt2")]))
    with pytest.raises(FormatError, match=r"zip archive without a data.pkl"):
        fastckpt.load(path)


def test_a_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        fastckpt.load(tmp_path / "missing.pt")
    assert error.value.filename == str(tmp_path / "missing.pt")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is a directory, not a checkpoint file"):
        fastckpt.load(tmp_path)


@pytest.mark.timeout(10)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(FormatError, match="not a regular file"):
        fastckpt.load(tmp_path / "pipe.pt")


def test_a_device_is_refused() -> None:
    with pytest.raises(FormatError, match="not a regular file"):
        fastckpt.load("/dev/zero")


def test_names_that_are_no_utf8_work(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.pt"
    with open(path, "wb") as file:
        torch.save(torch.ones(2), file)
    assert torch.equal(fastckpt.load(os.fsdecode(path)), torch.ones(2))


# Damaged structure


def test_a_missing_record_is_refused() -> None:
    archive = with_records(torch_bytes({"w": torch.ones(3)}), {"data/0": None})
    for weights_only in (True, False):
        with pytest.raises(FormatError, match=r"BytesIO.*data/0"):
            load_bytes(archive, weights_only=weights_only)


@pytest.mark.parametrize("nbytes", [0, 11, 16, 100])
def test_a_record_of_another_size_is_refused(nbytes: int) -> None:
    archive = with_records(torch_bytes({"w": torch.ones(3)}), {"data/0": bytes(nbytes)})
    with pytest.raises(FormatError, match=f"tensor 'w'. has {nbytes} bytes, and data.pkl says 12"):
        load_bytes(archive)
    with pytest.raises(FormatError, match=f"has {nbytes} bytes"):
        load_bytes(archive, lambda storage, _: storage)


# Byte order


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.int16, torch.bool, torch.complex64, torch.float64], ids=str
)
@pytest.mark.parametrize("weights_only", [True, False])
def test_the_other_byte_order_is_swapped(dtype: torch.dtype, weights_only: bool) -> None:
    obj = {"w": fill(dtype, 6)}
    archive = torch_bytes(obj)
    storage = obj["w"].clone().untyped_storage()
    storage.byteswap(dtype)
    swapped = with_records(
        archive, {"byteorder": OTHER_ORDER.encode(), "data/0": storage_bytes(storage)}
    )
    assert_same(torch.load(io.BytesIO(swapped)), obj)
    assert_same(load_bytes(swapped, weights_only=weights_only), obj)
    assert load_bytes(swapped, "meta")["w"].is_meta


def test_the_other_byte_order_is_refused_where_torch_would_be_wrong() -> None:
    archive = torch_bytes(torch.ones(3, dtype=torch.uint16))
    swapped = with_records(archive, {"byteorder": OTHER_ORDER.encode()})
    with pytest.raises(FormatError, match="another byte order"):
        load_bytes(swapped)


def test_the_default_byte_order_is_configurable() -> None:
    entries = records(torch_bytes(torch.tensor([1], dtype=torch.int16)))
    del entries["byteorder"]
    archive = plain_zip(entries)
    assert load_bytes(archive).item() == (1 if sys.byteorder == "little" else 256)
    endianness = torch.serialization.LoadEndianness
    torch.serialization.set_default_load_endianness(endianness[OTHER_ORDER.upper()])
    try:
        assert load_bytes(archive).item() == 256
        torch.serialization.set_default_load_endianness(endianness.NATIVE)
        assert load_bytes(archive).item() == 1
    finally:
        torch.serialization.set_default_load_endianness(None)


def test_an_unknown_byte_order_is_refused() -> None:
    archive = with_records(torch_bytes(torch.ones(2)), {"byteorder": b"middle"})
    with pytest.raises(FormatError, match=r"byte ?order.*middle"):
        load_bytes(archive)


# File objects


@pytest.mark.parametrize("offset", [0, 100])
@pytest.mark.parametrize("buffering", [0, -1])
def test_file_objects_begin_where_they_stand(offset: int, buffering: int, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(bytes(offset) + torch_bytes({"w": torch.arange(999)}))
    with path.open("rb", buffering=buffering) as file:
        file.seek(offset)
        assert_same(fastckpt.load(file), {"w": torch.arange(999)})
    data = io.BytesIO(path.read_bytes())
    data.seek(offset)
    assert_same(fastckpt.load(data), {"w": torch.arange(999)})


def test_what_was_written_and_not_flushed_is_read(tmp_path: Path) -> None:
    with (tmp_path / "model.pt").open("w+b") as file:
        file.write(torch_bytes(torch.arange(9)))
        file.seek(0)
        assert torch.equal(fastckpt.load(file), torch.arange(9))


def test_compressed_files_are_read_through_their_object(tmp_path: Path) -> None:
    path = tmp_path / "model.pt.gz"
    path.write_bytes(gzip.compress(torch_bytes(torch.arange(9))))
    with gzip.open(path) as file:
        assert torch.equal(fastckpt.load(file), torch.arange(9))  # type: ignore[arg-type]


def test_a_temporary_file_can_be_saved_to_and_loaded_from() -> None:
    with tempfile.NamedTemporaryFile() as file:
        fastckpt.save(torch.arange(9), file)
        file.seek(0)
        assert torch.equal(fastckpt.load(file), torch.arange(9))


@pytest.mark.parametrize("target", [b"model.pt", 3, None])
def test_other_sources_raise_as_in_torch(target: Any) -> None:
    with pytest.raises(AttributeError) as torchs:
        torch.load(target)
    with pytest.raises(AttributeError) as ours:
        fastckpt.load(target)
    assert str(torchs.value).split(".")[0] in str(ours.value)


def test_streams_are_refused_as_in_torch() -> None:
    read, write = os.pipe()
    os.close(write)
    with os.fdopen(read, "rb") as file, pytest.raises(io.UnsupportedOperation, match="seek"):
        fastckpt.load(file)


def test_file_objects_cannot_be_mapped() -> None:
    with pytest.raises(ValueError, match="f must be a file path in order to use the mmap"):
        load_bytes(torch_bytes(1), mmap=True)


def test_a_loaded_buffer_is_free_again() -> None:
    file = io.BytesIO(torch_bytes({"w": torch.ones(3)}))
    loaded = fastckpt.load(file)
    file.seek(0)
    file.truncate()  # raises BufferError where a view of it is still held
    file.write(bytes(5000))
    assert torch.equal(loaded["w"], torch.ones(3))


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


def test_text_file_object_raises(tmp_path: Path) -> None:
    path = tmp_path / "text.pt"
    path.write_text("some text")
    with path.open() as file, pytest.raises(TypeError, match="mode 'rb'"):
        fastckpt.load(file)  # type: ignore[arg-type]


def test_default_device_does_not_matter_to_an_unpickler(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    # Not a sparse tensor: torch rebuilds those on the default device, and torch 2.6 then fails.
    obj = {"w": torch.arange(3.0), "empty": torch.empty(0), "unsafe": range(3)}
    torch.save(obj, path)
    with torch.device("meta"):
        loaded = fastckpt.load(path, weights_only=False)
    assert_same(loaded, obj)
