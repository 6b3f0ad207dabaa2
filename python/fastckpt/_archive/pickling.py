"""Turn an object into `data.pkl` and the storages that it refers to.

The bytes are those that `torch.save` of the installed torch would write: tensors reduce themselves as
they always do, and only their storages are taken out, as persistent ids.
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch.serialization import location_tag, normalize_storage_type

# torch.save's default.
DEFAULT_PROTOCOL = 2


class Pickled(NamedTuple):
    """An object, ready to be written.

    Attributes:
        data: The record `data.pkl`.
        storages: Storages by their keys: the one at position 17 is the record `data/17`. They
            are the object's own, not copies, on whatever device they live.
        nbytes: Their sizes when they were pickled; somebody may resize them before they are written.
    """

    data: bytes
    storages: list[torch.UntypedStorage]
    nbytes: list[int]

    @classmethod
    def of(cls, data: bytes, storages: list[torch.UntypedStorage]) -> Pickled:
        """Take the sizes that the storages have now."""
        return cls(data, storages, [storage.nbytes() for storage in storages])


def pickle_object(obj: object, protocol: int = DEFAULT_PROTOCOL) -> Pickled:
    """Pickle an object as torch.save does.

    Args:
        obj: Whatever torch.save takes.
        protocol: Pickle protocol. Only 2 and 3 can be loaded with ``weights_only=True``.

    Returns:
        The pickle, and the storages in order of first appearance.

    Raises:
        RuntimeError: Two tensors view the same memory as different dtypes; or a tensor has elements, and its
            storage was freed (torch writes such a file, and cannot load it).
        NotImplementedError: A storage is on the meta device.
        pickle.PicklingError, AttributeError, TypeError: An object cannot be pickled; the same
            exceptions as torch.save's.
    """
    data = io.BytesIO()
    pickler = _StoragePickler(data, protocol=protocol)
    pickler.dump(obj)
    if any(storage.device.type == "meta" for storage in pickler.storages):
        # A meta *tensor* is saved without a storage. A bare meta storage has no bytes to save.
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")
    pickled = Pickled.of(data.getvalue(), pickler.storages)
    if 0 in pickled.nbytes:
        # Rare. A second pass looks for the tensor, so that no other save pays for it.
        _FreedFinder(io.BytesIO(), protocol=protocol).dump(obj)
    return pickled


# The pickler asks for every object, twenty for each tensor: most of them are answered by their type.
_NO_STORAGES = frozenset(
    (int, str, tuple, dict, list, bool, float, bytes, type(None), type, FunctionType, OrderedDict)
)


class _StoragePickler(pickle.Pickler):
    """Replaces each storage by the tuple that torch.load expects in its place.

    One class for all calls, its state on the instance: a class per call, as in torch, is a
    reference cycle that would keep the storages alive until the garbage collector runs, and
    training scripts switch that off.
    """

    def __init__(self, file: io.BytesIO, *, protocol: int) -> None:
        super().__init__(file, protocol=protocol)
        # Held until the write is done: a storage that is freed too early gives its address,
        # and with it its key, to another.
        self.storages: list[torch.UntypedStorage] = []
        self._keys: dict[int, str] = {}
        self._dtypes: dict[int, torch.dtype] = {}

    def persistent_id(self, obj: Any) -> tuple[str, Any, str, str, int] | None:
        if type(obj) in _NO_STORAGES:
            return None
        storage: torch.UntypedStorage
        if isinstance(obj, torch.storage.TypedStorage):
            storage = obj._untyped_storage
            dtype = obj.dtype
            storage_type = getattr(torch, obj._pickle_storage_type())
            numel = obj._size()
        elif torch.is_storage(obj):
            storage = obj  # type: ignore[assignment]  # no TypedStorage any more
            dtype = torch.uint8
            storage_type = normalize_storage_type(type(obj))
            numel = obj.nbytes()
        else:
            return None
        self._refuse_second_dtype(storage, dtype)
        # Fake tensors that stand for a device remember it on their storage.
        fake_device = getattr(obj, "_fake_device", None)
        location = location_tag(storage) if fake_device is None else str(fake_device)
        return ("storage", storage_type, self._key(storage), location, numel)

    def _key(self, storage: torch.UntypedStorage) -> str:
        key = self._keys.setdefault(storage._cdata, str(len(self._keys)))
        if len(self._keys) > len(self.storages):
            self.storages.append(storage)
        return key

    def _refuse_second_dtype(self, storage: torch.UntypedStorage, dtype: torch.dtype) -> None:
        """Raise, as torch.save does, where one address was seen with another dtype.

        Storages without memory (empty ones, meta) have no address to share.
        """
        if storage.device.type == "meta":
            return
        address = storage.data_ptr()
        if address != 0 and self._dtypes.setdefault(address, dtype) != dtype:
            raise RuntimeError(
                "Cannot save multiple tensors or storages that view the same data as different "
                "types: torch.load could not give one storage two dtypes. Clone one of them."
            )


class _FreedFinder(_StoragePickler):
    """Raises at the first tensor whose memory was freed."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) in _TENSORS:
            _refuse_freed(obj)
        # It reduces itself, as always.
        return NotImplemented


# Subclasses reduce themselves to these, or in a way of their own.
_TENSORS = frozenset((torch.Tensor, torch.nn.Parameter))


def _refuse_freed(tensor: torch.Tensor) -> None:
    """Raise for a tensor whose memory was freed: what would be written could never be loaded."""
    if tensor.layout is not torch.strided or tensor.device.type == "meta" or not tensor.numel():
        return
    if tensor.untyped_storage().nbytes() == 0:
        raise RuntimeError(
            f"a tensor of shape {tuple(tensor.shape)} has no memory: its storage was freed, as FSDP does with full "
            "parameters outside of forward and backward. torch.save would write a file that cannot be loaded; "
            "save the sharded parameters, or gather them first."
        )
