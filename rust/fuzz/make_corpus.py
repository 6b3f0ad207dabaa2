# ruff: noqa: INP001  (a script beside the targets, no package)
"""Make the committed corpora of the fuzz targets: real files and hostile ones, each named by what it is.

Run it from the top of the repository with a Python that has torch and the test group:

    python rust/fuzz/make_corpus.py

Files with other names (what fuzzing has found, `regression-*`) stay as they are. In files of torch before 1.6
the storages are named by where they lay in memory, so those of torch.save differ from run to run.
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import io
import struct
import sys
import time
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import corpus
import torch
from torch.utils.serialization import config

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests import legacy_specimens  # noqa: E402
from tests.archives import data_pkl, legacy_bytes, records, torch_bytes, with_records  # noqa: E402
from tests.faults import hostile_archives as hostile  # noqa: E402
from tests.faults.damage import small_optimizer, small_weights  # noqa: E402
from tests.faults.forgery import Entry, Forged, with_pickle  # noqa: E402
from tests.faults.opcodes import program  # noqa: E402
from tests.property.mutation import entry_of  # noqa: E402
from tests.specimens import SPECIMENS, can_save, dtypes, fill, quiet  # noqa: E402

# The pickles name a file that has the number of the process in it: let it be the same each time.
with mock.patch("os.getpid", return_value=0):
    from tests.faults import malicious_pickles

REAL_FILES = ROOT / "rust/fastckpt-format/tests/specimens"
REAL_PICKLES = ROOT / "rust/fastckpt-format/tests/data"
# A fuzzer learns little from a large input and runs it slowly. Bombs are in the tests.
MAX_NBYTES = 16 << 10
MANY_TENSORS = 1000
# A size that stands in the zip64 field, APPNOTE 4.5.3.
_SENTINEL = 0xFFFFFFFF


def main() -> None:
    """Write all corpora."""
    # zipfile writes the time of day.
    with quiet(), mock.patch.object(time, "localtime", return_value=time.gmtime(315_532_800)):
        archives = dict(real_archives()) | dict(hostile_archives())
        pickles = dict(real_pickles()) | dict(malicious())
        pickles |= {f"of-{name}": data_pkl(data) for name, data in archives_with_pickles(archives)}
        tensors = {
            name: with_pickle(pickle, *malicious_pickles.RECORDS)
            for name, pickle in malicious()
            # These cost minutes where they are not refused at once: they have tests of their own.
            if name.removeprefix("malicious-") not in malicious_pickles.EXPENSIVE
        }
    write("archive", archives, ".pt", keep=["1000-tensors", "alignment-4096"])
    write("tensors", tensors, ".pt")
    with quiet():
        write("legacy", dict(legacy_files()), ".pt")
    write("pickle", pickles, ".pkl")


def write(target: str, files: dict[str, bytes], suffix: str, *, keep: Collection[str] = ()) -> None:
    """Put the files of one target that are not too large in place of those of an earlier run."""
    kept = {
        name: data
        for name, data in corpus.read(target).items()
        if not name.endswith(suffix) or name.startswith("regression-")
    }
    made = {
        f"{name.replace('_', '-')}{suffix}": data
        for name, data in files.items()
        if len(data) <= MAX_NBYTES or name in keep
    }
    corpus.write(target, kept | made)


def real_archives() -> Iterator[tuple[str, bytes]]:
    """Yield what torch of several versions, and other writers, make of honest objects."""
    for path in sorted(REAL_FILES.glob("*.pt")):
        yield path.stem, path.read_bytes()
    for dtype in filter(can_save, dtypes()):
        yield f"dtype-{str(dtype).removeprefix('torch.')}", torch_bytes({"t": fill(dtype, 6)})
    for specimen in SPECIMENS:
        yield f"object-{specimen.name}", torch_bytes(specimen.make())
    yield "weights", torch_bytes(small_weights())
    yield "adamw", torch_bytes(small_optimizer())
    yield "no-tensors", torch_bytes({"step": 7, "loss": 0.5})
    weights = torch_bytes(small_weights())
    yield "big-endian", with_records(weights, {"byteorder": b"big"})
    yield "no-byteorder", with_records(weights, {"byteorder": None})
    for alignment in (1, 4096):
        with storage_alignment(alignment):
            yield f"alignment-{alignment}", torch_bytes(torch.arange(9.0))
    with storage_alignment(1):
        many = {f"t{i}": torch.full((1,), i % 128, dtype=torch.int8) for i in range(MANY_TENSORS)}
        yield f"{MANY_TENSORS}-tensors", torch_bytes(many)
    yield "python-zip64", zip64_by_python(weights)
    yield "zip64-directory", zip64_in_directory(weights)


def hostile_archives() -> Iterator[tuple[str, bytes]]:
    """Yield archives whose headers lie."""
    for name, make in hostile.HOSTILE.items():
        yield f"hostile-{name}", make()
    for name, make in hostile.ODD.items():
        if name != "torchscript":  # among the real files
            yield f"odd-{name}", make()
    for name, record, data in (
        ("alignment-that-is-none", ".storage_alignment", b"6\xff"),
        ("version-that-is-none", "version", b"x\n"),
        ("version-11", "version", b"11\n"),
        ("id-not-utf8", ".data/serialization_id", bytes(range(200, 240))),
        ("byteorder-that-is-none", "byteorder", b"middle"),
    ):
        index = hostile.index_of(hostile.honest(), record)
        entries = hostile.honest()
        entries[index] = replace(entries[index], data=data)
        yield f"hostile-{name}", Forged(entries).bytes()
    yield "hostile-byteorder-in-capitals", hostile.lie("byteorder", name="archive/BYTEORDER")
    weights = torch_bytes(small_weights())
    end = weights[-22:]
    yield "hostile-two-ends", weights + end
    yield "hostile-end-in-comment", weights[:-2] + struct.pack("<H", len(end)) + end
    yield "odd-trailing-bytes", weights + b"trailing"
    yield "hostile-cut-off", weights[: len(weights) // 2]
    yield "hostile-zero-tail", weights[:-200] + bytes(200)
    yield "hostile-nested-archive", with_records(weights, {"data/0": weights})


def real_pickles() -> Iterator[tuple[str, bytes]]:
    """Yield the pickles that the decoder's own tests have."""
    for path in sorted(REAL_PICKLES.glob("*.pkl")):
        yield path.stem, path.read_bytes()


