"""What tensors are built from that only torch can build: sparse and quantized ones, subclasses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from fastckpt._native import Opaque, StorageInfo, TensorInfo
from fastckpt.errors import UncoveredFormatError

# How often each object is looked at, on the average. An object takes a byte of data.pkl at least.
_LOOKS_PER_BYTE = 4


class Parts(NamedTuple):
    """What one tensor is built from, in the order of the pickle."""

    tensors: list[TensorInfo]
    storages: list[StorageInfo]
    #: Names of all other objects that are not Python's own.
    others: list[str]
    #: The first tuple of lengths: the size stands before the strides in all such calls.
    shape: tuple[int, ...] | None


class PartsReader:
    """Looks into the tensors of one file, and at no more than is in proportion to it.

    They may all be built from the same large object: then looking into each would take for ever.

    Args:
        path: The file, for messages.
        pickle_nbytes: The size of its data.pkl.
    """

    def __init__(self, path: str, pickle_nbytes: int) -> None:
        self._path = path
        self._left = _LOOKS_PER_BYTE * pickle_nbytes

    def read(self, tensor: Opaque) -> Parts:
        """Look into a tensor.

        Raises:
            UncoveredFormatError: There is far more in the tensors than in those of any checkpoint.
        """
        found = Parts([], [], [], None)
        shape: tuple[int, ...] | None = None
        seen: set[int] = set()
        # Whether only tuples and lists were passed on the way.
        stack: list[tuple[Any, bool]] = [(tensor.parts, True)]
        while stack:
            part, is_argument = stack.pop()
            if shape is None and is_argument and _is_shape(part):
                shape = part
            if isinstance(part, TensorInfo):
                found.tensors.append(part)
            elif isinstance(part, StorageInfo):
                found.storages.append(part)
            elif isinstance(part, (tuple, list, set, dict, Opaque)) and id(part) not in seen:
                # A list may contain itself.
                seen.add(id(part))
                if isinstance(part, Opaque):
                    found.others.append(part.name)
                inside = _inside(part)
                self._charge(len(inside))
                is_argument = is_argument and isinstance(part, (tuple, list))
                stack += [(item, is_argument) for item in reversed(inside)]
        return found._replace(shape=shape)

    def _charge(self, objects: int) -> None:
        self._left -= objects
        if self._left < 0:
            raise UncoveredFormatError(
                f"{self._path} has tensors that share what they are built from, so often that they "
                "cannot be listed",
                path=self._path,
                hint="checkpoints do not have tensors like these: do not trust the file",
            )


def _is_shape(part: Any) -> bool:
    return isinstance(part, tuple) and all(type(item) is int and item >= 0 for item in part)


def _inside(part: Any) -> list[Any]:
    items: Iterable[Any] = part
    if isinstance(part, Opaque):
        items = part.parts
    elif isinstance(part, dict):
        items = part.values()
    return list(items)
