"""Checksums and damaged structure: what a load finds, and how it names it."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import io
import warnings
from pathlib import Path

import pytest
import torch
from tests.archives import record_range, torch_bytes, with_records, without_checksums
from tests.loaded_files import load_bytes
from tests.specimens import assert_same

import fastckpt
from fastckpt import FormatError, MissingChecksumWarning

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
        # The warning points to this line.
        loaded = fastckpt.load(io.BytesIO(archive))
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