def legacy_files() -> Iterator[tuple[str, bytes]]:
    """Yield files of torch before 1.6: honest ones, those that lie, and those that are cut off."""
    yield "torch", (REAL_FILES / "legacy.pt").read_bytes()
    for specimen in SPECIMENS:
        yield f"object-{specimen.name}", legacy_bytes(specimen.make())
    for name, data in legacy_specimens.OLD_FORMS.items():
        yield f"old-{name}", data
    for name, (data, _) in legacy_specimens.WRONG_SIZES.items():
        yield f"hostile-{name}", data
    for name, body in legacy_specimens.REFUSED.items():
        yield f"hostile-{name}", legacy_specimens.over_six(body)
    weights = legacy_bytes(small_weights())
    yield "weights", weights
    yield "hostile-cut-off", weights[: len(weights) // 2]
    yield "odd-trailing-bytes", weights + b"trailing"


def malicious() -> Iterator[tuple[str, bytes]]:
    """Yield pickles that call, write or claim what no checkpoint does."""
    pickles: dict[str, bytes] = malicious_pickles.PICKLES
    for name, pickle in pickles.items():
        yield f"malicious-{name}", pickle
    for name, body in malicious_pickles.HARMLESS.items():
        yield f"harmless-{name}", program(body)


def archives_with_pickles(archives: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield those of our own making whose pickle differs from the others'."""
    for name, data in archives.items():
        if name.startswith(("dtype-", "object-")) or name in ("weights", "adamw"):
            yield name, data


@contextmanager
def storage_alignment(nbytes: int) -> Iterator[None]:
    """Let torch.save align storages to so many bytes."""
    before = config.save.storage_alignment
    config.save.storage_alignment = nbytes
    try:
        yield
    finally:
        config.save.storage_alignment = before


def zip64_by_python(archive: bytes) -> bytes:
    """Write an archive again with zip64 fields in its local headers."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as target:
        for name, data in records(archive).items():
            info = zipfile.ZipInfo(f"archive/{name}")
            with target.open(info, "w", force_zip64=True) as record:
                record.write(data)
    return file.getvalue()


def zip64_in_directory(archive: bytes) -> bytes:
    """Write an archive again with its sizes in zip64 fields of the directory."""

    def quoted(name: str, data: bytes) -> Entry:
        extra = struct.pack("<HHQQ", 1, 16, len(data), len(data))
        entry = entry_of(f"archive/{name}", data)
        return replace(entry, nbytes=_SENTINEL, compressed_nbytes=_SENTINEL, extra=extra)

    return Forged([quoted(name, data) for name, data in records(archive).items()]).bytes()


if __name__ == "__main__":
    main()
