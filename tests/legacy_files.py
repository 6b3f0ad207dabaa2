"""Files of torch before 1.6, written by hand: five pickles, then the storages."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Sequence
from typing import Any

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
SYSTEM_INFO = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}


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
