"""Files damaged in every way, and repaired: what the new file holds is what was saved, or is not there."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import collections
import io
import random
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tests import archives
from tests.faults import damage
from tests.faults.harness import Tally
from tests.specimens import assert_same

import fastckpt
from fastckpt._repair.report import Outcome, RepairReport


def alike() -> Any:
    """Make tensors of one size, so that a record under a wrong name would load all the same."""
    return {f"layer.{i}.weight": torch.full((124,), float(i)) for i in range(14)}


def nested() -> Any:
    """Make lists, tuples and shared storages, where a lost tensor cannot be left out."""
    base = torch.arange(300.0)
    state = collections.OrderedDict(a=base[:100], b=base[100:], c=(torch.ones(5), "text", 3))
    moments = [torch.full((30,), float(i), dtype=torch.bfloat16) for i in range(4)]
    return {"state": state, "moments": moments, "step": 7, "empty": torch.empty(0)}


def archive_inside() -> Any:
    """Make a tensor that holds an archive whose records have the names of those around it."""
    inner = torch.frombuffer(bytearray(archives.torch_bytes(alike())), dtype=torch.uint8)
    return {"before": torch.ones(124), "inner": inner, **alike()}


def tiny() -> Any:
    """Make one tensor and one number."""
    return {"w": torch.arange(9), "n": 1}


def fastckpt_bytes(obj: Any, alignment: int = 64) -> bytes:
    file = io.BytesIO()
    fastckpt.save(obj, file, alignment=alignment)
    return file.getvalue()


def sorted_bytes(obj: Any) -> bytes:
    """Return a file as torch before 2.1 wrote it: keys in the order of text, and no hash."""
    found = archives.records(archives.torch_bytes(obj))
    names = sorted(name for name in found if name.startswith("data/"))
    entries = [(name, found[name]) for name in ("data.pkl", *names)]
    return without_hash(archives.write_archive(entries))


def without_hash(archive: bytes) -> bytes:
    """Cut the last record, the hash over all CRCs, out of a file."""
    # Padded names of one length: only the directory and the end records move.
    source = zipfile.ZipFile(io.BytesIO(archive))
    kept = [info for info in source.infolist() if not info.filename.endswith("serialization_id")]
    last = next(info for info in source.infolist() if info not in kept)
    directory = archive[source.start_dir :]
    entries = b""
    for _ in kept:
        start = directory.index(b"PK\x01\x02", len(entries))
        end = directory.index(b"PK", start + 4)
        entries += directory[start:end]
    offset = last.header_offset
    end64 = bytearray(directory[directory.index(b"PK\x06\x06") :])
    end64[24:40] = len(kept).to_bytes(8, "little") * 2
    end64[40:48] = len(entries).to_bytes(8, "little")
    end64[48:56] = offset.to_bytes(8, "little")
    end64[64:72] = (offset + len(entries)).to_bytes(8, "little")
    end = end64.index(b"PK\x05\x06")
    end64[end + 8 : end + 12] = len(kept).to_bytes(2, "little") * 2
    end64[end + 12 : end + 16] = len(entries).to_bytes(4, "little")
    end64[end + 16 : end + 20] = offset.to_bytes(4, "little")
    return archive[:offset] + entries + bytes(end64)


def zipped_bytes(obj: Any) -> bytes:
    """Return the file that Python's zipfile makes of the records: without descriptors and padding."""
    return archives.plain_zip(archives.records(archives.torch_bytes(obj)))


OBJECTS: dict[str, Callable[[], Any]] = {
    "weights": damage.small_weights,
    "optimizer": damage.small_optimizer,
    "alike": alike,
    "nested": nested,
    "archive inside": archive_inside,
    "tiny": tiny,
}
WRITERS: dict[str, Callable[[Any], bytes]] = {
    "torch": archives.torch_bytes,
    "fastckpt": fastckpt_bytes,
    "aligned to 4096": lambda obj: fastckpt_bytes(obj, 4096),
    "unaligned": lambda obj: fastckpt_bytes(obj, 1),
    "old torch": sorted_bytes,
    "zipfile": zipped_bytes,
}


