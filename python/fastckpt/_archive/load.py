"""Read an object from a .pt file: the counterpart of torch.load."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import os
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

import torch
from torch.serialization import LoadEndianness

from fastckpt._contents.opening import Kind, is_path, open_source
from fastckpt._native import Archive, Graph, Span, StorageInfo
from fastckpt.errors import (
    ChecksumError,
    FormatError,
    MissingChecksumWarning,
    TorchScriptError,
    UnsafePickleError,
)

from .configuration import configured_mmap
from .placement import MapLocation, decide, is_meta, restore_location
from .staging import StorageLoader
from .unpickling import (
    HostStorages,
    StorageRequest,
    StorageTable,
    check_size,
    missing_record,
    refusal,
    unpickle_restricted,
    unpickle_unrestricted,
)

_DATA = "data/"
_TRUE = ("1", "y", "yes", "true")


def load(
    f: str | os.PathLike[str] | IO[bytes],
    map_location: MapLocation = None,
    *,
    weights_only: bool | None = True,
    mmap: bool | None = None,
    verify: bool | Literal["require"] = True,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Load what torch.save or fastckpt.save has written, and check every byte of it.

    Returns what torch.load returns for the same arguments. Each record is read once, in
    parallel, into private memory, and its CRC-32 is compared with the one that was stored when
    it was saved; torch.load never does that. With ``mmap=True`` the tensors lie in a private
    (copy-on-write) mapping of the file instead: training on them changes neither the file nor
    other processes, but the file must not be truncated or written in place while they live.
    ``torch.serialization.set_default_mmap_options(MAP_SHARED)`` has no effect.

    Handed to torch.load unchanged, and so not checked: files of torch before 1.6, TorchScript
    archives, ``.safetensors`` files, and loads under a FakeTensorMode or inside
    ``torch.serialization.skip_data``.

    Args:
        f: A path, or a binary file object that can seek, where the archive begins at the current
            position. The position afterwards is not defined.
        map_location: As for torch.load: None, device, string, dict or function. "meta" reads no
            payload. Storages on CUDA are read through pinned buffers, never as a whole copy in
            host memory, unless a function has to see them.
        weights_only: True, the default, builds tensors, plain containers and what
            ``torch.serialization.add_safe_globals`` allows, and refuses everything else; the
            environment does not weaken it. False executes whatever the file asks for, unless
            TORCH_FORCE_WEIGHTS_ONLY_LOAD is set. None means that the caller has no opinion:
            True, unless TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set.
        mmap: Whether to map the file; None is ``torch.utils.serialization.config.load.mmap``.
        verify: Whether to check CRCs. Where the writer stored none, True warns with
            `MissingChecksumWarning`, and "require" raises. With False and ``mmap=True``, bytes
            are read when they are first used.
        threads: Number of threads that read; None chooses.
        progress: Called with bytes done and bytes in all, in the calling thread. What it raises
            ends the load and is raised from here.

    Returns:
        The object; its storages are shared where they were shared when it was saved.

    Raises:
        FileNotFoundError, OSError: The file cannot be opened or read.
        ChecksumError: Bytes have changed since they were written; names the tensors.
        FormatError: Not a checkpoint, or a damaged one.
        UnsafePickleError: ``weights_only=True`` does not allow what is in the file. There is no
            second try with False.
        RuntimeError: `map_location` names a device that is not there (torch.load's words).
        ValueError: ``mmap=True`` with a file object, or an argument out of its range.

    A file whose byte order is not this machine's is swapped as torch does, except for storages
    whose dtype it does not record (uint16, float8...), which torch would leave as they are and
    which are refused here.

    Example:
        >>> import fastckpt, torch
        >>> fastckpt.save({"weight": torch.zeros(2, 3)}, "/tmp/example.pt")
        >>> fastckpt.load("/tmp/example.pt", map_location="cpu")["weight"].shape
        torch.Size([2, 3])
    """
    weights_only = _weights_only(weights_only)
    mmap = configured_mmap() if mmap is None else mmap
    _check_arguments(verify, threads)
    if needs_torch():
        return torch.load(f, map_location, weights_only=weights_only, mmap=mmap)
    with open_source(f) as source:
        try:
            archive = source.archive() if source.kind is Kind.ZIP else None
        except TorchScriptError:
            archive = None
    if archive is None or archive.kind == "torchscript":
        return torch.load(f, map_location, weights_only=weights_only, mmap=mmap)
    if mmap and not is_path(f):
        raise ValueError("f must be a file path in order to use the mmap argument")
    return load_archive(
        archive,
        map_location,
        weights_only=weights_only,
        mmap=mmap,
        verify=verify,
        threads=threads,
        progress=progress,
    )


