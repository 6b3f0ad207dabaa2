"""Files that are no zip of torch.save, and those of machines of the other byte order."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import io
import os
import pickle
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from tests.archives import (
    legacy_bytes,
    plain_zip,
    records,
    torch_bytes,
    torchscript_bytes,
    with_records,
    write_archive,
)
from tests.loaded_files import load_bytes
from tests.specimens import assert_same, fill, quiet, storage_bytes

import fastckpt
from fastckpt import FormatError

OTHER_ORDER = "big" if sys.byteorder == "little" else "little"


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
