"""Build objects whose pickle needs more than the core's decoder: subclasses, sparse tensors...

Here torch's own restricted unpickler runs (or Python's, if the caller asked for that), with storages
that were read and checked before. `StorageTable` answers its persistent ids as
torch.load does (`torch.serialization._load`, torch 2.6 to 2.15).
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import inspect
import io
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch._weights_only_unpickler import Unpickler as RestrictedUnpickler
from torch.utils.dlpack import from_dlpack

from fastckpt._native import Span
from fastckpt._wording import some_names
from fastckpt.errors import CheckpointError, FormatError, UnsafePickleError

from .placement import MapLocation, Restore

# How strings that Python 2 has pickled are decoded; torch.load's default.
_ENCODING = "utf-8"
_OF_NUMPY = "Of numpy, arrays, scalars and dtypes of numbers and bools are taken.\n"
# See https://github.com/pytorch/pytorch/pull/51633: the module has moved.
_MOVED_MODULES = {"torch.tensor": "torch._tensor"}


class StorageRequest(NamedTuple):
    """One persistent id of data.pkl, decoded.

    Attributes:
        key: The record is `data/<key>`.
        location: Where the storage lived, e.g. "cuda:0".
        dtype: dtype of its elements; uint8 for an untyped storage.
        nbytes: Bytes that the pickle expects.
        is_untyped: Whether the storage is a torch.UntypedStorage, whose real dtype is unknown.
    """

    key: str
    location: str
    dtype: torch.dtype
    nbytes: int
    is_untyped: bool


class StorageTable:
    """Answers the persistent ids of one file, each key with one storage.

    Args:
        path: The file, for messages.
        fetch: Makes the storage for a request.
        objects: What `Graph.for_torch` has made for the pickle, which asks for it in this order.
    """

    #: What the pickle is called in messages.
    pickle = "data.pkl"

    def __init__(
        self, path: str, fetch: Callable[[StorageRequest], Any], *, objects: Iterable[Any] = ()
    ) -> None:
        self._path = path
        self._fetch = fetch
        self._objects = iter(objects)
        self._loaded: dict[str, torch.storage.TypedStorage] = {}
        # Whether making a storage has failed: then the error is not the unpickler's. A flag,
        # since keeping the error itself would be a reference cycle through its traceback.
        self.failed = False

    def load_any(self, pid: object) -> Any:
        """Return the storage for a persistent id, or what else `Graph.for_torch` asks for by one.

        Ids of two and three parts are never the file's own: the decoder has refused those.
        """
        match pid:
            case ("storage", _):
                return next(self._objects)
            case ("storage", made, _):
                return made
        return self.load(pid)

    def load(self, pid: object) -> torch.storage.TypedStorage:
        """Return the storage for a persistent id (the unpickler's `persistent_load`)."""
        request = _parse(pid, self._path)
        known = self._loaded.get(request.key)
        if known is not None and known.dtype == request.dtype:
            return known
        # torch.save gives one record two dtypes only where it has no bytes.
        if known is not None and known._untyped_storage.nbytes() == request.nbytes:
            return _typed(known._untyped_storage, request.dtype)
        try:
            typed = _typed(self._fetch(request), request.dtype)
        except BaseException:
            self.failed = True
            raise
        if known is None:
            self._loaded[request.key] = typed
        return typed


class LegacyStorageTable(StorageTable):
    """The same for files of torch before 1.6, as `torch.serialization._legacy_load` does it.

    Persistent ids have a sixth part there: None, or which part of the storage is meant.
    """

    pickle = "its pickle"

    def __init__(
        self, path: str, fetch: Callable[[StorageRequest], Any], *, objects: Iterable[Any] = ()
    ) -> None:
        super().__init__(path, fetch, objects=objects)
        self._views: dict[str, torch.storage.TypedStorage] = {}

    def load(self, pid: object) -> torch.storage.TypedStorage:
        """Return the storage for a persistent id, or the part of it that is meant."""
        if not isinstance(pid, tuple) or len(pid) != 6:
            raise FormatError(
                f"{self._path}: its pickle refers to something that is not a storage",
                path=self._path,
            )
        storage = super().load(pid[:5])
        if pid[5] is None:
            return storage
        key, offset, numel = pid[5]
        if key not in self._views:
            itemsize = storage.dtype.itemsize
            part = _part(storage._untyped_storage, offset * itemsize, numel * itemsize)
            self._views[key] = _typed(part, storage.dtype)
        return self._views[key]


class HostStorages:
    """Makes storages from records that were read to host memory.

    Args:
        path: The file, for messages.
        spans: The records, by storage key.
        restore: Moves a storage to where it belongs.
        swap: Whether the file has the other byte order.
    """

    def __init__(
        self, path: str, spans: Mapping[str, Span], restore: Restore, *, swap: bool
    ) -> None:
        self._path = path
        self._spans = spans
        self._restore = restore
        self._swap = swap

    def fetch(self, request: StorageRequest) -> Any:
        """Make the storage for a request; tensors over it share the memory that was read."""
        span = self._spans.get(request.key)
        if span is None:
            raise missing_record(self._path, request.key)
        if not is_fitting(request.nbytes, request.dtype.itemsize, span.nbytes):
            raise wrong_size(self._path, request.key, request.nbytes, span.nbytes)
        storage = host_storage(span, request.nbytes)
        if self._swap:
            self._swap_bytes(storage, request)
        return self._restore(storage, request.location)

    def _swap_bytes(self, storage: torch.UntypedStorage, request: StorageRequest) -> None:
        if not request.is_untyped:
            storage.byteswap(request.dtype)
        elif request.nbytes:
            raise FormatError(
                f"{self._path} has another byte order than this machine, and its record "
                f"data/{request.key} does not say how long its elements are (torch saves "
                "uint16, float8 and other newer dtypes so): it can only be loaded on a machine "
                "of its own byte order. torch.load would return its bytes in the wrong order.",
                path=self._path,
            )


def host_storage(span: Span, nbytes: int) -> torch.UntypedStorage:
    """View the first bytes of a record as a storage, sharing its memory."""
    if nbytes == 0:
        # Not UntypedStorage(0): that can be resized, and a pickle that sets a larger size would
        # get memory that nobody has filled. Neither torch.load's storages nor views of ours can.
        return from_dlpack(torch.empty(0, dtype=torch.uint8, device="cpu")).untyped_storage()
    tensor = torch.frombuffer(span.memory, dtype=torch.uint8, count=nbytes, offset=span.offset)
    return tensor.untyped_storage()


def missing_record(path: str, key: str) -> FormatError:
    """Make the error for a storage whose record is not in the file."""
    return FormatError(
        f"{path} is damaged: data.pkl refers to the record data/{key}, which is not there. "
        "Load an older checkpoint.",
        path=path,
    )


def is_fitting(nbytes: int, itemsize: int, record_nbytes: int) -> bool:
    """Whether a record has the size that data.pkl says.

    The record may be longer, by less than one element: a storage of 7 bytes viewed as float32
    is saved whole, and counted as one element.
    """
    return nbytes <= record_nbytes < nbytes + itemsize


def wrong_size(
    path: str, key: str, nbytes: int, record_nbytes: int, tensors: Sequence[str] = ()
) -> FormatError:
    """Make the error for a record that is too short or too long; it names the first of `tensors`."""
    whose = f" (tensor {some_names(tensors)})" if tensors else ""
    return FormatError(
        f"{path} is damaged: record data/{key}{whose} has {record_nbytes} bytes, "
        f"and data.pkl says {nbytes}. Load an older checkpoint.",
        path=path,
    )


def unpickle_restricted(
    data: bytes, table: StorageTable, path: str, map_location: MapLocation
) -> Any:
    """Unpickle with torch's ``weights_only=True`` rules.

    Args:
        data: The record `data.pkl`, which the core's decoder has walked: torch before 2.10 does
            not check the targets of SETITEMS (CVE-2026-24747).
        table: The storages.
        path: The file, for messages.
        map_location: What the caller passed; wrapper subclasses ask for it.

    Raises:
        UnsafePickleError: The rules do not allow something; the message has torch's advice.
        FormatError: An object cannot be built from what the file says.
    """
    unpickler = RestrictedUnpickler(io.BytesIO(data), encoding=_ENCODING)
    unpickler.persistent_load = table.load_any  # type: ignore[method-assign]
    with _rebuilding(map_location):
        try:
            result = unpickler.load()
            _validate_sparse(weights_only=True)
        except pickle.UnpicklingError as error:
            if isinstance(error, CheckpointError):
                raise
            raise UnsafePickleError(refusal(path, str(error)), path=path) from error
        except (MemoryError, OSError, CheckpointError, Warning, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if table.failed:
                raise
            raise FormatError(
                f"{path}: an object in {table.pickle} cannot be built: {type(error).__name__}: {error}",
                path=path,
            ) from error
    return result


def unpickle_unrestricted(
    data: bytes, table: StorageTable, path: str, map_location: MapLocation
) -> Any:
    """Unpickle with Python's own unpickler, as torch.load does with ``weights_only=False``.

    This executes whatever the file asks for.
    """
    with _rebuilding(map_location):
        try:
            result = _FullUnpickler(data, table).load()
        except (pickle.UnpicklingError, EOFError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise FormatError(
                f"{path}: {table.pickle} is not a valid pickle: {error}", path=path
            ) from error
        _validate_sparse(weights_only=False)
    return result


class _FullUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes, table: StorageTable) -> None:
        super().__init__(io.BytesIO(data), encoding=_ENCODING)
        self._table = table

    def persistent_load(self, pid: Any) -> torch.storage.TypedStorage:
        return self._table.load(pid)

    def find_class(self, module: str, name: str) -> Any:
        if "Storage" in name:
            # torch.FloatStorage and the like stand for their dtype alone.
            try:
                return torch.serialization.StorageType(name)
            except KeyError:
                pass
        return super().find_class(_MOVED_MODULES.get(module, module), name)


@contextmanager
def _rebuilding(map_location: MapLocation) -> Iterator[None]:
    """Let torch's rebuild functions know `map_location`; leave none of their state behind."""
    state = torch.serialization._serialization_tls
    outer = state.map_location
    state.map_location = map_location
    try:
        yield
    finally:
        state.map_location = outer
        _sparse_to_validate().clear()


def _sparse_to_validate() -> list[torch.Tensor]:
    """Return the sparse tensors that were rebuilt; a module's list in torch 2.6, later per thread."""
    if hasattr(torch._utils, "_sparse_tensors_to_validate"):
        tensors: list[torch.Tensor] = torch._utils._sparse_tensors_to_validate
    else:
        tensors = torch.serialization._serialization_tls.sparse_tensors_to_validate
    return tensors


def _validate_sparse(*, weights_only: bool) -> None:
    """Check the indices of sparse tensors, as torch.load does: bad ones read out of bounds."""
    validate: Callable[..., None] = torch._utils._validate_loaded_sparse_tensors
    if "weights_only" in inspect.signature(validate).parameters:
        validate(weights_only=weights_only)
    elif weights_only:
        # Before torch always did so for weights_only, it depended on a setting.
        with torch.sparse.check_sparse_tensor_invariants(True):
            validate()
    else:
        validate()


def _typed(storage: Any, dtype: torch.dtype) -> torch.storage.TypedStorage:
    return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


def _part(storage: torch.UntypedStorage, offset: int, nbytes: int) -> torch.UntypedStorage:
    """Return a part of a storage, over the same memory."""
    if storage.device.type == "meta":
        return torch.UntypedStorage(nbytes, device="meta")
    part: torch.UntypedStorage = storage[offset : offset + nbytes]
    return part


def _parse(pid: object, path: str) -> StorageRequest:
    """Decode a persistent id: ('storage', storage type, key, location, number of elements)."""
    if not isinstance(pid, tuple) or len(pid) != 5 or _text(pid[0]) != "storage":
        raise FormatError(f"{path}: data.pkl refers to something that is not a storage", path=path)
    storage_type, key, location, numel = pid[1], pid[2], _text(pid[3]), pid[4]
    is_untyped = storage_type is torch.UntypedStorage
    dtype = torch.uint8 if is_untyped else getattr(storage_type, "dtype", None)
    if (
        not isinstance(dtype, torch.dtype)
        or not isinstance(key, str)
        or not isinstance(location, str)
        or not isinstance(numel, int)
        or numel < 0
    ):
        raise FormatError(f"{path}: data.pkl describes a storage that cannot exist", path=path)
    return StorageRequest(key, location, dtype, numel * dtype.itemsize, is_untyped)


def _text(value: object) -> object:
    """Decode what Python 2 has pickled as bytes."""
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value


def refusal(path: str, reason: str) -> str:
    """Say why weights_only=True does not take a file, and what can be done, in torch's words."""
    numbers = _OF_NUMPY if "numpy" in reason else ""
    return (
        f"{path}: Weights only load failed. {reason.removeprefix(f'{path}: ')}\n{numbers}"
        "If you trust the source of the file, fastckpt.load(..., weights_only=False) loads it; "
        "doing so can execute any code that the file holds. The documentation of torch.load "
        "lists the types that weights_only=True accepts: "
        "https://pytorch.org/docs/stable/generated/torch.load.html"
    )
