"""Files of torch before 1.6, written by hand: five pickles, then the storages."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from collections.abc import Sequence
from typing import Any

from tests.faults.opcodes import long1, named, text

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
SYSTEM_INFO = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
# Of a tar file without a tensor: their number, and that of the views of storages.
EMPTY_PARTS: dict[str, list[Any]] = {
    "sys_info": [0],
    "pickle": [0],
    "tensors": [0],
    "storages": [0, []],
}


def stored(numel: int, data: bytes) -> bytes:
    """Return what the file has of one storage: the number of its elements, and they themselves."""
    return struct.pack("<q", numel) + data


def legacy_file(
    obj: bytes,
    keys: Sequence[str] | bytes = (),
    storages: Sequence[bytes] = (),
    *,
    magic: Any = MAGIC,
    protocol: Any = PROTOCOL_VERSION,
    system_info: Any = SYSTEM_INFO,
    pickle_protocol: int = 2,
) -> bytes:
    """Return a file around an object's pickle; bytes stand for a pickle in the other places too."""
    file = io.BytesIO()
    for part in (magic, protocol, system_info):
        file.write(_pickled(part, pickle_protocol))
    file.write(obj)
    file.write(keys if isinstance(keys, bytes) else _pickled(list(keys), pickle_protocol))
    for storage in storages:
        file.write(storage)
    return file.getvalue()


def _pickled(part: Any, protocol: int) -> bytes:
    return part if isinstance(part, bytes) else pickle.dumps(part, protocol)


def persistent_id(
    key: str, numel: int, view: bytes = b"N", *, module: str = "torch", dtype: str = "FloatStorage"
) -> bytes:
    """Return what stands for a storage: six parts, of which the last says which part of it is meant."""
    return (
        b"("
        + text("storage")
        + named(module, dtype)
        + text(key)
        + text("cpu")
        + long1(numel)
        + view
        + b"tQ"
    )


def view_of(key: str, offset: int, numel: int) -> bytes:
    """Return the last part of a persistent id: so many elements, under a key of their own."""
    return text(key) + long1(offset) + long1(numel) + b"\x87"


def tar_file(pickles: dict[str, bytes] | None = None) -> bytes:
    """Return a file of torch 0.1, of pickles that stand for nothing where no others are given."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            empty = b"".join(pickle.dumps(part, 2) for part in EMPTY_PARTS[name])
            data = (pickles or {}).get(name, empty)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()
