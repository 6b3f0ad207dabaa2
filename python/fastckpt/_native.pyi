"""The Rust core, as Python sees it. Private: only the modules of this package call it.

Every method that touches a file releases the GIL, and lets Ctrl-C through within a second.
Failures of the operating system are raised as the builtin `OSError` subclass with `errno` and
`filename`, and problems of a file as the classes of `fastckpt.errors`. `progress` is called
in the calling thread with (bytes done, bytes in all); if it raises, the job is cancelled.
"""

import os
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, TypeAlias, final, type_check_only

from torch import UntypedStorage
from typing_extensions import Buffer

__all__ = [
    "Archive",
    "ArrayInfo",
    "Commit",
    "Comparison",
    "Copied",
    "Damage",
    "FileReport",
    "Graph",
    "LegacyFile",
    "Lost",
    "Memory",
    "Opaque",
    "PlainFile",
    "Salvaged",
    "SaveMark",
    "Span",
    "StorageInfo",
    "TensorInfo",
    "Written",
    "__version__",
    "archive_nbytes",
    "arithmetic",
    "average",
    "compare_tensors",
    "decode_numbers",
    "encode_numbers",
    "is_local",
    "remove_stale",
    "salvage",
    "verify_file",
    "write_archive_to",
]

__version__: str

_Path: TypeAlias = str | os.PathLike[str]
_Progress: TypeAlias = Callable[[int, int], None]

# Where a tensor is in an archive: key of the storage, offset, shape and strides in elements.
_Place: TypeAlias = tuple[str, int, Sequence[int], Sequence[int]]

