"""Files that are no zip of torch.save, and those of machines of the other byte order."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import contextlib
import io
import os
import pickle
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from tests.legacy_files import tar_file
from tests.loaded_files import load_bytes
from tests.specimens import assert_same, fill, quiet, storage_bytes
from torch._subclasses.fake_tensor import FakeTensorMode

import fastckpt
from fastckpt import FormatError

OTHER_ORDER = "big" if sys.byteorder == "little" else "little"


# What is no zip of torch.save


@pytest.mark.parametrize("weights_only", [True, False])
def test_files_before_torch_1_6_are_loaded(weights_only: bool, tmp_path: Path) -> None:
    """Of which test_load_legacy.py has more."""
    obj = {"w": torch.arange(3.0), "v": [torch.ones(2)]}
    path = tmp_path / "old.pt"
    path.write_bytes(legacy_bytes(obj))
    with pytest.warns(fastckpt.MissingChecksumWarning, match="before torch 1.6|torch before 1.6"):
        assert_same(fastckpt.load(path, weights_only=weights_only), obj)
    with pytest.warns(fastckpt.MissingChecksumWarning):
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


def test_tar_files_are_refused_as_in_torch(tmp_path: Path) -> None:
    path = tmp_path / "old.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    with pytest.raises(Exception) as torchs:
        torch.load(path)
    with pytest.raises(torchs.type) as ours:
        fastckpt.load(path)
    assert str(ours.value) == str(torchs.value)


@pytest.mark.parametrize("map_location", [None, "cpu", torch.device("cpu")])
def test_safetensors_are_loaded_as_by_torch(map_location: Any, tmp_path: Path) -> None:
    state = {"w": torch.arange(6.0).reshape(2, 3), "v": torch.ones(2, dtype=torch.bfloat16)}
    path = tmp_path / "model.safetensors"
    pytest.importorskip("safetensors.torch").save_file(state, path)
    with pytest.warns(fastckpt.MissingChecksumWarning, match="is a safetensors file"):
        assert_same(fastckpt.load(path, map_location), state)


@pytest.mark.parametrize("map_location", [{"cpu": "cpu"}, lambda storage, _location: storage])
def test_safetensors_go_to_a_device_only(map_location: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    pytest.importorskip("safetensors.torch").save_file({"w": torch.ones(1)}, path)
    with pytest.raises(RuntimeError, match="map_location is not supported"):
        fastckpt.load(path, map_location, verify=False)


@pytest.mark.parametrize("content", [legacy_bytes, torch_bytes], ids=["legacy", "archive"])
def test_a_name_of_safetensors_hides_no_pickle(
    content: Callable[[object], bytes], tmp_path: Path
) -> None:
    """torch before 2.10 does not look at the name, and so at a pickle that nobody has walked."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content({"w": torch.ones(3)}))
    with pytest.raises(FormatError, match="is not a safetensors file, or is damaged"):
        fastckpt.load(path, verify=False)


_FORMS = ("legacy", "tar", "torchscript", "safetensors", "archive")
_MODES = ("none", "fake", "skip_data")


@pytest.mark.parametrize(
    ("form", "mode"),
    # safetensors makes no fake tensors, here as in torch.load.
    sorted({(form, mode) for form in _FORMS for mode in _MODES} - {("safetensors", "fake")}),
)
def test_nothing_is_handed_to_torch_load(
    form: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would open the file again, and find there what it likes."""
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "model.pt")
    if form == "safetensors":
        pytest.importorskip("safetensors.torch").save_file({"w": torch.ones(1)}, path)
    else:
        contents: dict[str, Callable[[], bytes]] = {
            "legacy": lambda: legacy_bytes({"w": torch.ones(3)}),
            "tar": tar_file,
            "torchscript": torchscript_bytes,
            "archive": lambda: torch_bytes({"w": torch.ones(3)}),
        }
        path.write_bytes(contents[form]())

    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch.jit, "load", refuse)
    modes = {
        "none": contextlib.nullcontext,
        "fake": FakeTensorMode,
        "skip_data": torch.serialization.skip_data,
    }
    is_refused = form in ("tar", "torchscript")
    with modes[mode](), pytest.raises(RuntimeError) if is_refused else contextlib.nullcontext():
        assert "w" in fastckpt.load(path, verify=False)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (bytes(4096), "starts with zeros"),
        (b"{'json': 1}", "it starts with"),
        (b"PYTORCH1rest", "preview of torch 1.0"),
        (pickle.dumps({"a": 1}), "it starts with"),
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
