"""Salvage what is good in a damaged file: into a new one, never in place.

The core finds the records whose bytes have a CRC that the file states for them. What they hold is put
together here, as carefully as when a file is loaded: nothing is executed, and what torch's
``weights_only=True`` would refuse is not built.
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastckpt import _native
from fastckpt._archive.load import load_archive
from fastckpt._archive.pickling import DEFAULT_PROTOCOL, Pickled, pickle_object
from fastckpt._archive.save import MAX_ALIGNMENT, nbytes_of, write_into
from fastckpt._archive.unpickling import host_storage
from fastckpt._arguments import checked_threads, one_path, output_path
from fastckpt._named_step import find_step
from fastckpt._verify.verify import verify
from fastckpt.errors import CheckpointError, FormatError

from .report import LostRecord, LostTensor, Outcome, RepairReport

__all__ = ["LostRecord", "LostTensor", "Outcome", "RepairReport", "repair"]

_Path = str | os.PathLike[str]
_Progress = Callable[[int, int], None]

_PICKLE = "data.pkl"
_DATA = "data/"
# What torch.save writes beside data.pkl and the storages. A save makes them anew.
_FRAME = {
    ".format_version",
    ".storage_alignment",
    ".data/serialization_id",
    ".data/version",
    "byteorder",
    "version",
}
_NO_TRACE = "there is no trace of it in the file"


def repair(
    path: _Path,
    output: _Path | None = None,
    *,
    to: _Path | None = None,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> RepairReport:
    """Salvage every record of a damaged file whose checksum is good, into a new file.

    What the new file holds depends on what is lost:

    - nothing, or only bytes between the records: all that was saved, with the same data.pkl;
    - tensors: the same object without them. A dict loses the keys of lost tensors; elsewhere, in a
      list say, None takes their place. All tensors are on the CPU;
    - data.pkl: a dict of uint8 tensors, one for each storage, by the names of the records
      (``{"data/17": ...}``). Names, shapes and dtypes are lost with data.pkl. The same happens where the
      object cannot be built without the lost tensors.

    No value is ever made up: each tensor holds the bytes that were saved under its name. The new file is
    as fastckpt.save writes it, and has been verified; torch.load reads it.

    Args:
        path: The damaged file, or a step that has one .pt file (``"runs/d12@100"``). It is only read.
        output: The new file; must not exist.
        to: Another name of `output`.
        threads: Number of threads; None chooses.
        progress: Called with bytes done and bytes in all. What it raises ends the job.

    Returns:
        The report, which is true if everything was salvaged: `.ok`, `.outcome`, `.lost`, `.tensors`. Where
        nothing can be salvaged there is no new file.

    Raises:
        FileExistsError: There is something at `output`.
        FileNotFoundError, OSError: The file cannot be read, or the new one cannot be written.
        ValueError: The step has several .pt files.

    Example:
        >>> import fastckpt, torch
        >>> fastckpt.save({"a": torch.ones(1000), "b": torch.ones(1000)}, "model.pt")
        >>> with open("model.pt", "r+b") as file:  # damage the last tensor
        ...     position = file.seek(-3000, 2)
        ...     written = file.write(b"????")
        >>> report = fastckpt.repair("model.pt", "salvaged.pt")
        >>> [tensor.name for tensor in report.tensors]  # what is lost
        ['b']
    """
    source = _one_file(one_path("path", path))
    target = output_path(output, to, 'repair("damaged.pt", "salvaged.pt")')
    threads = checked_threads(threads)
    _refuse_existing(target)
    salvaged = _native.salvage(source, threads=threads, progress=progress)
    job = _Job(source, target, salvaged, threads)
    return job.run()


def _one_file(path: str) -> str:
    """Return the only .pt file of the step that DIR@STEP names, and other paths as they are."""
    named = find_step(path)
    if named is None:
        return path
    files = [*named.nanochat.names(), *named.managed]
    archives = [name for name in files if name.endswith(".pt")]
    if len(archives) != 1:
        raise ValueError(
            f"step {named.step} in {named.directory} has {len(archives)} .pt files, and repair takes one: "
            f"{', '.join(archives)}"
        )
    return os.path.join(named.directory, archives[0])


class _Job:
    """One repair, from the records that the core has found."""

    def __init__(self, path: str, to: str, salvaged: _native.Salvaged, threads: int | None) -> None:
        self._path = path
        self._to = to
        self._archive = salvaged.archive
        self._threads = threads
        self._is_complete = salvaged.is_complete
        self._records = salvaged.archive.names()
        self._there = frozenset(self._records)
        self._lost = _lost_records(salvaged, self._records)
        self._tensors: list[LostTensor] = []
        self._notes: list[str] = []

    def run(self) -> RepairReport:
        if "constants.pkl" in self._there:
            self._notes.append("a TorchScript archive: repair is for the files of torch.save")
            return self._report(Outcome.NOTHING, 0)
        graph = self._decode()
        lost = None if graph is None else self._lost_keys(graph)
        swap = self._is_swapped()
        if not swap and self._can_be_copied(graph, lost):
            return self._copy(graph)
        if graph is None or lost is None:
            return self._dump()
        if not lost and (swap or graph.outside is not None):
            return self._build(lambda: load_archive(self._archive, threads=self._threads))
        if swap:
            self._notes.append("it was saved on a machine of another byte order")
            return self._dump()
        if graph.outside is not None:
            words = f"the object has parts that only torch can build ({graph.outside})"
            self._notes.append(f"{words}, so it cannot be built without what is lost")
            return self._dump()
        self._tensors = [
            LostTensor(name, _DATA + key, is_left_out=is_item)
            for key, name, is_item in graph.places(lost)
        ]
        return self._build(lambda: self._without(graph, lost))

    # What there is.

    def _decode(self) -> _native.Graph | None:
        if _PICKLE not in self._there:
            self._notes.append("data.pkl is lost, and with it the names, shapes and dtypes")
            return None
        try:
            return self._archive.decode_pickle()
        except CheckpointError as error:
            self._notes.append(f"data.pkl cannot be decoded: {error}")
            return None

    def _lost_keys(self, graph: _native.Graph) -> set[str]:
        """Return the keys of storages that are lost, and complete what is known of their records."""
        known = {record.record for record in self._lost}
        lost = set()
        for info in graph.storages:
            name = _DATA + info.key
            itemsize = info.nbytes // info.numel if info.numel else 1
            if info.nbytes == 0 and name not in self._there:
                continue  # Nothing of it can be lost.
            if name not in self._there:
                lost.add(info.key)
                if name not in known:
                    known.add(name)
                    self._lost.append(LostRecord(name, _NO_TRACE, nbytes=info.nbytes))
            elif not 0 <= self._archive.record_nbytes(name) - info.nbytes < itemsize:
                lost.add(info.key)
                found = self._archive.record_nbytes(name)
                reason = f"it has {found} bytes, and data.pkl says {info.nbytes}"
                offset = self._archive.record_offset(name)
                self._lost.append(LostRecord(name, reason, offset, found))
        # What data.pkl does not ask for was left in the file by something else.
        wanted = {_DATA + info.key for info in graph.storages} | _FRAME
        self._lost = [record for record in self._lost if record.record in wanted]
        return lost

    def _is_swapped(self) -> bool:
        """Whether the file was saved on a machine of the other byte order."""
        if "byteorder" in self._there:
            return self._archive.read_record("byteorder") != sys.byteorder.encode()
        lost = [record for record in self._lost if record.record == "byteorder"]
        if any(record.nbytes not in (None, len(sys.byteorder)) for record in lost):
            return True
        if lost:
            self._notes.append(f"the record of the byte order is lost: taken to be {sys.byteorder}")
        return False

    def _can_be_copied(self, graph: _native.Graph | None, lost: set[str] | None) -> bool:
        """Whether all that was saved is there, under the names that a save gives."""
        if _PICKLE not in self._there:
            return False
        if graph is None or lost is None:
            # Only the file itself can say that nothing is missing.
            if not self._is_complete or any(record.record not in _FRAME for record in self._lost):
                return False
        elif lost:
            return False
        expected = {str(number) for number in range(self._count(graph))}
        # Records of storages that are empty may be missing.
        empty = set() if graph is None else {info.key for info in graph.storages if not info.nbytes}
        return self._keys() <= expected <= self._keys() | empty

    def _count(self, graph: _native.Graph | None) -> int:
        """Return how many storages were saved, if they are numbered as a save numbers them."""
        wanted = set() if graph is None else {info.key for info in graph.storages}
        return len(self._keys() | wanted)

    def _keys(self) -> set[str]:
        return {name.removeprefix(_DATA) for name in self._records if name.startswith(_DATA)}

    # What becomes of it.

    def _copy(self, graph: _native.Graph | None) -> RepairReport:
        """Write the same pickle and storages again; the frame around them is made anew."""
        extra = [name for name in self._records if not _is_saved(name)]
        if extra:
            self._notes.append(f"left out, since no save writes it: {', '.join(extra)}")
        there = sorted(self._keys(), key=int)
        spans = dict(zip(there, self._archive.read(there, threads=self._threads), strict=True))
        storages = [
            host_storage(spans[key], spans[key].nbytes) if key in spans else _empty_storage()
            for key in map(str, range(self._count(graph)))
        ]
        # With the storages that it was counted with.
        data = self._archive.read_record(_PICKLE) if graph is None else graph.pickle
        pickled = Pickled.of(data, storages)
        mark = self._archive.save_mark
        return self._write(
            Outcome.WHOLE,
            pickled,
            shards=0 if mark is None else mark.shards,
            save_id=0 if mark is None else mark.save_id,
        )

    def _build(self, build: Callable[[], Any]) -> RepairReport:
        """Write an object that is built from the records."""
        try:
            pickled = pickle_object(obj := build(), DEFAULT_PROTOCOL)
        except (CheckpointError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            # What data.pkl says is sound, and still none that the installed torch can build.
            self._notes.append(f"the object cannot be built: {type(error).__name__}: {error}")
            self._tensors = []
            return self._dump()
        if obj is None and self._tensors:
            self._notes.append("the file held one tensor, which is lost")
            return self._report(Outcome.NOTHING, 0)
        return self._write(Outcome.PARTIAL if self._tensors else Outcome.WHOLE, pickled)

    def _without(self, graph: _native.Graph, lost: set[str]) -> Any:
        """Build the object without the tensors that are lost."""
        there = [
            info.key
            for info in graph.storages
            if info.key not in lost and _DATA + info.key in self._there
        ]
        spans = dict(zip(there, self._archive.read(there, threads=self._threads), strict=True))
        memory: list[_native.Span | torch.UntypedStorage] = [
            spans.get(info.key) or _empty_storage() for info in graph.storages
        ]
        return graph.without(lost).build(memory)

    def _dump(self) -> RepairReport:
        """Write the raw storages by the names of their records."""
        names = [name for name in self._records if name.startswith(_DATA)]
        if not names:
            return self._report(Outcome.NOTHING, 0)
        spans = self._archive.read(
            [name.removeprefix(_DATA) for name in names], threads=self._threads
        )
        records: dict[str, Any] = {}
        if _PICKLE in self._there:
            records[_PICKLE] = _bytes_of(self._archive.read_record(_PICKLE))
        for name, span in zip(names, spans, strict=True):
            storage = host_storage(span, span.nbytes)
            records[name] = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)
        return self._write(Outcome.RECORDS, pickle_object(records, DEFAULT_PROTOCOL))

    def _write(
        self, outcome: Outcome, pickled: Pickled, *, shards: int = 0, save_id: int = 0
    ) -> RepairReport:
        alignment = self._alignment()
        directory = os.path.dirname(self._to)
        with _native.Commit() as commit:
            commit.require_space(directory, nbytes_of(self._to, pickled, alignment=alignment))
            written = write_into(
                commit,
                self._to,
                pickled,
                alignment=alignment,
                shards=shards,
                save_id=save_id,
                threads=self._threads,
            )
            # Somebody may have been faster.
            _refuse_existing(self._to)
            commit.publish([self._to], replace=False)
        report = verify(self._to, threads=self._threads)
        if not report.ok:
            raise FormatError(
                f"{self._to} was written and does not verify: the disk may be failing",
                path=self._to,
            )
        return self._report(outcome, written.nbytes)

    def _alignment(self) -> int | None:
        """Return the alignment of the damaged file, None where that is not known."""
        name = ".storage_alignment"
        digits = self._archive.read_record(name) if name in self._there else b""
        if not digits.isdigit() or len(digits) > len(str(MAX_ALIGNMENT)):
            return None
        return int(digits) if 1 <= int(digits) <= MAX_ALIGNMENT else None

    def _report(self, outcome: Outcome, nbytes: int) -> RepairReport:
        if outcome is Outcome.NOTHING and not self._records and not self._lost:
            self._notes.append(
                "nothing in it looks like a record of torch.save (before torch 1.6 there were none)"
            )
        lost = sorted(self._lost, key=_position)
        return RepairReport(
            path=self._path,
            to=self._to,
            outcome=outcome,
            nbytes=nbytes,
            records=tuple(self._records),
            lost=tuple(lost),
            tensors=tuple(self._tensors),
            notes=tuple(self._notes),
        )


def _lost_records(salvaged: _native.Salvaged, good: Sequence[str]) -> list[LostRecord]:
    """Return what the core could not have, but for what it has found in another place."""
    there = set(good)
    return [
        LostRecord(
            record=lost.record,
            reason=lost.reason,
            offset=lost.offset,
            nbytes=lost.nbytes,
            expected=lost.expected,
            found=lost.found,
        )
        for lost in salvaged.lost
        if lost.record not in there
    ]


def _is_saved(name: str) -> bool:
    return name in _FRAME or name == _PICKLE or name.startswith(_DATA)


def _position(record: LostRecord) -> tuple[bool, int, str]:
    return record.offset is None, record.offset or 0, record.record


def _empty_storage() -> torch.UntypedStorage:
    return torch.UntypedStorage(0, device="cpu")


def _bytes_of(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _refuse_existing(path: str) -> None:
    if os.path.lexists(path):
        message = "the file exists already, and repair only writes new files"
        raise FileExistsError(errno.EEXIST, message, path)