# Ways to damage a file


def flip_bits(data: bytearray, rng: random.Random) -> str:
    where = sorted(rng.sample(range(len(data) * 8), rng.choice((1, 1, 2, 8))))
    for position in where:
        data[position // 8] ^= 1 << position % 8
    return f"flip bits {where}"


def change_header_name(data: bytearray, rng: random.Random) -> str:
    """Change a digit in the name of a local header, which no checksum covers."""
    return _change_names(data, rng, b"PK\x03\x04", 30, 1)


def change_directory_names(data: bytearray, rng: random.Random) -> str:
    """Change digits in the names of the directory, which no checksum covers."""
    return _change_names(data, rng, b"PK\x01\x02", 46, 3)


def _change_names(
    data: bytearray, rng: random.Random, signature: bytes, offset: int, count: int
) -> str:
    found = []
    for at in range(len(data) - offset):
        if data[at : at + 4] == signature:
            name = data.find(b"/data/", at + offset, at + offset + 40)
            if 0 <= name < len(data) - 7 and chr(data[name + 6]).isdigit():
                found.append(name + 6)
    changed = []
    for at in rng.sample(found, min(len(found), count)):
        last = chr(data[at + 1]).isdigit() and rng.random() < 0.5
        place = at + 1 if last else at
        data[place] = ord("0") + (data[place] - ord("0") ^ rng.choice((1, 2, 4, 8))) % 10
        changed.append(place)
    return f"change digits at {changed}"


def overwrite(data: bytearray, rng: random.Random) -> str:
    nbytes = rng.choice((1, 4, 16, 64, 300))
    at = rng.randrange(len(data))
    patch = rng.choice((rng.randbytes(nbytes), bytes(nbytes)))[: len(data) - at]
    data[at : at + len(patch)] = patch
    return f"overwrite {len(patch)} bytes at {at}"


def lose_sector(data: bytearray, rng: random.Random) -> str:
    size = rng.choice((64, 512, 4096))
    at = rng.randrange(0, len(data), size)
    data[at : at + size] = bytes(len(data[at : at + size]))
    return f"zero the sector of {size} at {at}"


def misdirect_sector(data: bytearray, rng: random.Random) -> str:
    size = rng.choice((64, 512, 512, 4096))
    first, second = (rng.randrange(0, max(len(data) - size, 1), size) for _ in range(2))
    one, other = bytes(data[first : first + size]), bytes(data[second : second + size])
    if len(one) != len(other):
        return "nothing"
    data[second : second + size] = one
    if rng.random() < 0.5:
        data[first : first + size] = other
        return f"swap the sectors of {size} at {first} and {second}"
    return f"write the sector of {size} at {first} to {second} too"


def truncate(data: bytearray, rng: random.Random) -> str:
    nbytes = rng.randrange(len(data))
    del data[nbytes:]
    return f"truncate to {nbytes}"


def zero_directory(data: bytearray, rng: random.Random) -> str:
    at = data.rfind(b"PK\x06\x06")
    first = data.find(b"PK\x01\x02", data.rfind(b"PK\x03\x04"))
    if first < 0:
        return "nothing"
    end = rng.choice((len(data), max(at, first)))
    data[first:end] = bytes(end - first)
    return f"zero the directory at {first}"


def zero_headers(data: bytearray, rng: random.Random) -> str:
    """Destroy the signatures of some local headers or descriptors."""
    signature = rng.choice((b"PK\x03\x04", b"PK\x07\x08", b"PK\x01\x02"))
    places = [at for at in range(len(data)) if data[at : at + 4] == signature]
    chosen = rng.sample(places, min(len(places), rng.choice((1, 2, 100))))
    for at in chosen:
        data[at : at + 4] = bytes(4)
    return f"zero {signature!r} at {sorted(chosen)}"


def shift(data: bytearray, rng: random.Random) -> str:
    at, nbytes = rng.randrange(len(data)), rng.choice((1, 64, 512))
    if rng.random() < 0.5:
        data[at:at] = rng.randbytes(nbytes)
        return f"insert {nbytes} bytes at {at}"
    del data[at : at + nbytes]
    return f"cut out {nbytes} bytes at {at}"


DAMAGES = (
    flip_bits,
    overwrite,
    lose_sector,
    truncate,
    zero_directory,
    zero_headers,
)


def damage_somehow(data: bytearray, rng: random.Random) -> Iterator[str]:
    """Damage a file in up to four ways.

    Left out is what nothing in the file could tell: several names changed so that they fit together,
    and a payload behind the header of another where the directory is lost too.
    """
    if rng.random() < 0.3:
        yield rng.choice((misdirect_sector, change_directory_names, shift))(data, rng)
        return
    if rng.random() < 0.2:
        yield change_header_name(data, rng)
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        if data:
            yield rng.choice(DAMAGES)(data, rng)


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Damage files in up to four ways each, repair them, and compare with what was saved."""
    tally = Tally()
    rng = random.Random(seed)
    files: dict[tuple[str, str], tuple[Any, bytes]] = {}
    for case in range(cases):
        kind, writer = rng.choice(list(OBJECTS)), rng.choice(list(WRITERS))
        if (kind, writer) not in files:
            obj = OBJECTS[kind]()
            files[kind, writer] = obj, WRITERS[writer](obj)
        obj, good = files[kind, writer]
        data = bytearray(good)
        ways = "; ".join(damage_somehow(data, rng))
        what = f"case {case} of seed {seed}: {kind} by {writer}: {ways}"
        try:
            report = repaired(bytes(data), obj, good, directory)
        except Exception as error:
            tally.fail(f"{what}: {type(error).__name__}: {error}"[:1000])
        else:
            tally.count(report.outcome.value)
    return tally


def repaired(data: bytes, obj: Any, good: bytes, directory: Path) -> RepairReport:
    """Repair the bytes of a file and compare the new one with what was saved."""
    path, to = directory / "damaged.pt", directory / "new.pt"
    path.write_bytes(data)
    to.unlink(missing_ok=True)
    report = fastckpt.repair(path, to=to)
    assert path.read_bytes() == data
    if report.outcome is Outcome.NOTHING:
        assert not to.exists()
        return report
    assert fastckpt.verify(to).status.value == "good"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = torch.load(to, weights_only=True)
    if report.outcome is Outcome.RECORDS:
        compare_records(new, archives.records(good))
    else:
        missing = sorted(compare(new, obj, ""))
        listed = {tensor.name for tensor in report.tensors}
        assert set(missing) <= listed, (missing, listed)
        assert (report.outcome is Outcome.WHOLE) == (not listed)
        if report.outcome is Outcome.WHOLE:
            assert_same(new, obj)
    return report


def compare_records(new: dict[str, torch.Tensor], saved: dict[str, bytes]) -> None:
    for name, tensor in new.items():
        assert bytes(tensor.numpy()) == saved[name], name


def compare(new: Any, old: Any, name: str) -> Iterator[str]:
    """Compare what was salvaged with what was saved; yield the names of tensors that are missing."""
    inside = f"{name}." if name else ""
    if isinstance(old, torch.Tensor) and new is None:
        yield name
    elif isinstance(old, dict):
        assert type(new) is type(old)
        assert [key for key in old if key in new] == list(new)
        for key, value in old.items():
            if key in new:
                yield from compare(new[key], value, f"{inside}{key}")
            else:
                assert isinstance(value, torch.Tensor), f"{inside}{key}"
                yield f"{inside}{key}"
    elif isinstance(old, (list, tuple)):
        assert type(new) is type(old)
        assert len(new) == len(old)
        for index, (one, other) in enumerate(zip(new, old, strict=True)):
            yield from compare(one, other, f"{inside}{index}")
    else:
        assert_same(new, old)
