"""Zip structures made to mislead: refused by name, at once, and without much memory."""

from __future__ import annotations

import io
import pickle
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.archives import records, torch_bytes
from tests.faults.forgery import DEFLATED, Entry, Forged
from tests.specimens import assert_same

import fastckpt

OBJECT = {"w": torch.arange(100.0), "v": torch.ones(3)}
# A refusal takes a fraction of this; a machine with other work may be slow.
_MAX_SECONDS = 2.0
_MAX_GROWTH_KIB = 64 << 10
_ZIP64 = struct.Struct("<HHQQ")
_MAX64 = 2**64 - 1


def honest() -> list[Entry]:
    return [Entry(f"archive/{name}", data) for name, data in records(torch_bytes(OBJECT)).items()]


def index_of(entries: list[Entry], name: str) -> int:
    return next(i for i, entry in enumerate(entries) if entry.name == f"archive/{name}")


def lie(record: str, **claims: object) -> bytes:
    """Let the headers of one record say something else."""
    entries = honest()
    index = index_of(entries, record)
    entries[index] = replace(entries[index], **claims)  # type: ignore[arg-type]
    return Forged(entries).bytes()


def added(*entries: Entry) -> bytes:
    return Forged([*honest(), *entries]).bytes()


def renamed(name: str) -> bytes:
    return lie("data/0", name=name)


def ended(**claims: int) -> bytes:
    return Forged(honest(), end=claims).bytes()


def overlapping() -> bytes:
    """Let data/1 lie inside data/0."""
    entries = honest()
    first, second = index_of(entries, "data/0"), index_of(entries, "data/1")
    inner = Forged([replace(entries[second])]).bytes()
    entries[first] = replace(entries[first], data=inner[: inner.index(b"PK\1\2")].ljust(400, b"\0"))
    start = Forged(entries).bytes().index(inner[:60])
    entries[second] = replace(entries[second], offset=start, alone=False)
    return Forged(entries).bytes()


def bomb() -> bytes:
    return lie("data/0", data=bytes(200 << 20), method=DEFLATED)


def quoted_zip64(nbytes: int, compressed_nbytes: int) -> bytes:
    extra = _ZIP64.pack(1, 16, nbytes, compressed_nbytes)
    return lie("data/0", nbytes=0xFFFFFFFF, compressed_nbytes=0xFFFFFFFF, extra=extra)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "too_long": lambda: lie("data/0", nbytes=4000, compressed_nbytes=4000),
    "too_short": lambda: lie("data/0", nbytes=300, compressed_nbytes=300),
    "longer_than_the_file": lambda: lie("data/0", nbytes=1 << 31, compressed_nbytes=1 << 31),
    "two_sizes": lambda: lie("data/0", nbytes=100),
    "size_2_63": lambda: quoted_zip64(1 << 63, 1 << 63),
    "size_2_64": lambda: quoted_zip64(_MAX64, _MAX64),
    "size_that_wraps": lambda: quoted_zip64(_MAX64 - 99, _MAX64 - 99),
    "zip64_cut_off": lambda: lie("data/0", nbytes=0xFFFFFFFF, extra=struct.pack("<HHI", 1, 16, 7)),
    "deflated_data": lambda: lie("data/0", method=DEFLATED),
    "deflated_pickle": lambda: lie("data.pkl", method=DEFLATED),
    "deflate_bomb": bomb,
    "unknown_method": lambda: lie("data/0", method=93),
    "method_in_local_header_only": lambda: lie("data/0", local_method=DEFLATED),
    "encrypted": lambda: lie("data/0", flags=0x0809),
    "encrypted_pickle": lambda: lie("data.pkl", flags=0x0809),
    "strongly_encrypted": lambda: lie("data/0", flags=0x0848),
    "other_name_in_local_header": lambda: lie("data/0", local_name="archive/data/9"),
    "offset_elsewhere": lambda: lie("data/0", offset=5),
    "offset_of_another_record": lambda: lie("data/0", offset=0),
    "offset_past_the_end": lambda: lie("data/0", offset=0x7FFFFFFF),
    "overlap": overlapping,
    "duplicate": lambda: added(Entry("archive/data/0", bytes(400))),
    "duplicate_pickle": lambda: added(Entry("archive/data.pkl", pickle.dumps({}, 2))),
    "twin_but_for_case": lambda: added(Entry("archive/DATA.PKL", pickle.dumps({}, 2))),
    "twin_data": lambda: added(Entry("archive/Data/0", bytes(400))),
    "second_root": lambda: added(Entry("other/data/0", bytes(400))),
    "no_root": lambda: renamed("data"),
    "absolute_name": lambda: renamed("/etc/passwd"),
    "climbing_name": lambda: renamed("../../etc/passwd"),
    "empty_name": lambda: renamed(""),
    "name_with_nul": lambda: renamed("archive/data/0\0.png"),
    "no_pickle": lambda: Forged([e for e in honest() if "data.pkl" not in e.name]).bytes(),
    "no_records": lambda: Forged([]).bytes(),
    "fewer_counted": lambda: ended(count=2),
    "more_counted": lambda: ended(count=60_000),
    "directory_past_the_end": lambda: ended(offset=0x7FFFFFFF),
    "directory_too_long": lambda: ended(nbytes=0x7FFFFFFF),
    "directory_elsewhere": lambda: ended(offset=0),
    "wrong_checksum": lambda: lie("data/0", crc32=1),
    "junk_in_front": lambda: Forged(honest(), prefix=b"MZ" + bytes(510)).bytes(),
}


