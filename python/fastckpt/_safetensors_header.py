"""Read the header of a safetensors file that anybody may have made: what lies where.

The format: 8 bytes with the length of the header (little-endian), the header (JSON: for each tensor its
dtype, shape and where its bytes lie in what follows), then the bytes.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from typing import Any

from ._native import PlainFile
from .errors import FormatError

#: What the safetensors library itself refuses to exceed.
HEADER_NBYTES_MAX = 100_000_000
_LENGTH_NBYTES = 8
_METADATA = "__metadata__"
# torch counts elements in signed 64 bits, and has no more dimensions than it can iterate over.
_LENGTH_MAX = 2**63 - 1
_DIMENSIONS_MAX = 64
#: dtypes of the format, as torch names them, and the size of an element in bytes.
_DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "C64": ("complex64", 8),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}


@dataclass(frozen=True)
class HeaderTensor:
    """One tensor of the file: contiguous, from byte `offset` of the file on."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(file: PlainFile, path: str) -> tuple[dict[str, HeaderTensor], dict[str, str]]:
    """Return the tensors of a safetensors file in the order of their bytes, and its metadata.

    Raises:
        FormatError: It is not such a file, or says what cannot be.
        OSError: It cannot be read.
    """
    if sys.byteorder != "little":
        raise FormatError(
            f"{path}: safetensors files are read on little-endian machines", path=path
        )
    if file.nbytes < _LENGTH_NBYTES:
        raise _refusal(path, f"it has {file.nbytes} bytes")
    length = int.from_bytes(file.read(0, _LENGTH_NBYTES), "little")
    if length > HEADER_NBYTES_MAX or length > file.nbytes - _LENGTH_NBYTES:
        raise _refusal(path, f"its header would have {length} bytes")
    start = _LENGTH_NBYTES + length
    try:
        document = json.loads(
            file.read(_LENGTH_NBYTES, length).decode("utf-8"), object_pairs_hook=_no_duplicates
        )
        return _parse(document, start, file.nbytes)
    # ValueError: not UTF-8, not JSON, too many digits, or what is refused below.
    except (ValueError, RecursionError) as error:
        reason = "its JSON is nested too deeply" if isinstance(error, RecursionError) else error
        raise _refusal(path, str(reason)) from error


def _parse(
    document: Any, start: int, file_nbytes: int
) -> tuple[dict[str, HeaderTensor], dict[str, str]]:
    if not isinstance(document, dict):
        raise ValueError("its header is no JSON object")  # noqa: TRY004 - a FormatError in the end
    metadata = document.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{_METADATA} is no object of strings")
    tensors = {name: _tensor(name, fields, start) for name, fields in document.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    end = start
    for name, tensor in ordered.items():
        if tensor.offset != end:
            raise ValueError(f"the bytes of {name!r} overlap others, or leave a gap")
        end += tensor.nbytes
    if end != file_nbytes:
        raise ValueError(f"it has {file_nbytes} bytes, and its header speaks of {end}")
    return ordered, metadata


def _tensor(name: str, fields: Any, start: int) -> HeaderTensor:
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"what it says of {name!r} is not dtype, shape and data_offsets")
    if not isinstance(fields["dtype"], str) or fields["dtype"] not in _DTYPES:
        raise ValueError(f"{name!r} has the dtype {fields['dtype']!r}, which is not known here")
    dtype, itemsize = _DTYPES[fields["dtype"]]
    shape = _lengths(name, fields["shape"], _DIMENSIONS_MAX)
    offsets = _lengths(name, fields["data_offsets"], 2)
    nbytes = math.prod(shape) * itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != nbytes or nbytes > _LENGTH_MAX:
        raise ValueError(f"{name!r} has {nbytes} bytes, and data_offsets {list(offsets)}")
    return HeaderTensor(dtype, shape, start + offsets[0], nbytes)


def _lengths(name: str, value: Any, count_max: int) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > count_max:
        raise ValueError(f"the shape or data_offsets of {name!r} are no list, or too long")
    # bool is an int for Python.
    if not all(type(number) is int and 0 <= number <= _LENGTH_MAX for number in value):
        raise ValueError(f"the shape or data_offsets of {name!r} have what is no length")
    return tuple(value)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a name stands in it twice")
    return document


def _refusal(path: str, reason: str) -> FormatError:
    return FormatError(f"{path} is not a safetensors file: {reason}", path=path)