def load_archive(
    archive: Archive,
    map_location: MapLocation = None,
    *,
    weights_only: bool = True,
    mmap: bool = False,
    verify: bool | Literal["require"] = True,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Load the object of an archive that is open; for arguments and errors see `load`."""
    if archive.kind == "other":
        raise FormatError(
            f"{archive.path} is a zip archive without a data.pkl: torch.save has not written it "
            "(a .pt2 or torch.package archive? those have loaders of their own)",
            path=archive.path,
        )
    if not is_meta(map_location):
        look_for_checksums(archive, verify)
    job = _Job(archive, map_location, weights_only, mmap, bool(verify), threads, progress)
    return job.run()


@dataclass(frozen=True)
class _Job:
    """One load of one archive; the attributes are `load`'s arguments, settled."""

    archive: Archive
    map_location: MapLocation
    weights_only: bool
    mmap: bool
    verify: bool
    threads: int | None
    progress: Callable[[int, int], None] | None

    def run(self) -> Any:
        graph = self._decode()
        swap = byte_order(self.archive) != sys.byteorder
        if graph is not None:
            check_dtypes(self.archive, graph)
            check_sizes(self.archive, graph)
        if graph is not None and graph.outside is None and not swap:
            locations = {info.location for info in graph.storages}
            devices = decide(locations, self.map_location)
            if devices is not None:
                return graph.build(self._place(graph.storages, devices))
        return self._unpickle(graph, swap=swap)

    def _decode(self) -> Graph | None:
        """Decode data.pkl; None where only Python's unpickler can, and the caller allows that."""
        path = self.archive.path
        try:
            return self.archive.decode(verify=self.verify)
        except UnsafePickleError as error:
            if self.weights_only:
                raise UnsafePickleError(refusal(path, str(error)), path=path) from error
        # The decoder stopped before it could vouch for the records beside data.pkl.
        for name in self.archive.names():
            if not name.startswith(_DATA):
                self.archive.read_record(name, verify=self.verify)
        return None

    def _place(
        self, infos: Sequence[StorageInfo], devices: Mapping[str, torch.device]
    ) -> list[Span | torch.UntypedStorage]:
        """Read each storage to where it belongs, and check the records that nobody asks for."""
        on: dict[str, list[int]] = defaultdict(list)
        for i, info in enumerate(infos):
            device = devices[info.location].type
            on[device if device in ("cpu", "meta") else "accelerator"].append(i)
        host, staged = on["cpu"], on["accelerator"]
        host_keys, staged_keys = [infos[i].key for i in host], [infos[i].key for i in staged]
        unread = [] if on["meta"] and not (host or staged) else self._unread(infos)
        parts = _Parts(self.archive, self.progress, host_keys, staged_keys, unread)

        placed: dict[int, Span | torch.UntypedStorage] = {}
        for i in on["meta"]:
            placed[i] = _meta_storage(self.archive, infos[i].key, infos[i].nbytes)
        spans = self._read(host_keys, parts.of(0))
        placed.update(zip(host, spans, strict=True))
        if staged:
            storages = [
                _device_storage(infos[i].nbytes, devices[infos[i].location]) for i in staged
            ]
            self._read_staged(staged_keys, storages, parts.of(1))
            placed.update(zip(staged, storages, strict=True))
        self._check(unread, parts.of(2))
        return [placed[i] for i in range(len(infos))]

    def _unpickle(self, graph: Graph | None, *, swap: bool) -> Any:
        """Read what the pickle may ask for, then let torch's or Python's unpickler build it."""
        unpickle = unpickle_restricted if self.weights_only else unpickle_unrestricted
        data = self.archive.read_record("data.pkl", verify=self.verify)
        path = self.archive.path
        if is_meta(self.map_location):
            table = StorageTable(path, _MetaStorages(self.archive).fetch)
            return unpickle(data, table, path, self.map_location)
        if graph is None:
            keys = [name.removeprefix(_DATA) for name in self._data_names()]
            unread = []
        else:
            keys = list(dict.fromkeys(info.key for info in graph.storages))
            unread = self._unread(graph.storages)
        parts = _Parts(self.archive, self.progress, keys, unread)
        spans = dict(zip(keys, self._read(keys, parts.of(0)), strict=True))
        self._check(unread, parts.of(1))
        storages = HostStorages(path, spans, restore_location(self.map_location), swap=swap)
        return unpickle(data, StorageTable(path, storages.fetch), path, self.map_location)

    def _read(self, keys: list[str], progress: Callable[[int, int], None] | None) -> list[Span]:
        if not keys:
            return []
        return self.archive.read(
            keys, mmap=self.mmap, verify=self.verify, threads=self.threads, progress=progress
        )

    def _read_staged(
        self,
        keys: list[str],
        storages: list[torch.UntypedStorage],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        with StorageLoader(storages) as loader:
            self.archive.read_staged(
                keys, loader, verify=self.verify, threads=self.threads, progress=progress
            )

    def _check(self, keys: list[str], progress: Callable[[int, int], None] | None) -> None:
        if keys:
            self.archive.check(keys, threads=self.threads, progress=progress)

    def _unread(self, infos: Iterable[StorageInfo]) -> list[str]:
        """Keys of records that are there to be checked although the pickle does not use them."""
        if not self.verify:
            return []
        used = {_DATA + info.key for info in infos}
        return [name.removeprefix(_DATA) for name in self._data_names() if name not in used]

    def _data_names(self) -> list[str]:
        return [name for name in self.archive.names() if name.startswith(_DATA)]


class _Parts:
    """Presents several jobs of the core to the caller's `progress` as one."""

    def __init__(
        self,
        archive: Archive,
        progress: Callable[[int, int], None] | None,
        *keys: Sequence[str],
    ) -> None:
        self._progress = progress
        if progress is not None:
            self._nbytes = [sum(archive.record_nbytes(_DATA + k) for k in part) for part in keys]

    def of(self, part: int) -> Callable[[int, int], None] | None:
        """Return the callback for one of the jobs."""
        progress = self._progress
        if progress is None:
            return None
        before, nbytes, total = sum(self._nbytes[:part]), self._nbytes[part], sum(self._nbytes)
        # The core's own total has the headers in it.
        return lambda done, of: progress(before + (done * nbytes // of if of else nbytes), total)


class _MetaStorages:
    """Makes storages on the meta device, for which no payload is read."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def fetch(self, request: StorageRequest) -> torch.UntypedStorage:
        return _meta_storage(self._archive, request.key, request.nbytes)


def _meta_storage(archive: Archive, key: str, nbytes: int) -> torch.UntypedStorage:
    storage = torch.UntypedStorage(nbytes, device="meta")
    # Where the payload lies in the file, for those who read it on their own (torch 2.7).
    storage._checkpoint_offset = archive.record_offset(_DATA + key)
    return storage


def _device_storage(nbytes: int, device: torch.device) -> torch.UntypedStorage:
    return torch.empty(nbytes, dtype=torch.uint8, device=device).untyped_storage()


def check_dtypes(archive: Archive, graph: Graph) -> None:
    """Refuse what the installed torch is too old for, as its own unpickler would."""
    unknown = [name for name in graph.dtypes() if not hasattr(torch, name)]
    if unknown:
        raise UnsafePickleError(
            f"{archive.path} has torch.{unknown[0]}, which the installed torch {torch.__version__} "
            "does not know; load it with a newer torch",
            path=archive.path,
        )


def check_sizes(archive: Archive, graph: Graph) -> None:
    """Compare the records with what data.pkl says of them, before anything is read."""
    names = set(archive.names())
    for info in graph.storages:
        if _DATA + info.key not in names:
            raise missing_record(archive.path, info.key)
        nbytes = archive.record_nbytes(_DATA + info.key)
        if nbytes != info.nbytes:
            itemsize = info.nbytes // info.numel if info.numel else 1
            tensors = tuple(name for key, name in graph.tensor_names() if key == info.key)
            check_size(archive.path, info.key, info.nbytes, itemsize, nbytes, tensors)


def byte_order(archive: Archive) -> str:
    """Return "little" or "big"; files before torch 2.1 do not say, and torch assumes little."""
    if "byteorder" in archive.names():
        order = archive.read_record("byteorder")
        if order not in (b"little", b"big"):
            raise FormatError(
                f"{archive.path} is damaged: unknown byte order {order[:16]!r}", path=archive.path
            )
        return order.decode()
    default = torch.serialization.get_default_load_endianness()
    if default == LoadEndianness.NATIVE:
        return sys.byteorder
    return "big" if default == LoadEndianness.BIG else "little"


def look_for_checksums(archive: Archive, verify: bool | Literal["require"]) -> None:
    """Warn, or refuse, where the writer of the file had switched its checksums off."""
    if not verify or archive.checksums == "all":
        return
    message = (
        f"{archive.path} has no checksums for its tensors (its writer switched them off: "
        "set_crc32_options(False) or skip_data), so damage to them cannot be found"
    )
    if verify == "require":
        raise ChecksumError(
            f"{message}. verify=True loads it all the same; saving it again with fastckpt.save "
            "adds them.",
            path=archive.path,
        )
    warnings.warn(f"{message}. Save it again to add them.", MissingChecksumWarning, stacklevel=4)


def _weights_only(weights_only: bool | None) -> bool:
    """Settle `weights_only` with torch's two environment variables."""
    force = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0").lower() in _TRUE
    force_no = os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0").lower() in _TRUE
    if force and force_no:
        raise RuntimeError(
            "Only one of `TORCH_FORCE_WEIGHTS_ONLY_LOAD` or `TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD` "
            "should be set, but both were set."
        )
    if force:
        return True
    if weights_only is None:
        return not force_no
    return weights_only


def _check_arguments(verify: bool | Literal["require"], threads: int | None) -> None:
    if verify not in (True, False, "require"):
        raise ValueError(f"verify must be True, False or 'require', not {verify!r}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, or None to choose, not {threads}")


def needs_torch() -> bool:
    """Whether a mode is active in which torch.load makes tensors without data."""
    fake = torch._guards.detect_fake_mode(None) is not None
    return fake or torch.serialization._serialization_tls.skip_data
