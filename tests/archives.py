"""Archives seen from outside: by Python's zipfile, not by the code under test."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import io
import os
import struct
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from typing import IO

import torch

ID_RECORD = ".data/serialization_id"
_LOCAL_HEADER_NBYTES = 30
_CENTRAL_HEADER_NBYTES = 46
_CENTRAL_CRC_OFFSET = 16
_DESCRIPTOR_CRC_OFFSET = 4


def torch_writes_current_layout() -> bool:
    """Whether the installed torch lays files out as torch 2.7 and later do, and so as we do."""
    return hasattr(torch.serialization, "_get_storage_alignment")


def save_by_torch(
    obj: object, f: str | os.PathLike[str] | IO[bytes], *, pickle_protocol: int = 2
) -> None:
    """Write the file of torch.save in the layout of torch 2.7 and later, which is ours.

    torch 2.6 leaves out two records. Its own writer lays the file out with them.
    """
    if torch_writes_current_layout():
        torch.save(obj, f, pickle_protocol=pickle_protocol)
        return
    entries = records(torch_bytes(obj, pickle_protocol=pickle_protocol))
    first = {
        "data.pkl": entries.pop("data.pkl"),
        ".format_version": b"1",
        ".storage_alignment": b"64",
    }
    target = os.fspath(f) if isinstance(f, os.PathLike) else f
    with torch.serialization._open_zipfile_writer(target) as writer:
        for name, data in (first | entries).items():
            # The writer adds these two itself.
            if name not in ("version", ID_RECORD):
                writer.write_record(name, data, len(data))


def current_bytes(obj: object, *, pickle_protocol: int = 2) -> bytes:
    """Return the file that torch 2.7 and later write to a file object."""
    file = io.BytesIO()
    save_by_torch(obj, file, pickle_protocol=pickle_protocol)
    return file.getvalue()


def torch_bytes(obj: object, *, pickle_protocol: int = 2) -> bytes:
    """Return the file that torch.save writes to a file object."""
    file = io.BytesIO()
    torch.save(obj, file, pickle_protocol=pickle_protocol)
    return file.getvalue()


def records(archive: bytes) -> dict[str, bytes]:
    """Return the records by their names without the root folder, in file order."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {info.filename.split("/", 1)[1]: opened.read(info) for info in opened.infolist()}


def data_pkl(archive: bytes) -> bytes:
    return records(archive)["data.pkl"]


def record_range(archive: bytes, name: str) -> range:
    """Return the positions of a record's payload in the file."""
    for info in _infos(archive):
        if info.filename.split("/", 1)[1] == name:
            start = _payload_offset(archive, info)
            return range(start, start + info.file_size)
    raise KeyError(name)


def mask_serialization_id(archive: bytes) -> bytes:
    """Zero the 40 digits that tell writers apart, and the two copies of their CRC."""
    masked = bytearray(archive)
    payload = record_range(archive, ID_RECORD)
    masked[payload.start : payload.stop] = bytes(len(payload))
    descriptor = payload.stop + _DESCRIPTOR_CRC_OFFSET
    masked[descriptor : descriptor + 4] = bytes(4)
    for position, name in _central_entries(archive):
        if name.split("/", 1)[1] == ID_RECORD:
            crc = position + _CENTRAL_CRC_OFFSET
            masked[crc : crc + 4] = bytes(4)
    return bytes(masked)


def write_archive(entries: Iterable[tuple[str, bytes]]) -> bytes:
    """Write an archive with any records, by torch's own writer."""
    file = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(file)
    for name, data in entries:
        writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    return file.getvalue()


def plain_zip(entries: dict[str, bytes]) -> bytes:
    """Write an archive by Python's zipfile: other framing, and only the records asked for."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)
    return file.getvalue()


def with_records(archive: bytes, changes: dict[str, bytes | None]) -> bytes:
    """Write an archive again with some records replaced, added or (None) left out."""
    entries = {
        name: data
        for name, data in records(archive).items()
        # The writer adds these two itself.
        if name not in ("version", ID_RECORD)
    }
    merged = entries | changes
    return write_archive((name, data) for name, data in merged.items() if data is not None)


def without_checksums(obj: object) -> bytes:
    """Return the file of a torch.save whose CRCs are switched off."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        return torch_bytes(obj)
    finally:
        torch.serialization.set_crc32_options(before)


def legacy_bytes(obj: object, *, pickle_protocol: int = 2) -> bytes:
    """Return a file of the format before torch 1.6."""
    file = io.BytesIO()
    torch.save(obj, file, pickle_protocol=pickle_protocol, _use_new_zipfile_serialization=False)
    return file.getvalue()


def torchscript_bytes() -> bytes:
    """Return a TorchScript archive."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), file)
    return file.getvalue()


def _infos(archive: bytes) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return opened.infolist()


def _payload_offset(archive: bytes, info: zipfile.ZipInfo) -> int:
    name_nbytes, extra_nbytes = struct.unpack_from("<HH", archive, info.header_offset + 26)
    return int(info.header_offset + _LOCAL_HEADER_NBYTES + name_nbytes + extra_nbytes)


def _central_entries(archive: bytes) -> Iterator[tuple[int, str]]:
    """Yield position and name of each entry of the central directory."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        position, count = opened.start_dir, len(opened.infolist())
    for _ in range(count):
        name_nbytes, extra_nbytes, comment_nbytes = struct.unpack_from(
            "<HHH", archive, position + 28
        )
        name_start = position + _CENTRAL_HEADER_NBYTES
        yield position, archive[name_start : name_start + name_nbytes].decode()
        position = name_start + name_nbytes + extra_nbytes + comment_nbytes