@final
class Memory(Buffer):
    """Private, writable memory of the core; it is freed with its last user."""

    def __len__(self) -> int: ...
    if sys.version_info >= (3, 12):
        # In earlier versions, the buffer protocol has no method that Python could see.
        def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Span:
    """The bytes of one record: `nbytes` bytes of `memory` from `offset` on."""

    @property
    def memory(self) -> Memory: ...
    @property
    def offset(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

@final
class StorageInfo:
    """One storage that data.pkl asks for."""

    @property
    def key(self) -> str: ...
    @property
    def location(self) -> str: ...
    @property
    def dtype(self) -> str | None:
        """Name in `torch`, e.g. "float32"; None for torch.UntypedStorage."""
    @property
    def numel(self) -> int:
        """Number of elements, or of bytes if dtype is None."""
    @property
    def nbytes(self) -> int: ...

@final
class TensorInfo:
    """A tensor, as data.pkl describes it."""

    @property
    def key(self) -> str:
        """Key of its storage; tensors with the same key share memory."""
    @property
    def location(self) -> str:
        """Device of the storage when it was saved, e.g. "cuda:0"."""
    @property
    def storage_nbytes(self) -> int: ...
    @property
    def dtype(self) -> str:
        """Name in `torch`, e.g. "bfloat16"."""
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def stride(self) -> tuple[int, ...]:
        """In elements."""
    @property
    def storage_offset(self) -> int:
        """Offset of the first element in the storage, in elements."""
    @property
    def itemsize(self) -> int: ...
    @property
    def numel(self) -> int:
        """Product of the shape; for an expanded tensor, more than the storage has."""
    @property
    def nbytes(self) -> int:
        """numel times itemsize."""
    @property
    def requires_grad(self) -> bool: ...
    @property
    def is_parameter(self) -> bool: ...

@final
class ArrayInfo:
    """An array of numpy, as data.pkl describes it."""

    @property
    def dtype(self) -> str:
        """Name in numpy, e.g. "float64"; with its code, e.g. ">f8", if its bytes stand the other way."""
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def order(self) -> str:
        """In which order the elements stand, "C" or "F"."""
    @property
    def numel(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def data(self) -> bytes:
        """The elements as they stand in the file."""
    def item(self) -> bool | int | float | complex | None:
        """Return the element of an array that has one; None of any other."""

@final
class Opaque:
    """An object that is neither a tensor nor of a type built into Python."""

    @property
    def name(self) -> str:
        """Name of its type, of the call that makes it, or of the object itself, e.g. "torch.bfloat16"."""
    @property
    def parts(self) -> list[Any]:
        """The objects that it is made of, as far as the pickle says."""

@final
class Graph:
    """What data.pkl describes, decoded without executing any of it."""

    @property
    def outside(self) -> str | None:
        """The first thing that only torch's own unpickler can build, or None."""
    @property
    def pickle(self) -> bytes:
        """The bytes that were decoded."""
    @property
    def storages(self) -> list[StorageInfo]: ...
    def dtypes(self) -> list[str]:
        """Names of all torch.dtypes in the object, those of tensors and bare ones; each once."""
    def tensor_names(self) -> list[tuple[str, str]]:
        """(storage key, name) of each tensor, e.g. ("17", "transformer.h.3.mlp.c_fc.weight")."""
    def places(self, keys: set[str]) -> list[tuple[str, str, bool]]:
        """(storage key, name, whether it is an item of a dict) for each place of a tensor over these storages.

        If there are more than 131,072 places, only so many are returned.
        """
    def without(self, keys: set[str]) -> Graph:
        """The same without the tensors over these storages: removed from dicts, replaced by None elsewhere."""
    def outline(self) -> Any:
        """Build the object without torch: TensorInfo for tensors, Opaque for types not built into Python.

        An array of numpy becomes an ArrayInfo, a scalar of numpy the number that it is equal to. A storage
        without a tensor, or of a tensor that only torch can build, becomes a StorageInfo.
        Containers may contain themselves, and one object may be in many places.
        """
    def for_torch(self) -> tuple[bytes, list[Any]]:
        """Return the pickle for torch's restricted unpickler, and the objects that it asks for in it.

        Those are numpy's arrays, scalars and dtypes, and some bytes, which torch refuses: a persistent id
        of two parts asks for the next of them, one of three parts for its second part.
        """
    def build(self, storages: Sequence[Span | UntypedStorage]) -> Any:
        """Build the object; requires that `outside` is None.

        `storages` has the memory for each of `self.storages`, in order. Tensors over a `Span` share its
        memory.
        """

@type_check_only
class LoadStager(Protocol):
    """Copies bytes from host buffers to the devices of the storages."""

    @property
    def buffers(self) -> Sequence[UntypedStorage]:
        """Host buffers of one size, a multiple of 4096, each at an address that is a multiple of 4096."""
    def place(self, slot: int, slot_offset: int, index: int, offset: int, nbytes: int) -> None:
        """Start copying nbytes bytes of buffers[slot] from slot_offset on to `offset` of destination `index`."""
    def release(self, slot: int) -> None:
        """Return once no copy out of buffers[slot] is running."""

@type_check_only
class SaveStager(Protocol):
    """Copies bytes from the devices of the storages to host buffers."""

    @property
    def buffers(self) -> Sequence[UntypedStorage]:
        """Host buffers of one size."""
    @property
    def staged(self) -> Sequence[int]:
        """Indices of those storages that go through the buffers."""
    def start(self, slot: int, index: int, offset: int, nbytes: int) -> None:
        """Start copying nbytes bytes of storage `index` from `offset` on to the beginning of buffers[slot]."""
    def finish(self, slot: int) -> None:
        """Return once the bytes that were asked for last are in buffers[slot]."""

@final
class SaveMark:
    """Which save made a file: the first half of its serialization id."""

    @property
    def shards(self) -> int:
        """Number of optimizer shards of the step."""
    @property
    def save_id(self) -> int:
        """The number that all files of one save carry; 0 for a file that does not belong to a step."""

@final
class Archive:
    """One .pt file that is open for reading; its directory has been checked."""

    @staticmethod
    def open(path: _Path) -> Archive: ...
    @staticmethod
    def open_fd(fd: int, name: str) -> Archive:
        """Read a regular file that is already open; `fd` is duplicated, and its position is not used."""
    @staticmethod
    def open_bytes(data: bytes, name: str) -> Archive:
        """Read an archive in memory; its records are copied out of `data`."""
    @property
    def path(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def kind(self) -> Literal["torch", "torchscript", "other"]: ...
    @property
    def checksums(self) -> Literal["all", "metadata", "none"]:
        """Which records have a CRC: all, all but those under data/, or none."""
    @property
    def save_mark(self) -> SaveMark | None:
        """Which save made the file; read and checked on access. None if another writer made it."""
    @property
    def content_hash(self) -> str | None:
        """Second half of the serialization id, 20 digits; read and checked on access."""
    def names(self) -> list[str]:
        """Records in file order, without the root folder, e.g. "data/17"."""
    def record_offset(self, name: str) -> int: ...
    def record_nbytes(self, name: str) -> int: ...
    def read_record(self, name: str, *, verify: bool = True) -> bytes: ...
    def decode(self, *, verify: bool = True) -> Graph:
        """Read and decode data.pkl; checks the other small records too (`version`, `byteorder`...)."""
    def decode_plain_values(
        self, *, list_items_max: int, verify: bool = True, progress: _Progress | None = None
    ) -> Graph:
        """The same, reduced to what may hold plain values, for `Graph.outline`.

        State dicts and optimizer states are empty. A list of more than `list_items_max` items keeps its
        length, but its items are None. `progress` is called with 0 and 0 during decoding; if it raises,
        decoding stops.
        """
    def decode_pickle(self) -> Graph:
        """Read and decode only data.pkl, whatever the state of the other records."""
    def read(
        self,
        keys: Sequence[str],
        *,
        mmap: bool = False,
        verify: bool = True,
        threads: int | None = None,
        progress: _Progress | None = None,
    ) -> list[Span]:
        """Read the records data/<key> into private memory, in parallel; each CRC is checked.

        With mmap=True the memory is a private (copy-on-write) mapping of the file.
        """
    def read_staged(
        self,
        keys: Sequence[str],
        stager: LoadStager,
        *,
        verify: bool = True,
        threads: int | None = None,
        progress: _Progress | None = None,
    ) -> None:
        """Read the records data/<key> through the buffers of `stager`; destination i is keys[i]."""
    def check(
        self,
        keys: Sequence[str],
        *,
        threads: int | None = None,
        progress: _Progress | None = None,
    ) -> None:
        """Check the CRC of records that are not read."""

@final
class LegacyFile:
    """A file of torch before 1.6 that is open for reading; everything but the elements has been checked.

    The sizes of the storages come from the object's pickle, and the file is large enough for them.
    """

    @staticmethod
    def open_fd(fd: int, name: str, start: int) -> LegacyFile:
        """Read a regular file that is already open, from offset `start` on; `fd` is duplicated."""
    @staticmethod
    def open_bytes(data: bytes, name: str, start: int) -> LegacyFile:
        """Read a file in memory, from offset `start` on."""
    @property
    def archive(self) -> Archive:
        """Its storages, as records data/<key> of an archive without checksums."""
    @property
    def graph(self) -> Graph:
        """What the object's pickle describes."""
    @property
    def end(self) -> int:
        """Where the object ends in the file; the rest is not read."""

@final
class Written:
    """Size and hash of an archive that was written."""

    @property
    def nbytes(self) -> int:
        """Size of the file."""
    @property
    def content_hash(self) -> str:
        """Second half of its serialization id: 20 digits, a hash over the CRCs of its records."""

@final
class Copied:
    """What became of a copy."""

    @property
    def report(self) -> FileReport:
        """What verifying its bytes found; without records and checksums if it was not verified."""
    @property
    def unkept(self) -> str | None:
        """Why mode, access control list or time of the original could not be copied; None if they could."""

@final
class Commit:
    """Files that are written under temporary names and then made visible, in the order given.

    Leaving the context without `publish` removes them.
    """

    def __new__(cls, *, sync: bool = True) -> Commit: ...
    def __enter__(self) -> Commit: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...
    def create_directory(self, path: _Path) -> None:
        """Create a directory and its missing parents, durably."""
    def require_space(self, directory: _Path, nbytes: int) -> None:
        """Raise OSError (ENOSPC), with both figures, if fewer than nbytes bytes are free."""
    def write_archive(
        self,
        path: _Path,
        pickle: bytes,
        storages: Sequence[UntypedStorage],
        *,
        nbytes: Sequence[int] | None = None,
        alignment: int = 64,
        shards: int = 0,
        save_id: int = 0,
        stager: SaveStager | None = None,
        threads: int | None = None,
        progress: _Progress | None = None,
        chunk_nbytes: int | None = None,
        direct: bool | None = None,
    ) -> Written:
        """Write one .pt file beside `path`, under a temporary name.

        With `sync` (of the constructor), the file is fsynced on return. `direct` asks for O_DIRECT if the
        file system has it [default: as `sync`]. `nbytes` are the sizes of the storages according to the
        pickle: RuntimeError if a storage has another size, or changes its size or address meanwhile.
        """
    def write_average(
        self,
        path: _Path,
        pickle: bytes,
        archives: Sequence[Archive],
        weights: Sequence[float],
        tensors: Sequence[tuple[str, Sequence[_Place]]],
        *,
        threads: int | None = None,
        progress: _Progress | None = None,
    ) -> Written:
        """Write one .pt file whose storages are averages, computed while they are written; see `average`."""
    def write_bytes(self, path: _Path, data: bytes) -> None:
        """Write a small file beside `path`, under a temporary name."""
    def write_bytes_like(self, path: _Path, data: bytes, original: _Path) -> str | None:
        """The same, with mode, access control list and time of the file `original`.

        Returns why they could not be copied; None if they could.
        """
    def copy_file(
        self,
        path: _Path,
        source: _Path,
        *,
        verify: bool = True,
        threads: int | None = None,
        direct: bool | None = None,
        progress: _Progress | None = None,
    ) -> Copied:
        """Copy the file `source` beside `path`, under a temporary name, with its mode and time.

        With `verify` the source must be an archive, and the bytes that are written are those whose checksums
        were compared. If the report has any damage, there is nothing to publish.
        """
    def keep(self, path: _Path, save_id: int) -> bool:
        """Give the file at `path` a hidden second name with this save id; False if there is no file.

        If `path` is a symbolic link to another directory, the second name is beside the file there, and the
        hidden name in the directory of `path` is a link to it. Without hard links the file is renamed
        instead, and renamed back if nothing is published.
        """
    def link(self, path: _Path, name: str) -> bool:
        """Give the file at `path` the second name `name`, replacing what has it, durably and atomically.

        False if the file system has no hard links.
        """
    def temporary_path(self, path: _Path) -> str:
        """Where the file for `path` is until it is published, so that it can be read back.

        Raises ValueError if no file was written for this path.
        """
    def publish(
        self,
        paths: Sequence[_Path],
        *,
        replace: bool = True,
        unchanged: Sequence[tuple[_Path, tuple[int, int, int, int]]] | None = None,
    ) -> None:
        """Rename to `paths` in this order, then fsync the directories; what was kept is durable before.

        With `replace=False`, FileExistsError if something has a path already. `unchanged` lists files with
        device, inode, size in bytes and time of change in nanoseconds: if one of them differs, OSError
        (ESTALE) is raised and nothing is renamed. Savers share a lock on each directory meanwhile; a saver that
        cannot have it within five seconds continues without it, and logs a warning.
        """
    def sync_directory(self, directory: _Path) -> None:
        """Make all changes in a directory durable, whoever made them."""
    def discard(
        self,
        directory: _Path,
        names: Sequence[tuple[str, int, int]],
        *,
        after_sync: bool = True,
    ) -> None:
        """Fsync the directory (unless `after_sync=False`), then remove hidden names (.fastckpt-*) from it.

        Each name comes with the device and inode that it had when it was judged: names that are gone, or
        belong to another file now, are skipped. For a link that `keep` made, its target is removed too.
        """
    def abort(self) -> None:
        """Remove what was not published."""

def write_archive_to(
    write: Callable[[memoryview], object],
    pickle: bytes,
    storages: Sequence[UntypedStorage],
    *,
    nbytes: Sequence[int] | None = None,
    alignment: int = 64,
    stager: SaveStager | None = None,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> int:
    """Write one archive in sequence through a Python callable, which must take all bytes that it is given.

    `nbytes` as for `Commit.write_archive`.

    Returns:
        Size of the archive in bytes.
    """

def archive_nbytes(
    path: _Path, pickle_nbytes: int, storage_nbytes: Sequence[int], *, alignment: int = 64
) -> int:
    """Exact size of the file that `Commit.write_archive` would write for this path."""

def arithmetic(dtype: str) -> Literal["floating", "integer", "opaque"]:
    """Return which arithmetic the elements of a dtype have; complex ones are floating."""

def decode_numbers(dtype: str, data: bytes) -> list[float]:
    """Read elements as numbers, complex ones as pairs."""

def encode_numbers(dtype: str, numbers: Sequence[float]) -> bytes:
    """Round numbers to a floating dtype, once: to nearest, ties to even."""

def average(
    archives: Sequence[Archive],
    weights: Sequence[float],
    tensors: Sequence[tuple[str, Sequence[_Place]]],
    *,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> list[Span]:
    """Average tensors: each has a dtype and, in each archive, a place. The results are contiguous.

    Floating elements are summed in float64, divided by the sum of the weights and rounded once; all others
    are taken from the last archive. Every record that is read is compared with its CRC.
    """

@final
class PlainFile:
    """A file of another format; the caller knows where things are in it."""

    @staticmethod
    def open(path: _Path) -> PlainFile: ...
    @property
    def nbytes(self) -> int: ...
    def read(self, offset: int, nbytes: int) -> bytes: ...

@final
class Comparison:
    """The result of comparing two tensors; the figures cover elements that are finite in both."""

    @property
    def differing(self) -> int:
        """Number of elements whose bytes differ; for two dtypes, whose numbers differ."""
    @property
    def non_finite(self) -> int:
        """How many of those are infinite or NaN in at least one tensor."""
    @property
    def finite(self) -> int:
        """Number of elements that are finite in both; 0 if nothing was read."""
    @property
    def max_abs(self) -> float: ...
    @property
    def sum_abs(self) -> float: ...
    @property
    def sum_squares(self) -> float:
        """Sum of the squared differences."""
    @property
    def reference_squares(self) -> float:
        """Sum of the squared elements of the first tensor."""
    @property
    def was_read(self) -> bool:
        """Whether the elements were read: they are not if both records have the same size and CRC."""
    @property
    def was_checked(self) -> tuple[bool, bool]:
        """For each, whether its bytes were compared with a CRC, or were not read."""

def compare_tensors(
    a: Archive | PlainFile,
    b: Archive | PlainFile,
    pairs: Sequence[tuple[str, str, int, _Place | int, _Place | int]],
    *,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> list[Comparison]:
    """Compare tensors of one size: (dtype in a, dtype in b, elements, place in a, place in b).

    The place in a plain file is the offset of its first byte. Two different dtypes must both be numbers, see
    `arithmetic`.
    """

def is_local(directory: _Path) -> bool:
    """Whether only this machine reaches a directory's file system, so that its locks and file numbers count."""

def remove_stale(directory: _Path, *, dry_run: bool = False) -> list[str]:
    """Remove the temporary files of dead processes, and return their names. With dry_run, only name them.

    A file whose owner runs on this machine is never removed. On a file system that several machines
    share, the owner may run on another one, whose locks are not always seen here: the caller must know
    that no process saves there. (A save removes these files by itself only on local disks.)
    """

@final
class Damage:
    """One thing that is wrong with a file."""

    @property
    def record(self) -> str | None: ...
    @property
    def tensors(self) -> list[str]: ...
    @property
    def offset(self) -> int:
        """First byte of the damaged record or structure in the file."""
    @property
    def nbytes(self) -> int: ...
    @property
    def expected(self) -> int | None:
        """For a record: the CRC-32 that is stored."""
    @property
    def found(self) -> int | None:
        """For a record: the CRC-32 of its bytes."""
    @property
    def detail(self) -> str:
        """What is wrong, in words."""

@final
class FileReport:
    """What verifying one .pt file found."""

    @property
    def nbytes(self) -> int: ...
    @property
    def records(self) -> int: ...
    @property
    def checksums(self) -> Literal["all", "metadata", "none"]: ...
    @property
    def headers_covered(self) -> bool:
        """Whether the bytes between the records were checked too; possible only in torch's own framing."""
    @property
    def damages(self) -> list[Damage]: ...

def verify_file(
    path: _Path,
    *,
    quick: bool = False,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> FileReport:
    """Read every byte of a .pt file and compare; with `quick` only the structure. Needs no torch.

    Raises OSError if the file cannot be read; problems of its bytes are in the report.
    """

@final
class Lost:
    """A record that could not be salvaged."""

    @property
    def record(self) -> str:
        """Its name; empty if the name is lost too."""
    @property
    def offset(self) -> int:
        """Where it begins in the file."""
    @property
    def nbytes(self) -> int | None: ...
    @property
    def expected(self) -> int | None:
        """The CRC-32 that is stored."""
    @property
    def found(self) -> int | None:
        """The CRC-32 of its bytes."""
    @property
    def reason(self) -> str: ...

@final
class Salvaged:
    """The good records of a damaged file, and what is known about the others."""

    @property
    def archive(self) -> Archive:
        """The file, as an archive of its good records."""
    @property
    def lost(self) -> list[Lost]:
        """In file order."""
    @property
    def is_complete(self) -> bool:
        """Whether the file itself shows that every missing record is listed in `lost`."""

def salvage(
    path: _Path, *, threads: int | None = None, progress: _Progress | None = None
) -> Salvaged:
    """Find the records of a damaged file whose bytes match a CRC that the file states for them.

    Raises OSError if the file cannot be read. A file without any good record is not an error.
    """
