"""Changes to bytes and to archives, drawn from a seeded generator: what a fuzzer does, in Python.

An archive's payloads are behind checksums, so most changes would be refused before anything looks at
them. Here a record can be changed and the archive written around it again, with every checksum right.
"""

from __future__ import annotations

import functools
import io
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from tests.archives import write_archive
from tests.faults.forgery import Entry, Forged

FUZZ = Path(__file__).parents[2] / "rust/fuzz"
# Larger ones are slow to change, and say nothing new.
_MAX_BASE_NBYTES = 16 << 10
# The writer of torch adds these two itself.
_OF_THE_WRITER = ("version", ".data/serialization_id")
_FLAG_UTF8 = 0x0800
_NUMBERS = [0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, -1]

Change = Callable[[Random, bytearray, list[bytes]], None]


@dataclass(frozen=True)
class Base:
    """An archive to change.

    Attributes:
        name: Its file.
        data: Its bytes.
        records: Names with the root folder, and payloads; empty where it is too hostile to be read.
    """

    name: str
    data: bytes
    records: tuple[tuple[str, bytes], ...]


@functools.cache
def dictionary() -> list[bytes]:
    """Return the words that the fuzz targets are given."""
    text = (FUZZ / "dictionaries/checkpoint.dict").read_text()
    quoted = re.findall(r'^\w+="(.*)"$', text, re.MULTILINE)
    return [word.encode().decode("unicode_escape").encode("latin-1") for word in quoted]


@functools.cache
def corpus(target: str) -> dict[str, bytes]:
    """Return the files that a fuzz target begins from, by their names."""
    with zipfile.ZipFile(FUZZ / "corpus" / f"{target}.zip") as packed:
        return {name: packed.read(name) for name in sorted(packed.namelist())}


@functools.cache
def archives() -> list[Base]:
    """Return the zip archives among the committed corpora of the fuzz targets."""
    files = [*corpus("archive").items(), *corpus("tensors").items()]
    return [
        Base(name, data, _records(data))
        for name, data in files
        if len(data) <= _MAX_BASE_NBYTES and data.startswith(b"PK\3\4")
    ]


def choose(random: Random, *, has_records: bool) -> Base:
    """Choose an archive to change: one that was made to mislead, or as often an honest one."""
    bases = [base for base in archives() if base.records or not has_records]
    if random.random() < 0.5:
        bases = [base for base in bases if not base.name.startswith(("hostile-", "malicious-"))]
    return random.choice(bases)


def _records(data: bytes) -> tuple[tuple[str, bytes], ...]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return tuple((info.filename, archive.read(info)) for info in archive.infolist())
    except Exception:
        return ()


def change_bytes(random: Random, data: bytes, words: list[bytes]) -> bytes:
    """Make one to four small changes."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        random.choice(_CHANGES)(random, changed, words)
    return bytes(changed)


def _flip(random: Random, data: bytearray, words: list[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _set(random: Random, data: bytearray, words: list[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] = random.randrange(256)


def _number(random: Random, data: bytearray, words: list[bytes]) -> None:
    nbytes = random.choice([1, 2, 4, 8])
    number = random.choice(_NUMBERS) % 2 ** (8 * nbytes)
    at = random.randrange(len(data) + 1)
    data[at : at + nbytes] = number.to_bytes(nbytes, "little")


def _insert(random: Random, data: bytearray, words: list[bytes]) -> None:
    at = random.randrange(len(data) + 1)
    data[at:at] = random.choice(words)


def _overwrite(random: Random, data: bytearray, words: list[bytes]) -> None:
    word, at = random.choice(words), random.randrange(len(data) + 1)
    data[at : at + len(word)] = word


def _slice(random: Random, data: bytearray) -> slice:
    start = random.randrange(len(data) + 1)
    return slice(start, start + random.choice([1, 2, 4, 16, 64]))


def _delete(random: Random, data: bytearray, words: list[bytes]) -> None:
    del data[_slice(random, data)]


def _repeat(random: Random, data: bytearray, words: list[bytes]) -> None:
    piece, at = data[_slice(random, data)], random.randrange(len(data) + 1)
    data[at:at] = piece


def _move(random: Random, data: bytearray, words: list[bytes]) -> None:
    where = _slice(random, data)
    piece = data[where]
    del data[where]
    at = random.randrange(len(data) + 1)
    data[at:at] = piece


def _cut(random: Random, data: bytearray, words: list[bytes]) -> None:
    if random.randrange(4) == 0:
        del data[random.randrange(len(data) + 1) :]


_CHANGES: list[Change] = [
    _flip, _set, _number, _insert, _overwrite, _delete, _repeat, _move, _cut,
]  # fmt: skip


def change_value(random: Random, document: Any, values: Sequence[Any]) -> None:
    """Change something somewhere inside a document that is a dict or a list."""
    keys = list(document) if isinstance(document, dict) else list(range(len(document)))
    if not keys:
        return
    key = random.choice(keys)
    inner = document[key]
    if isinstance(inner, (dict, list)) and inner and random.random() < 0.7:
        change_value(random, inner, values)
    elif random.random() < 0.2:
        del document[key]
    elif type(inner) is int and random.random() < 0.5:
        document[key] = inner + random.choice([-1, 1, 10**6])
    elif isinstance(inner, str) and inner and random.random() < 0.5:
        at = random.randrange(len(inner))
        document[key] = inner[:at] + random.choice("0f9z\u0661/\0\n") + inner[at + 1 :]
    else:
        document[key] = random.choice(values)


def damaged(random: Random, base: Base) -> bytes:
    """Change any bytes, and leave the checksums as they are."""
    if random.random() < 0.5:
        return change_bytes(random, base.data, dictionary())
    # In place, or else most files are refused for the offsets that no longer fit.
    changed = bytearray(base.data)
    for _ in range(random.randint(1, 2)):
        random.choice([_flip, _set])(random, changed, [])
    return bytes(changed)


def rewritten(random: Random, base: Base) -> bytes:
    """Change a record, and let torch's writer write the archive around it."""
    entries = {}
    for name, data in _with_change(random, base):
        short = name.split("/", 1)[-1]
        if short not in _OF_THE_WRITER and "\0" not in short and short:
            entries[short] = data
    return write_archive(entries.items())


