"""Loads from file objects."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import gzip
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.archives import torch_bytes
from tests.loaded_files import load_bytes
from tests.specimens import assert_same

import fastckpt


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


def test_text_file_object_raises(tmp_path: Path) -> None:
    path = tmp_path / "text.pt"
    path.write_text("some text")
    with path.open() as file, pytest.raises(TypeError, match="mode 'rb'"):
        fastckpt.load(file)  # type: ignore[arg-type]
