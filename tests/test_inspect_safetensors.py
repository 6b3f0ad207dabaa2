"""`fastckpt.inspect` of safetensors files: against their own library, and hostile headers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.inspected_files import inspected

import fastckpt
from fastckpt._contents.safetensors_header import HEADER_NBYTES_MAX, read_safetensors_header
from fastckpt.errors import FormatError

_SAFE_DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.dictionaries(
        st.text(max_size=8).filter(lambda name: name != "__metadata__"),
        st.builds(
            lambda shape, dtype: torch.zeros(shape, dtype=dtype),
            st.lists(st.integers(0, 4), max_size=3),
            st.sampled_from(_SAFE_DTYPES),
        ),
        max_size=5,
    ),
    # Of an empty dict safetensors 0.8 makes what is no JSON.
    metadata=st.none()
    | st.dictionaries(st.text(max_size=4), st.text(max_size=4), min_size=1, max_size=3),
)
def test_safetensors_as_its_own_library_writes_them(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(tensors, path, metadata)
    contents = inspected(path)
    assert contents.format == "safetensors"
    found = {row.name: (f"torch.{row.dtype}", row.shape, row.nbytes) for row in contents.tensors}
    assert found == {
        name: (str(tensor.dtype), tuple(tensor.shape), tensor.nbytes)
        for name, tensor in tensors.items()
    }
    assert contents.values == (metadata or {})
    assert contents.nbytes == path.stat().st_size


def write_safetensors(
    path: Path, header: object, data: bytes = b"", length: int | None = None
) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ([], b"", "its header is not a JSON object"),
        (b"{", b"", "Expecting property name"),
        (b"\xff", b"", "'utf-8' codec can't decode"),
        (b"[" * 100_000, b"", "nested too deeply"),
        (b'{"a": 1' + b"0" * 5000 + b"}", b"", "Exceeds the limit"),
        (b'{"a": NaN}', b"", "NaN has no place in a header"),
        (b'{"a": 1, "a": 2}', b"", "a name stands in its header twice"),
        ({"__metadata__": {"a": 1}}, b"", "its metadata is not text by name"),
        ({"__metadata__": []}, b"", "its metadata is not text by name"),
        ({"a": 1}, b"", "tensor 'a' is not described by dtype, shape and data_offsets"),
        ({"a": {**entry(), "b": 1}}, b"1234", "tensor 'a' is not described by"),
        ({"a": entry("F33")}, b"1234", "a dtype that is not known: 'F33'"),
        ({"a": entry(shape=[-1])}, b"1234", "the shape of tensor 'a' is invalid"),
        ({"a": entry(shape=[True])}, b"1234", "the shape of tensor 'a' is invalid"),
        ({"a": entry(shape=[1.0])}, b"1234", "the shape of tensor 'a' is invalid"),
        ({"a": entry(shape=[1] * 65)}, b"1234", "the shape of tensor 'a' is invalid"),
        ({"a": entry(shape=[2**62] * 60)}, b"1234", "has 4 bytes, and not those of its shape"),
        ({"a": entry(offsets=[4, 0])}, b"1234", "the data_offsets of tensor 'a' are invalid"),
        ({"a": entry(offsets=[0])}, b"1234", "the data_offsets of tensor 'a' are invalid"),
        ({"a": entry(offsets=[0, 2**70])}, b"1234", "the data_offsets of tensor 'a' are invalid"),
        ({"a": entry(shape=[2])}, b"1234", "has 4 bytes, and not those of its shape"),
        ({"a": entry()}, b"12345", "its tensors should end at byte"),
        ({"a": entry()}, b"123", "its tensors should end at byte"),
        (
            {"a": entry(), "b": entry(offsets=[8, 12])},
            b"123456789012",
            "tensor 'b' begins at byte 8 of the data; expected 4",
        ),
        (
            {"a": entry(), "b": entry(offsets=[2, 6])},
            b"123456",
            "tensor 'b' begins at byte 2 of the data; expected 4",
        ),
    ],
)
def test_hostile_safetensors_headers(
    header: object, data: bytes, words: str, tmp_path: Path
) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", header, data)
    with pytest.raises(FormatError) as caught:
        fastckpt.inspect(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{path} is not a safetensors file, or is damaged: ")


def test_a_length_is_only_believed_if_the_file_has_so_much(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for length in (2, 2**40, 2**63, 2**64 - 1):
        write_safetensors(path, b"{", length=length)
        with pytest.raises(FormatError, match=f"should have {length} bytes, and the file has 9"):
            read_safetensors_header(str(path))
    path.write_bytes(b"short")
    with pytest.raises(FormatError, match="fewer than the length of a header"):
        read_safetensors_header(str(path))
    with path.open("wb") as file:
        file.write(struct.pack("<Q", HEADER_NBYTES_MAX + 1))
        file.truncate(HEADER_NBYTES_MAX + 9)
    with pytest.raises(FormatError, match=f"more than {HEADER_NBYTES_MAX}"):
        read_safetensors_header(str(path))


_SPECIMEN = safetensors.torch.save({"a": torch.ones(2, 3), "b": torch.ones(4)}, {"format": "pt"})


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    position=st.integers(0, len(_SPECIMEN) - 1),
    replacement=st.binary(max_size=12),
    cut=st.integers(0, len(_SPECIMEN)),
)
@example(position=0, replacement=b"", cut=0)
def test_no_change_to_a_header_does_anything_but_refuse_or_show(
    position: int, replacement: bytes, cut: int, tmp_path: Path
) -> None:
    data = _SPECIMEN[:position] + replacement + _SPECIMEN[position + len(replacement) :]
    path = tmp_path / "a.safetensors"
    path.write_bytes(data[: len(data) - cut])
    try:
        contents = inspected(path)
    except FormatError:
        return
    data_nbytes = len(data) - cut - 8 - struct.unpack_from("<Q", data)[0]
    assert contents.total.nbytes == data_nbytes
    # What this reads, the format's own library reads too.
    loaded = safetensors.torch.load_file(path)
    assert {row.name: row.shape for row in contents.tensors} == {
        name: tuple(tensor.shape) for name, tensor in loaded.items()
    }
