"""Zip structures made to mislead, to exhaust, or to be read in two ways; and some that only look so."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace

import torch
from tests.archives import records, torch_bytes, torchscript_bytes
from tests.faults.forgery import DEFLATED, Entry, Forged

OBJECT = {"w": torch.arange(100.0), "v": torch.ones(3)}
_ZIP64 = struct.Struct("<HHQQ")
_MAX64 = 2**64 - 1
_EVIL = pickle.dumps({}, 2)
_END_NBYTES = 22


def honest() -> list[Entry]:
    """Return the records of a file of torch.save."""
    return [Entry(f"archive/{name}", data) for name, data in records(torch_bytes(OBJECT)).items()]


def index_of(entries: list[Entry], name: str) -> int:
    """Return where a record stands."""
    return next(i for i, entry in enumerate(entries) if entry.name == f"archive/{name}")


def lie(record: str, **claims: object) -> bytes:
    """Let the headers of one record say something else."""
    entries = honest()
    index = index_of(entries, record)
    entries[index] = replace(entries[index], **claims)  # type: ignore[arg-type]
    return Forged(entries).bytes()


def added(*entries: Entry, **claims: object) -> bytes:
    """Add records to the honest ones."""
    return Forged([*honest(), *entries], **claims).bytes()  # type: ignore[arg-type]


def renamed(name: str | bytes) -> bytes:
    """Let data/0 have another name."""
    return lie("data/0", name=name)


def ended(**claims: int) -> bytes:
    """Let the end record say something else."""
    return Forged(honest(), end=claims).bytes()


def ended64(**claims: int) -> bytes:
    """Let the zip64 end records say something else."""
    return Forged(honest(), end64=claims).bytes()


def overlapping() -> bytes:
    """Let data/1 lie inside data/0."""
    entries = honest()
    first, second = index_of(entries, "data/0"), index_of(entries, "data/1")
    inner = Forged([replace(entries[second])]).bytes()
    entries[first] = replace(entries[first], data=inner[: inner.index(b"PK\1\2")].ljust(400, b"\0"))
    start = Forged(entries).bytes().index(inner[:60])
    entries[second] = replace(entries[second], offset=start, alone=False)
    return Forged(entries).bytes()


def two_names_of_one_record() -> bytes:
    """List one payload twice: what a bomb of overlapping records is made of."""
    entries = honest()
    first = entries[index_of(entries, "data/0")]
    start = Forged(entries).bytes().index(b"archive/data/0") - 30
    twin = replace(first, name="archive/data/0", alone=False, offset=start)
    return Forged(
        [*entries, *(replace(twin, name=f"archive/data/{n}") for n in range(2, 50))]
    ).bytes()


def record_over_the_directory() -> bytes:
    """Let the last record reach into the directory."""
    entries = honest()
    size = len(entries[-1].data) + 60
    entries[-1] = replace(entries[-1], nbytes=size, compressed_nbytes=size)
    return Forged(entries).bytes()


def bomb() -> bytes:
    """Deflate 200 MB of zeros to 200 KB."""
    return lie("data/0", data=bytes(200 << 20), method=DEFLATED)


def nested_archive() -> bytes:
    """Put a whole archive into the comment: whoever searches from the end finds that one."""
    inner = torch_bytes({"w": torch.zeros(100)})
    return Forged(honest(), comment=inner).bytes()


def archive_in_a_gap() -> bytes:
    """Put a whole archive between the records and the directory."""
    return Forged(honest(), gap=torch_bytes({"w": torch.zeros(100)})).bytes()


def second_directory() -> bytes:
    """Put another directory in front of the end: found by its size, where the other is by its offset."""
    entries = honest()
    other = Forged([replace(entry, crc32=0) for entry in entries]).bytes()
    start = other.index(b"PK\1\2")
    return Forged(entries, after_directory=other[start:-_END_NBYTES]).bytes()


def many_entries(count: int) -> bytes:
    """Make a directory of many empty records, of which the end record counts 16 bits."""
    extra = [Entry(f"archive/data/{n}", flags=0) for n in range(2, count)]
    return Forged([*honest(), *extra], end={"count": 0xFFFF}).bytes()


def quoted_zip64(nbytes: int, compressed_nbytes: int) -> bytes:
    """Let the zip64 field of data/0 say its sizes."""
    extra = _ZIP64.pack(1, 16, nbytes, compressed_nbytes)
    return lie("data/0", nbytes=0xFFFFFFFF, compressed_nbytes=0xFFFFFFFF, extra=extra)


def unicode_path(name: str, other: str) -> bytes:
    """Give a record a second name in the Info-ZIP field that some readers prefer (0x7075)."""
    data = struct.pack("<BI", 1, zlib.crc32(name.encode())) + other.encode()
    return struct.pack("<HH", 0x7075, len(data)) + data


def zipped(method: int) -> bytes:
    """Write the records by Python's zipfile."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in records(torch_bytes(OBJECT)).items():
            archive.writestr(f"archive/{name}", data)
    return file.getvalue()


