"""Archives that no writer makes: any pickle as data.pkl, any lie in a header."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from tests.archives import write_archive

STORED, DEFLATED = 0, 8
_TORCH_FLAGS = 0x0808


def with_pickle(pickle: bytes, *records: tuple[str, bytes]) -> bytes:
    """Return a sound archive around a pickle: all its checksums are right."""
    return write_archive([("data.pkl", pickle), ("byteorder", b"little"), *records])


@dataclass
class Entry:
    """One record, and what its headers say of it where that is not the truth."""

    name: str
    data: bytes = b""
    method: int = STORED
    flags: int = _TORCH_FLAGS
    local_name: str | None = None
    local_method: int | None = None
    crc32: int | None = None
    nbytes: int | None = None
    compressed_nbytes: int | None = None
    offset: int | None = None
    extra: bytes = b""
    alone: bool = True


@dataclass
class Forged:
    """A zip file of `entries`, by the rules of APPNOTE where they do not lie.

    Attributes:
        end: Replaces fields of the end record: "count", "nbytes", "offset", "comment_nbytes".
        prefix: Bytes in front of the first record.
    """

    entries: list[Entry]
    end: dict[str, int] = field(default_factory=dict)
    prefix: bytes = b""

    def bytes(self) -> bytes:
        """Write it."""
        body, directory = bytearray(self.prefix), bytearray()
        for entry in self.entries:
            offset = len(body)
            if entry.alone:
                body += _local(entry)
            directory += _central(entry, offset if entry.offset is None else entry.offset)
        count = self.end.get("count", len(self.entries))
        end = struct.pack(
            "<4sHHHHIIH",
            b"PK\5\6",
            0,
            0,
            count,
            count,
            self.end.get("nbytes", len(directory)),
            self.end.get("offset", len(body)),
            self.end.get("comment_nbytes", 0),
        )
        return bytes(body + directory + end)


def _payload(entry: Entry) -> bytes:
    if entry.method != DEFLATED:
        return entry.data
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(entry.data) + deflater.flush()


def _sizes(entry: Entry) -> tuple[int, int, int]:
    payload = _payload(entry)
    crc32 = zlib.crc32(entry.data) if entry.crc32 is None else entry.crc32
    compressed = len(payload) if entry.compressed_nbytes is None else entry.compressed_nbytes
    return crc32, compressed, len(entry.data) if entry.nbytes is None else entry.nbytes


def _local(entry: Entry) -> bytes:
    name = (entry.local_name or entry.name).encode()
    method = entry.method if entry.local_method is None else entry.local_method
    # Sizes follow in the descriptor, as torch has it.
    header = struct.pack(
        "<4sHHHHHIIIHH", b"PK\3\4", 0, entry.flags, method, 0, 0, 0, 0, 0, len(name), 0
    )
    payload = _payload(entry)
    descriptor = struct.pack(
        "<4sIII", b"PK\7\10", zlib.crc32(entry.data), len(payload), len(entry.data)
    )
    return header + name + payload + (descriptor if payload else b"")


def _central(entry: Entry, offset: int) -> bytes:
    name = entry.name.encode()
    crc32, compressed, nbytes = _sizes(entry)
    header = struct.pack(
        "<4sHHHHHHIIIHHHHHII",
        b"PK\1\2",
        0,
        0,
        entry.flags,
        entry.method,
        0,
        0,
        crc32,
        compressed,
        nbytes,
        len(name),
        len(entry.extra),
        0,
        0,
        0,
        0,
        offset,
    )
    return header + name + entry.extra