def test_the_forger_can_be_honest() -> None:
    archive = Forged(honest()).bytes()
    assert_same(torch.load(io.BytesIO(archive)), OBJECT)
    assert_same(fastckpt.load(io.BytesIO(archive)), OBJECT)


def test_a_comment_that_is_not_there_misleads_nobody() -> None:
    archive = Forged(honest(), end={"comment_nbytes": 1000}).bytes()
    assert_same(fastckpt.load(io.BytesIO(archive)), OBJECT)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_refused_by_name_at_once(name: str, mmap: bool, tmp_path: Path) -> None:
    path = tmp_path / "hostile.pt"
    path.write_bytes(HOSTILE[name]())
    reset_peak()
    before, began = peak_kib(), time.monotonic()
    with pytest.raises((fastckpt.FormatError, fastckpt.ChecksumError)) as refusal:
        fastckpt.load(path, mmap=mmap)
    assert time.monotonic() - began < _MAX_SECONDS
    assert peak_kib() - before < _MAX_GROWTH_KIB
    assert str(path) in str(refusal.value)
    assert refusal.value.path == str(path)


@pytest.mark.parametrize("name", HOSTILE)
def test_reported_and_not_raised(name: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.pt"
    path.write_bytes(HOSTILE[name]())
    report = fastckpt.verify(path)
    assert report.exit_code == 1
    assert report.damages


@pytest.mark.parametrize("name", HOSTILE)
def test_unchecked_loads_refuse_the_structure_too(name: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.pt"
    path.write_bytes(HOSTILE[name]())
    if name == "wrong_checksum":
        assert_same(fastckpt.load(path, verify=False), OBJECT)
        return
    for mmap in (False, True):
        with pytest.raises(fastckpt.FormatError):
            fastckpt.load(path, verify=False, mmap=mmap)


def test_sparse_files_of_any_size_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "huge.pt"
    with path.open("wb") as file:
        file.write(torch_bytes(OBJECT))
        file.truncate(1 << 43)
    reset_peak()
    before, began = peak_kib(), time.monotonic()
    with pytest.raises(fastckpt.FormatError, match="huge"):
        fastckpt.load(path)
    assert not fastckpt.verify(path, quick=True).ok
    assert time.monotonic() - began < _MAX_SECONDS
    assert peak_kib() - before < _MAX_GROWTH_KIB


def reset_peak() -> None:
    """Let the peak of resident memory begin anew: proc(5), clear_refs."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_kib() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise AssertionError("no VmHWM")