HOSTILE: dict[str, Callable[[], bytes]] = {
    # Sizes.
    "too_long": lambda: lie("data/0", nbytes=4000, compressed_nbytes=4000),
    "too_short": lambda: lie("data/0", nbytes=300, compressed_nbytes=300),
    "longer_than_the_file": lambda: lie("data/0", nbytes=1 << 31, compressed_nbytes=1 << 31),
    "pickle_longer_than_the_file": lambda: lie(
        "data.pkl", nbytes=1 << 31, compressed_nbytes=1 << 31
    ),
    "two_sizes": lambda: lie("data/0", nbytes=100),
    "two_sizes_the_other_way": lambda: lie("data/0", compressed_nbytes=100),
    "size_2_63": lambda: quoted_zip64(1 << 63, 1 << 63),
    "size_2_64": lambda: quoted_zip64(_MAX64, _MAX64),
    "size_that_wraps": lambda: quoted_zip64(_MAX64 - 99, _MAX64 - 99),
    "zip64_cut_off": lambda: lie("data/0", nbytes=0xFFFFFFFF, extra=struct.pack("<HHI", 1, 16, 7)),
    "zip64_missing": lambda: lie("data/0", nbytes=0xFFFFFFFF, compressed_nbytes=0xFFFFFFFF),
    "zip64_twice": lambda: lie(
        "data/0",
        nbytes=0xFFFFFFFF,
        compressed_nbytes=0xFFFFFFFF,
        extra=_ZIP64.pack(1, 16, 400, 400) + _ZIP64.pack(1, 16, 12, 12),
    ),
    "zip64_offset_2_63": lambda: lie(
        "data/0", offset=0xFFFFFFFF, extra=struct.pack("<HHQ", 1, 8, 1 << 63)
    ),
    "extra_field_longer_than_it_is": lambda: lie("data/0", extra=struct.pack("<HH", 7, 500)),
    "extra_field_of_three_bytes": lambda: lie("data/0", extra=b"abc"),
    # Methods and flags.
    "deflated_data": lambda: lie("data/0", method=DEFLATED),
    "deflated_pickle": lambda: lie("data.pkl", method=DEFLATED),
    "deflate_bomb": bomb,
    "deflated_by_zipfile": lambda: zipped(zipfile.ZIP_DEFLATED),
    "bzip2": lambda: zipped(zipfile.ZIP_BZIP2),
    "lzma": lambda: zipped(zipfile.ZIP_LZMA),
    "unknown_method": lambda: lie("data/0", method=93),
    "method_in_local_header_only": lambda: lie("data/0", local_method=DEFLATED),
    "method_in_directory_only": lambda: lie("data/0", method=DEFLATED, local_method=0),
    "encrypted": lambda: lie("data/0", flags=0x0809),
    "encrypted_pickle": lambda: lie("data.pkl", flags=0x0809),
    "encrypted_in_local_header_only": lambda: lie("data.pkl", local_flags=0x0809),
    "encrypted_in_directory_only": lambda: lie("data.pkl", flags=0x0809, local_flags=0x0808),
    "strongly_encrypted": lambda: lie("data/0", flags=0x0848),
    "patched_data": lambda: lie("data/0", flags=0x0828),
    "masked_headers": lambda: lie("data/0", flags=0x2808),
    "version_of_the_future": lambda: lie("data/0", version_needed=255),
    "directory_attribute": lambda: lie("data/0", attributes=0x10),
    # Local headers.
    "other_name_in_local_header": lambda: lie("data/0", local_name="archive/data/9"),
    "other_pickle_in_local_header": lambda: lie("data.pkl", local_name="archive/data.pk1"),
    "shorter_name_in_local_header": lambda: lie("data/0", local_name="archive/d"),
    "other_size_in_local_header": lambda: lie(
        "data/0", local_nbytes=12, local_compressed_nbytes=12
    ),
    "other_crc_in_local_header": lambda: lie("data/0", local_crc32=7),
    "no_local_header": lambda: lie("data/0", local_signature=b"PK\3\5"),
    "descriptor_as_local_header": lambda: lie("data/0", local_signature=b"PK\7\10"),
    "bad_extra_in_local_header": lambda: lie("data/0", local_extra=struct.pack("<HH", 1, 500)),
    "offset_elsewhere": lambda: lie("data/0", offset=5),
    "offset_of_another_record": lambda: lie("data/0", offset=0),
    "offset_past_the_end": lambda: lie("data/0", offset=0x7FFFFFFF),
    "overlap": overlapping,
    "record_over_the_directory": record_over_the_directory,
    "many_names_of_one_record": two_names_of_one_record,
    "no_descriptor": lambda: lie("data/0", descriptor=b""),
    # Names.
    "duplicate": lambda: added(Entry("archive/data/0", bytes(400))),
    "duplicate_pickle": lambda: added(Entry("archive/data.pkl", _EVIL)),
    "duplicate_pickle_first": lambda: Forged([Entry("archive/data.pkl", _EVIL), *honest()]).bytes(),
    "twin_but_for_case": lambda: added(Entry("archive/DATA.PKL", _EVIL)),
    "twin_data": lambda: added(Entry("archive/Data/0", bytes(400))),
    "second_root": lambda: added(Entry("other/data/0", bytes(400))),
    "second_pickle_in_another_root": lambda: added(Entry("other/data.pkl", _EVIL)),
    "root_in_another_case": lambda: added(Entry("Archive/data/9", bytes(4))),
    "no_root": lambda: renamed("data"),
    "root_alone": lambda: added(Entry("archive")),
    "absolute_name": lambda: renamed("/etc/passwd"),
    "climbing_name": lambda: renamed("../../etc/passwd"),
    "backslashes": lambda: renamed("archive\\data\\0"),
    "drive_letter": lambda: renamed("C:/data/0"),
    "empty_name": lambda: renamed(""),
    "name_with_nul": lambda: renamed("archive/data/0\0.png"),
    "pickle_with_nul": lambda: added(Entry("archive/data.pkl\0x", _EVIL)),
    "name_of_64_kb": lambda: renamed("archive/" + "a" * 65_000),
    "name_not_utf8": lambda: renamed(b"archive/data/\xff\xfe"),
    "name_in_code_page_437": lambda: lie("data/0", name=b"archive/data/\x81", flags=0x0008),
    "root_of_64_kb": lambda: Forged([Entry("a" * 60_000 + "/data.pkl", _EVIL)]).bytes(),
    "other_name_in_an_extra_field": lambda: lie(
        "data/0", extra=unicode_path("archive/data/0", "archive/data/1")
    ),
    "other_pickle_in_an_extra_field": lambda: Forged(
        [
            *honest(),
            Entry(
                "archive/notes.txt",
                _EVIL,
                extra=unicode_path("archive/notes.txt", "archive/data.pkl"),
            ),
        ]
    ).bytes(),
    "other_name_in_an_extra_field_of_the_local_header": lambda: lie(
        "data/0", local_extra=unicode_path("archive/data/0", "archive/data/1")
    ),
    "no_pickle": lambda: Forged([e for e in honest() if "data.pkl" not in str(e.name)]).bytes(),
    "no_version": lambda: Forged([e for e in honest() if "version" not in str(e.name)]).bytes(),
    "only_a_pickle": lambda: Forged([Entry("archive/data.pkl", _EVIL)]).bytes(),
    "no_records": lambda: Forged([]).bytes(),
    # The end records.
    "fewer_counted": lambda: ended(count=2),
    "more_counted": lambda: ended(count=60_000),
    "other_count_on_this_disk": lambda: ended(disk_count=1),
    "none_on_this_disk": lambda: ended(disk_count=0),
    "second_disk": lambda: ended(disk=1),
    "directory_on_another_disk": lambda: ended(directory_disk=1),
    "record_on_another_disk": lambda: lie("data/0", disk=1),
    "record_on_the_last_disk": lambda: lie("data/0", disk=0xFFFF),
    "directory_past_the_end": lambda: ended(offset=0x7FFFFFFF),
    "directory_too_long": lambda: ended(nbytes=0x7FFFFFFF),
    "directory_too_short": lambda: ended(nbytes=46),
    "directory_of_nothing": lambda: ended(nbytes=0, count=0, disk_count=0),
    "directory_elsewhere": lambda: ended(offset=0),
    "counts_without_zip64": lambda: ended(count=0xFFFF, nbytes=0xFFFFFFFF, offset=0xFFFFFFFF),
    "zip64_counts_2_32": lambda: ended64(count=1 << 32),
    "zip64_counts_2_64": lambda: ended64(count=_MAX64, disk_count=_MAX64),
    "zip64_other_count_on_this_disk": lambda: ended64(disk_count=1),
    "zip64_directory_2_63": lambda: ended64(nbytes=1 << 63),
    "zip64_directory_that_wraps": lambda: ended64(offset=_MAX64 - 99),
    "zip64_directory_elsewhere": lambda: ended64(offset=0),
    "zip64_second_disk": lambda: ended64(disk=1),
    "zip64_directory_on_another_disk": lambda: ended64(directory_disk=1),
    "zip64_record_too_long": lambda: ended64(record_nbytes=1 << 40),
    "zip64_record_too_short": lambda: ended64(record_nbytes=0),
    "zip64_locator_elsewhere": lambda: ended64(locator_offset=0),
    "zip64_locator_past_the_end": lambda: ended64(locator_offset=1 << 62),
    "zip64_locator_on_another_disk": lambda: ended64(locator_disk=1),
    "zip64_many_disks": lambda: ended64(disks=7),
    "65_536_counted_as_65_535": lambda: many_entries(65_600),
    "second_directory": second_directory,
    "something_behind_the_directory": lambda: Forged(honest(), after_directory=b"x" * 64).bytes(),
    "archive_in_the_comment": nested_archive,
    "end_in_the_comment": lambda: Forged(honest(), comment=Forged([]).bytes()).bytes(),
    "end_in_the_comment_of_this_directory": lambda: Forged(
        honest(), comment=Forged(honest()).bytes()[-_END_NBYTES:]
    ).bytes(),
    # Around it all.
    "wrong_checksum": lambda: lie("data/0", crc32=1),
    "wrong_checksum_of_the_pickle": lambda: lie("data.pkl", crc32=1),
    "junk_in_front": lambda: Forged(honest(), prefix=b"MZ" + bytes(510)).bytes(),
    "script_in_front": lambda: Forged(honest(), prefix=b"#!/bin/sh\n").bytes(),
    "zip_in_front": lambda: torch_bytes({}) + Forged(honest()).bytes(),
    "pickle_in_front": lambda: _EVIL + Forged(honest()).bytes(),
    "safetensors_in_front": lambda: struct.pack("<Q", 2) + b"{}" + Forged(honest()).bytes(),
}
# Odd, but only one way to read them, and torch reads them so: they load, and are equal.
ODD: dict[str, Callable[[], bytes]] = {
    "as_forged": lambda: Forged(honest()).bytes(),
    "by_zipfile": lambda: zipped(zipfile.ZIP_STORED),
    "by_torch": lambda: torch_bytes(OBJECT),
    "zip64_end": ended64,
    "zip64_sizes": lambda: quoted_zip64(400, 400),
    "comment_that_is_not_there": lambda: ended(comment_nbytes=1000),
    "comment": lambda: Forged(honest(), comment=b"of a mirror").bytes(),
    "comments_of_records": lambda: lie("data/0", comment=b"weights"),
    "other_extra_fields": lambda: lie("data/0", extra=struct.pack("<HHI", 0x5455, 4, 7)),
    "other_order": lambda: Forged([*reversed(honest())]).bytes(),
    "records_that_nobody_uses": lambda: added(Entry("archive/notes.txt", b"hello")),
    "sizes_in_local_headers_too": lambda: lie(
        "data/0", local_nbytes=400, local_compressed_nbytes=400
    ),
    "records_without_descriptors": lambda: Forged(
        [
            replace(
                entry,
                flags=0,
                descriptor=b"",
                local_nbytes=len(entry.data),
                local_compressed_nbytes=len(entry.data),
                local_crc32=zlib.crc32(entry.data),
            )
            for entry in honest()
        ]
    ).bytes(),
    "name_outside_ascii": lambda: added(Entry("archive/dätä", b"x")),
    "name_like_a_path": lambda: added(Entry("archive/../../tmp/fastckpt-climbed", b"x")),
    "hole_between_records": lambda: Forged(
        [
            replace(e, descriptor=bytes(5000)) if e.name == "archive/byteorder" else e
            for e in honest()
        ]
    ).bytes(),
    "torchscript": torchscript_bytes,
}
