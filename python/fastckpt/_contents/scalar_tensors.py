"""Tensors and arrays of one element that are plain values: metrics on which nobody called .item().

Imports no torch and no numpy.
"""

from __future__ import annotations

import struct
from typing import Any

from fastckpt._native import Archive, ArrayInfo, TensorInfo

from .outline import Outline

# What was measured, in the checkpoint of a manager: numbers, dicts of them, lists of them, dicts of lists.
_MEASURED = ("metrics", "best_metric", "metrics_history")
_DEPTH_MAX = 3

# A metric that was saved as a tensor has a few bytes. A large storage is not read for it.
_STORAGE_NBYTES_MAX = 4096
# The bytes of torch's dtypes in a file.
_FORMATS = {
    "float16": "e",
    "float32": "f",
    "float64": "d",
    "int8": "b",
    "uint8": "B",
    "int16": "h",
    "int32": "i",
    "int64": "q",
}
_BIG_ENDIAN = b"big"


def read_scalar(archive: Archive, tensor: TensorInfo) -> int | float | None:
    """Read a tensor of one element.

    Returns:
        The number; None where more than a few bytes would have to be read, or where it is not a number.

    Raises:
        OSError: The file cannot be read.
        FormatError: The record of the tensor is missing.
        ChecksumError: It has changed since it was written.
    """
    if tensor.storage_nbytes > _STORAGE_NBYTES_MAX:
        return None
    data = archive.read_record(f"data/{tensor.key}")
    begin = tensor.storage_offset * tensor.itemsize
    piece = data[begin : begin + tensor.itemsize]
    is_big = "byteorder" in archive.names() and archive.read_record("byteorder") == _BIG_ENDIAN
    if tensor.dtype == "bfloat16":
        # The upper half of a float32.
        piece, layout = (piece + b"\0\0" if is_big else b"\0\0" + piece), "f"
    else:
        layout = _FORMATS.get(tensor.dtype, "")
    layout = (">" if is_big else "<") + layout
    if not piece or len(piece) != struct.calcsize(layout):
        return None
    number: int | float = struct.unpack(layout, piece)[0]
    return number


def with_numbers(outline: Outline) -> Any:
    """Return the object of an outline with numbers in the place of tensors of one element that were measured.

    That is where a manager keeps its metrics, the best of them and their history. The object itself stays
    as it is.

    Raises:
        OSError, FormatError, ChecksumError: As `read_scalar`.
    """
    root = outline.root
    if not isinstance(root, dict):
        return root
    reader = _Reader(outline.archive)
    measured = {key: reader.replace(root[key], _DEPTH_MAX) for key in _MEASURED if key in root}
    return {**root, **measured}


class _Reader:
    """Makes copies of containers; of one that stands in many places one copy."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._known: dict[tuple[int, int], Any] = {}

    def replace(self, value: Any, depth: int) -> Any:
        if not isinstance(value, (dict, list, tuple, TensorInfo, ArrayInfo)) or depth < 0:
            return value
        # The outline keeps all objects, so that no other has the same id.
        key = (id(value), depth)
        if key not in self._known:
            self._known[key] = self._replaced(value, depth - 1)
        return self._known[key]

    def _replaced(self, value: Any, depth: int) -> Any:
        if isinstance(value, dict):
            return {name: self.replace(part, depth) for name, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.replace(part, depth) for part in value]
        number: Any
        if isinstance(value, ArrayInfo):
            number = value.item()
        else:
            number = read_scalar(self._archive, value) if value.numel == 1 else None
        return value if number is None else number
