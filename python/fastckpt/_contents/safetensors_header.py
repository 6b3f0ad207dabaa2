"""The header of a safetensors file: which tensors it has, and where. Nothing else of it is read.

A file is 8 bytes of length, so many bytes of JSON, and then the tensors, one behind the other without
gaps. Untrusted bytes: whatever the header claims is compared with the size of the file.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fastckpt.errors import FormatError

_LENGTH_NBYTES = 8
# The format allows 100,000,000. Parsing takes up to thirty times the memory of the text, and 100,000
# tensors have a header of 15 MB.
HEADER_NBYTES_MAX = 32 << 20
# As many dimensions as numpy has.
_NDIM_MAX = 64
# Files are not larger than this.
_NBYTES_MAX = 2**63 - 1
_METADATA = "__metadata__"
# Of a name in a message: a header may have one of megabytes.
_NAME_SHOWN = 60
# Bits of an element and the name in torch, of each dtype of the format (safetensors 0.7).
_DTYPES = {
    "BOOL": (8, "bool"),
    "F4": (4, "float4"),
    "F6_E2M3": (6, "float6_e2m3"),
    "F6_E3M2": (6, "float6_e3m2"),
    "U8": (8, "uint8"),
    "I8": (8, "int8"),
    "F8_E5M2": (8, "float8_e5m2"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E8M0": (8, "float8_e8m0fnu"),
    "F8_E5M2FNUZ": (8, "float8_e5m2fnuz"),
    "F8_E4M3FNUZ": (8, "float8_e4m3fnuz"),
    "I16": (16, "int16"),
    "U16": (16, "uint16"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "I32": (32, "int32"),
    "U32": (32, "uint32"),
    "F32": (32, "float32"),
    "C64": (64, "complex64"),
    "F64": (64, "float64"),
    "I64": (64, "int64"),
    "U64": (64, "uint64"),
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the file.

    Attributes:
        name: Its name.
        dtype: Name in torch, e.g. "bfloat16".
        shape: Its lengths.
        offset: First byte in the file.
        nbytes: Its size.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """What the header says.

    Attributes:
        tensors: In the order of the header.
        metadata: Text by name, which its writer has added.
        nbytes: Size of the file.
    """

    tensors: tuple[StoredTensor, ...]
    metadata: dict[str, str]
    nbytes: int


def read_safetensors_header(path: str) -> SafetensorsHeader:
    """Read and check the header of a safetensors file.

    Raises:
        OSError: It cannot be read.
        FormatError: It is damaged, or no safetensors file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        nbytes = os.fstat(fd).st_size
        return parse_safetensors_header(
            lambda offset, count: os.pread(fd, count, offset), nbytes, path
        )
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def parse_safetensors_header(
    read: Callable[[int, int], bytes], nbytes: int, path: str
) -> SafetensorsHeader:
    """Check the header of a safetensors file that is open.

    Args:
        read: Returns so many bytes from an offset on: ``read(offset, count)``.
        nbytes: Size of the file.
        path: Its name, for messages.

    Raises:
        FormatError: It is damaged, or no safetensors file.
    """
    try:
        return _read(read, nbytes)
    # RecursionError: brackets nested by the thousand.
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise FormatError(
            f"{path} is not a safetensors file, or is damaged: {reason}", path=path
        ) from error


def _read(read: Callable[[int, int], bytes], nbytes: int) -> SafetensorsHeader:
    if nbytes < _LENGTH_NBYTES:
        raise ValueError(f"it has {nbytes} bytes, fewer than the length of a header")
    length = int.from_bytes(read(0, _LENGTH_NBYTES), "little")
    data_offset = _LENGTH_NBYTES + length
    if data_offset > nbytes:
        raise ValueError(f"its header should have {length} bytes, and the file has {nbytes}")
    if length > HEADER_NBYTES_MAX:
        raise ValueError(f"its header has {length} bytes, more than {HEADER_NBYTES_MAX}")
    text = read(_LENGTH_NBYTES, length)
    if len(text) != length:
        raise ValueError("it became shorter while it was read")
    document = json.loads(
        text.decode("utf-8"), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant
    )
    return _parse(document, data_offset, nbytes)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in its header twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} has no place in a header")


def _parse(document: Any, data_offset: int, nbytes: int) -> SafetensorsHeader:
    if not isinstance(document, dict):
        raise ValueError("its header is not a JSON object")  # noqa: TRY004 - all are FormatErrors
    metadata = document.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata is not text by name")
    _require_text(document, metadata, metadata.values())
    tensors = [_parse_tensor(name, entry, data_offset) for name, entry in document.items()]
    end = data_offset
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            where, expected = tensor.offset - data_offset, end - data_offset
            raise ValueError(
                f"{_named(tensor.name)} begins at byte {where} of the data; expected {expected}, "
                "where the one before it ends"
            )
        end += tensor.nbytes
    if end != nbytes:
        raise ValueError(f"its tensors should end at byte {end}, and the file has {nbytes}")
    return SafetensorsHeader(tuple(tensors), metadata, nbytes)


def _parse_tensor(name: str, entry: Any, data_offset: int) -> StoredTensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{_named(name)} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"{_named(name)} has a dtype that is not known: {dtype!r:.40}")
    if not _are_sizes(shape) or len(shape) > _NDIM_MAX:
        raise ValueError(f"the shape of {_named(name)} is invalid")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"the data_offsets of {_named(name)} are invalid")
    bits, torch_name = _DTYPES[dtype]
    begin, end = offsets
    if 8 * (end - begin) != bits * _count_elements(shape):
        raise ValueError(f"{_named(name)} has {end - begin} bytes, and not those of its shape")
    return StoredTensor(name, torch_name, tuple(shape), data_offset + begin, end - begin)


def _count_elements(shape: list[int]) -> int:
    """Return how many elements a shape has; -1 where so many do not fit into memory, on the way even."""
    count = 1
    for length in shape:
        count *= length
        # Whoever multiplies in 64 bits cannot have the file, whatever the next length is: 0, say.
        if count > _NBYTES_MAX:
            return -1
    return count


def _require_text(*texts: Iterable[str]) -> None:
    """Refuse halves of surrogate pairs: JSON can escape them, and they are not characters."""
    for text in itertools.chain(*texts):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"it has text that is not valid Unicode: {_quoted(text)}") from error


def _named(name: str) -> str:
    return f"tensor {_quoted(name)}"


def _quoted(text: str) -> str:
    return repr(text) if len(text) <= _NAME_SHOWN else f"{text[:_NAME_SHOWN]!r}..."


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item <= _NBYTES_MAX for item in value
    )
