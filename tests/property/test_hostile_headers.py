"""Safetensors headers nobody should trust: read as the library reads them, or a `FormatError`, and little memory."""

# mypy: untyped-calls-exclude=safetensors

from __future__ import annotations

import json
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.property.hostile_headers import (
    compare_with_library,
    file_of,
    of_commands,
    of_header,
    run,
)

import fastckpt
from fastckpt._contents.safetensors_header import HEADER_NBYTES_MAX, read_safetensors_header

CASES = 500
SEED = 20263


def test_what_is_read_is_what_the_library_reads_and_the_rest_is_refused(tmp_path: Path) -> None:
    tally = run(SEED, CASES, tmp_path)
    print(tally)
    assert tally.failures == []
    assert tally.cases == CASES
    assert tally.outcomes["read"] > 40
    assert tally.outcomes["refused"] > 300


@settings(max_examples=300, derandomize=True)
@given(
    header=st.binary(max_size=60) | st.text(max_size=60).map(str.encode), data=st.binary(max_size=9)
)
def test_arbitrary_bytes(header: bytes, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "a.safetensors")
        for content in (header, file_of(header, data), file_of(b"{" + header + b"}", data)):
            path.write_bytes(content)
            of_header(content, path)


# Bytes of an element.
_SIZES = {
    "BOOL": 1,
    "U8": 1,
    "F8_E8M0": 1,
    "F8_E4M3FNUZ": 1,
    "BF16": 2,
    "U16": 2,
    "F32": 4,
    "C64": 8,
    "F64": 8,
}
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@st.composite
def good_files(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A header that is as it should be, and as many bytes of data as it says."""
    names = draw(
        st.lists(_TEXT.filter(lambda name: name != "__metadata__"), max_size=5, unique=True)
    )
    end, entries = 0, []
    for name in names:
        dtype = draw(st.sampled_from(sorted(_SIZES)))
        shape = draw(st.lists(st.integers(0, 3), max_size=4))
        nbytes = _SIZES[dtype]
        for length in shape:
            nbytes *= length
        entries.append(
            (name, {"dtype": dtype, "shape": shape, "data_offsets": [end, end + nbytes]})
        )
        end += nbytes
    document: dict[str, Any] = dict(draw(st.permutations(entries)))
    if draw(st.booleans()):
        document["__metadata__"] = draw(st.dictionaries(_TEXT, _TEXT, max_size=3))
    text = json.dumps(document, ensure_ascii=draw(st.booleans())).encode("utf-8")
    return text + b" " * draw(st.integers(0, 8)), bytes(i % 251 for i in range(end))


@settings(max_examples=200, derandomize=True)
@given(good_files())
def test_what_is_as_it_should_be_is_read(file: tuple[bytes, bytes]) -> None:
    content = file_of(*file)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "a.safetensors")
        path.write_bytes(content)
        compare_with_library(read_safetensors_header(str(path)), content, path)


def _entry(shape: list[int], nbytes: int, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, nbytes]}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"\ud800": _entry([1], 1)}, r"it has text that is not valid Unicode: '\ud800'"),
        ({"__metadata__": {"\udfff": "x"}, "a": _entry([1], 1)}, r"it has text that is not valid Unicode: '\udfff'"),
        ({"__metadata__": {"x": "\udfff"}, "a": _entry([1], 1)}, r"it has text that is not valid Unicode: '\udfff'"),
        # 2^64 elements on the way to none.
        ({"a": _entry([2**62, 4, 0], 0)}, "tensor 'a' has 0 bytes, and not those of its shape"),
        ({"a": _entry([2**32, 2**32, 0], 0)}, "tensor 'a' has 0 bytes, and not those of its shape"),
        ({"x" * 10**6: _entry([2], 1)}, f"tensor '{'x' * 60}'... has 1 bytes, and not those"),
        ({"a\nerror: b": _entry([2], 1)}, r"tensor 'a\nerror: b' has 1 bytes, and not those"),
    ],
)  # fmt: skip
def test_what_the_library_refuses_is_refused_in_one_line(
    header: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    data = b"\1" if b"[0, 1]" in json.dumps(header).encode() else b""
    content = file_of(json.dumps(header).encode("ascii"), data)
    path.write_bytes(content)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(content)
    with pytest.raises(fastckpt.FormatError) as caught:
        read_safetensors_header(str(path))
    assert str(caught.value).startswith(f"{path} is not a safetensors file, or is damaged: {words}")
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.path == str(path)
    of_commands(path, is_read=False)


@pytest.mark.parametrize("shape", [[0, 2**62, 7], [0, 7, 2**31, 2**31], [2**63 - 1, 0]])
def test_lengths_beyond_torchs_numbers_are_no_bug_of_ours(shape: list[int], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(file_of(json.dumps({"a": _entry(shape, 0)}).encode("ascii"), b""))
    assert read_safetensors_header(str(path)).tensors[0].shape == tuple(shape)
    of_commands(path, is_read=True)


@pytest.mark.parametrize("length", [100_000_000 - 8, HEADER_NBYTES_MAX + 1, 2**64 - 1])
def test_a_claimed_header_is_not_read(length: int, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little") + b"{")
        file.truncate(100_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(fastckpt.FormatError, match="its header"):
            read_safetensors_header(str(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    of_commands(path, is_read=False)