def entry_of(name: str, data: bytes) -> Entry:
    """Return an honest entry; as torch has it, an empty record announces no descriptor."""
    return Entry(name, data) if data else Entry(name, data, flags=_FLAG_UTF8)


def zipped(random: Random, base: Base) -> bytes:
    """Change a record, and write the archive around it as other tools do."""
    return Forged([entry_of(*record) for record in _with_change(random, base)]).bytes()


def forged(random: Random, base: Base) -> bytes:
    """Let headers say something else, of records that may be changed too."""
    changed = _with_change(random, base) if random.random() < 0.5 else list(base.records)
    entries = [entry_of(*record) for record in changed]
    for _ in range(random.randint(1, 2)):
        index = random.randrange(len(entries))
        entries[index] = replace(entries[index], **_lie(random, entries[index]))  # type: ignore[arg-type]
    end = {}
    if random.randrange(8) == 0:
        end = {random.choice(["count", "nbytes", "offset"]): random.choice([0, 1, 2**16 - 1])}
    return Forged(entries, end=end).bytes()


def _lie(random: Random, entry: Entry) -> dict[str, object]:
    near = max(0, len(entry.data) + random.choice([-64, -1, 0, 1, 16, 64]))
    name = str(entry.name)
    folder, _, short = name.partition("/")
    # Where all sizes are in a zip64 field, the field may be as it should be.
    quoted = struct.pack("<HHQQ", 1, 16, random.choice([near, 2**63]), near)
    return random.choice(
        [
            {"nbytes": near, "compressed_nbytes": near},
            {"nbytes": near},
            {"nbytes": 2**32 - 1, "compressed_nbytes": 2**32 - 1, "extra": quoted},
            {"offset": random.choice([0, near])},
            {"crc32": 0},
            {"flags": 1 << random.randrange(16)},
            {"attributes": 1 << random.randrange(32)},
            {"version_needed": random.randrange(100)},
            {"disk": 1},
            {"method": random.choice([1, 8])},
            {"local_method": 8},
            {"local_name": name + "x"},
            {"name": f"{folder}/{short.upper()}", "local_name": f"{folder}/{short.upper()}"},
            {"extra": random.choice([b"", bytes(4), b"FB\0\0", b"\1\0"])},
        ]
    )


def _with_change(random: Random, base: Base) -> list[tuple[str, bytes]]:
    """Return the records with one of them changed, which is data.pkl half of the time."""
    entries = list(base.records)
    pickles = [i for i, (name, _) in enumerate(entries) if name.endswith("/data.pkl")]
    index = random.choice(pickles) if pickles and random.random() < 0.5 else None
    index = random.randrange(len(entries)) if index is None else index
    name, data = entries[index]
    folder = name.split("/", 1)[0]
    what = random.randrange(16)
    if what == 0 and len(entries) > 1:
        del entries[index]
    elif what == 1:
        entries.append((f"{folder}/data/{random.randrange(9)}", data))
    elif what == 2:
        other = random.randrange(len(entries))
        entries[index], entries[other] = (name, entries[other][1]), (entries[other][0], data)
    else:
        entries[index] = name, change_bytes(random, data, dictionary())
    return entries


WAYS: list[Callable[[Random, Base], bytes]] = [damaged, rewritten, zipped, forged]
