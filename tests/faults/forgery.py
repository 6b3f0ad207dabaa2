"""Archives that no writer makes: any pickle as data.pkl, any lie in a header."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from tests.archives import write_archive

STORED, DEFLATED = 0, 8
_TORCH_FLAGS = 0x0808
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_DESCRIPTOR = struct.Struct("<4sIII")
_END = struct.Struct("<4sHHHHIIH")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR = struct.Struct("<4sIQI")
# What the size field of the zip64 end record does not count (zip APPNOTE 4.3.14.1).
_END64_UNCOUNTED = 12


def with_pickle(pickle: bytes, *records: tuple[str, bytes]) -> bytes:
    """Return a sound archive around a pickle: all its checksums are right."""
    return write_archive([("data.pkl", pickle), ("byteorder", b"little"), *records])


@dataclass
class Entry:
    """One record, and what its headers say of it where that is not the truth.

    Attributes:
        alone: Whether it has a local header and a payload of its own.
        descriptor: What follows the payload; None for the truth.
    """

    name: str | bytes
    data: bytes = b""
    method: int = STORED
    flags: int = _TORCH_FLAGS
    local_name: str | None = None
    local_method: int | None = None
    local_flags: int | None = None
    local_crc32: int = 0
    local_nbytes: int = 0
    local_compressed_nbytes: int = 0
    local_extra: bytes = b""
    local_signature: bytes = b"PK\3\4"
    crc32: int | None = None
    nbytes: int | None = None
    compressed_nbytes: int | None = None
    offset: int | None = None
    extra: bytes = b""
    comment: bytes = b""
    version_needed: int = 0
    disk: int = 0
    attributes: int = 0
    alone: bool = True
    descriptor: bytes | None = None


@dataclass
class Forged:
    """A zip file of `entries`, by the rules of APPNOTE where they do not lie.

    Attributes:
        end: Replaces fields of the end record: "disk", "directory_disk", "disk_count", "count",
            "nbytes", "offset", "comment_nbytes".
        end64: Adds the zip64 end records where it is not None, and replaces fields of theirs:
            those of the end record, and "record_nbytes", "locator_disk", "locator_offset", "disks".
        prefix: Bytes in front of the first record.
        gap: Bytes between the last record and the directory.
        after_directory: Bytes between the directory and the end records.
        comment: The comment at the end.
    """

    entries: list[Entry]
    end: dict[str, int] = field(default_factory=dict)
    end64: dict[str, int] | None = None
    prefix: bytes = b""
    gap: bytes = b""
    after_directory: bytes = b""
    comment: bytes = b""

    def bytes(self) -> bytes:
        """Write it."""
        body, directory = bytearray(self.prefix), bytearray()
        for entry in self.entries:
            offset = len(body)
            if entry.alone:
                body += _local(entry)
            directory += _central(entry, offset if entry.offset is None else entry.offset)
        body += self.gap
        place = {"count": len(self.entries), "nbytes": len(directory), "offset": len(body)}
        body += directory + self.after_directory
        if self.end64 is not None:
            body += _end64(place | self.end64, len(body))
        return (
            bytes(body)
            + _end(place | {"comment_nbytes": len(self.comment)} | self.end)
            + (self.comment)
        )


def _end(fields: dict[str, int]) -> bytes:
    return _END.pack(
        b"PK\5\6",
        fields.get("disk", 0),
        fields.get("directory_disk", 0),
        fields.get("disk_count", fields["count"]),
        fields["count"],
        fields["nbytes"],
        fields["offset"],
        fields["comment_nbytes"],
    )


def _end64(fields: dict[str, int], offset: int) -> bytes:
    end = _END64.pack(
        b"PK\6\6",
        fields.get("record_nbytes", _END64.size - _END64_UNCOUNTED),
        0x1E,
        45,
        fields.get("disk", 0),
        fields.get("directory_disk", 0),
        fields.get("disk_count", fields["count"]),
        fields["count"],
        fields["nbytes"],
        fields["offset"],
    )
    where = fields.get("locator_offset", offset)
    return end + _LOCATOR.pack(
        b"PK\6\7", fields.get("locator_disk", 0), where, fields.get("disks", 1)
    )


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


def _encoded(name: str | bytes) -> bytes:
    return name.encode() if isinstance(name, str) else name


def _local(entry: Entry) -> bytes:
    name = _encoded(entry.local_name or entry.name)
    # Sizes follow in the descriptor, as torch has it.
    header = _LOCAL.pack(
        entry.local_signature,
        0,
        entry.flags if entry.local_flags is None else entry.local_flags,
        entry.method if entry.local_method is None else entry.local_method,
        0,
        0,
        entry.local_crc32,
        entry.local_compressed_nbytes,
        entry.local_nbytes,
        len(name),
        len(entry.local_extra),
    )
    payload = _payload(entry)
    descriptor = entry.descriptor
    if descriptor is None and payload:
        crc32 = zlib.crc32(entry.data)
        descriptor = _DESCRIPTOR.pack(b"PK\7\10", crc32, len(payload), len(entry.data))
    return header + name + entry.local_extra + payload + (descriptor or b"")


def _central(entry: Entry, offset: int) -> bytes:
    name = _encoded(entry.name)
    header = _CENTRAL.pack(
        b"PK\1\2",
        0,
        entry.version_needed,
        entry.flags,
        entry.method,
        0,
        0,
        *_sizes(entry),
        len(name),
        len(entry.extra),
        len(entry.comment),
        entry.disk,
        0,
        entry.attributes,
        offset,
    )
    return header + name + entry.extra + entry.comment
