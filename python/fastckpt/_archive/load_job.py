"""One load of one archive: what is read, to where, and what builds the objects."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.serialization import LoadEndianness

from fastckpt._native import Archive, Graph, Span, StorageInfo
from fastckpt.errors import FormatError, UnsafePickleError

from .frames import fetch_frames, is_faking, meta_storage
from .placement import MapLocation, decide, restore_location
from .staging import StorageLoader
from .unpickling import (
    HostStorages,
    LegacyStorageTable,
    StorageTable,
    is_fitting,
    missing_record,
    refusal,
    unpickle_restricted,
    unpickle_unrestricted,
    wrong_size,
)

_DATA = "data/"


@dataclass(frozen=True)
class LoadJob:
    """One load of one archive; the attributes are `load`'s arguments, settled."""

    archive: Archive
    map_location: MapLocation
    weights_only: bool
    mmap: bool
    verify: bool
    threads: int | None
    progress: Callable[[int, int], None] | None
    # The object of a file of torch before 1.6; the archive has its storages, and their sizes fit.
    legacy: Graph | None = None

    def run(self) -> Any:
        graph: Graph | None
        if self.legacy is not None:
            # Whatever wrote it: torch swaps bytes on a machine that has them the other way.
            graph, order = self.legacy, "little"
        else:
            graph, order = self._decode(), byte_order(self.archive)
            if graph is not None:
                check_sizes(self.archive, graph)
        swap = order != sys.byteorder
        if graph is not None:
            check_dtypes(self.archive.path, graph.dtypes())
        if graph is not None and graph.outside is None and not swap and not is_faking():
            locations = {info.location for info in graph.storages}
            devices = decide(locations, self.map_location)
            if devices is not None:
                return graph.build(self._place(graph.storages, devices))
        return self._unpickle(graph, swap=swap)

    def _decode(self) -> Graph | None:
        """Decode data.pkl; None if only Python's unpickler can, and the caller allows that."""
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
            placed[i] = meta_storage(self.archive, infos[i].key, infos[i].nbytes)
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
        path = self.archive.path
        data, objects = self._pickle_for(graph)
        table_type = StorageTable if self.legacy is None else LegacyStorageTable
        table_of = partial(table_type, path, objects=objects)
        frames = fetch_frames(self.archive, self.map_location, is_legacy=self.legacy is not None)
        if frames is not None:
            return unpickle(data, table_of(frames), path, self.map_location)
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
        return unpickle(data, table_of(storages.fetch), path, self.map_location)

    def _pickle_for(self, graph: Graph | None) -> tuple[bytes, list[Any]]:
        """Return what the unpickler gets, and the objects that it gets from the decoder."""
        if graph is None:
            return self.archive.read_record("data.pkl", verify=self.verify), []
        # The bytes that the decoder has walked: the file may be another one by now.
        return graph.for_torch() if self.weights_only else (graph.pickle, [])

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


def _device_storage(nbytes: int, device: torch.device) -> torch.UntypedStorage:
    return torch.empty(nbytes, dtype=torch.uint8, device=device).untyped_storage()


def check_dtypes(path: str, names: Iterable[str]) -> None:
    """Refuse dtypes for which the installed torch is too old, as its own unpickler would."""
    unknown = sorted({name for name in names if not hasattr(torch, name)})
    if unknown:
        raise UnsafePickleError(
            f"{path} has torch.{unknown[0]}, which the installed torch {torch.__version__} "
            "does not know; load it with a newer torch",
            path=path,
        )


def check_sizes(archive: Archive, graph: Graph) -> None:
    """Compare the records with what data.pkl says about them, before anything is read."""
    names = set(archive.names())
    for info in graph.storages:
        if _DATA + info.key not in names:
            raise missing_record(archive.path, info.key)
        nbytes = archive.record_nbytes(_DATA + info.key)
        itemsize = info.nbytes // info.numel if info.numel else 1
        if not is_fitting(info.nbytes, itemsize, nbytes):
            # All tensors are gone through for the names: once, for the record that ends the load.
            tensors = [name for _, name, _ in graph.places({info.key})]
            raise wrong_size(archive.path, info.key, info.nbytes, nbytes, tensors)


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
