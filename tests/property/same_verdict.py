"""What fastckpt accepts, others accept, and read the same from it.

Parsers that understand one file in two ways are how a scanner is led past what a loader will load. So
whatever `fastckpt.load` takes, Python's zipfile finds whole and torch.load gives the same tensors for,
bit by bit; and what `fastckpt.verify` calls good, its own reader reads. The other way round there may be
differences, since fastckpt is stricter; they are counted.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import torch
from tests.faults.harness import Tally
from tests.property.mutation import WAYS, choose, damaged
from tests.specimens import assert_same, quiet, torch_taking_numbers

import fastckpt
from fastckpt._native import Archive

# It makes an archive one of TorchScript, which torch's own reader is given.
_OF_TORCHSCRIPT = "constants.pkl"
# A storage of 7 bytes that is seen as float32: torch saves it whole, and from 2.10 on does not load what
# it has saved. The bytes behind the last element are nobody's.
_LONGER_RECORD = re.compile(
    r"record size \((\d+) bytes\) does not match expected size \((\d+) bytes"
)
_LONGEST_ELEMENT_NBYTES = 16


class Disagreement(Exception):
    """Two readers, or two verbs of ours, say different things of one file."""


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Change archives in all ways, and compare what comes of reading each."""
    tally = Tally()
    path = directory / "model.pt"
    with quiet():
        for number in range(cases):
            random = Random(f"{seed}-{number}")
            way = random.choice(WAYS)
            base = choose(random, has_records=way is not damaged)
            path.write_bytes(way(random, base))
            where = f"case {number} of seed {seed} ({way.__name__} {base.name})"
            try:
                tally.count(f"{way.__name__}: {verdict(path)}")
            except Exception as error:
                kept = directory / f"disagreement-{seed}-{number}.pt"
                kept.write_bytes(path.read_bytes())
                tally.fail(f"{where}: {type(error).__name__}: {error} (kept as {kept})")
    return tally


def verdict(path: Path) -> str:
    """Return what came of loading the file: "equal" to what torch.load gives, or a refusal.

    Raises:
        Disagreement: Somebody says something else of the file.
    """
    report = fastckpt.verify(path)
    is_torchscript = _is_torchscript(path)
    if report.ok and not is_torchscript:
        _read_every_record(path)
    try:
        found = fastckpt.load(path, map_location="cpu")
    except fastckpt.CheckpointError as refusal:
        return _refused(path, refusal)
    except Exception:
        if is_torchscript:
            # In the words of torch.load, which is not given the file.
            return "TorchScript"
        raise
    if any(damage.expected is not None for damage in report.damages):
        raise Disagreement(f"loaded, but verify found {report.damages[0]}")
    comparison = _compare_with_others(found, path, report.files[0])
    # The bytes of the tensors are right, but others may stumble over what is wrong beside them.
    return comparison if report.ok else f"{comparison}, but verify warns"


def _compare_with_others(found: Any, path: Path, file: fastckpt.FileReport) -> str:
    try:
        if file.checksums != "all":
            # Its writer switched them off, which verify says and load warns of.
            return f"{_compare(found, path)}, without checksums"
        _ask_zipfile(path)
        return _compare(found, path)
    except Disagreement:
        raise
    except Exception:
        if file.damages:
            return "refused by others"
        raise


def _read_every_record(path: Path) -> None:
    archive = Archive.open_bytes(path.read_bytes(), str(path))
    for name in archive.names():
        archive.read_record(name)


def _refused(path: Path, refusal: fastckpt.CheckpointError) -> str:
    if refusal.path != str(path) or str(path) not in str(refusal):
        raise Disagreement(f"the refusal does not name the file: {refusal!r}")
    kind = type(refusal).__name__
    is_storage = isinstance(refusal, fastckpt.ChecksumError) and str(refusal.record).startswith(
        "data/"
    )
    # Nothing is damaged but the elements of a tensor, so that torch's reader is in no danger.
    return f"{kind}, {_of_torch(path)}" if is_storage else kind


def _of_torch(path: Path) -> str:
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        return "refused by torch too"
    return "loaded by torch"


def _ask_zipfile(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise Disagreement(f"zipfile finds {bad!r} damaged")


def _compare(found: Any, path: Path) -> str:
    try:
        with torch_taking_numbers():
            expected = torch.load(path, map_location="cpu", weights_only=True)
    except RuntimeError as error:
        sizes = _LONGER_RECORD.match(str(error))
        if sizes and 0 < int(sizes[1]) - int(sizes[2]) < _LONGEST_ELEMENT_NBYTES:
            return "loaded by us alone"
        raise
    try:
        assert_same(found, expected)
    except AssertionError as error:
        raise Disagreement(f"torch.load gives something else at {error}") from error
    except RuntimeError as error:
        # Quantized tensors are compared by what they print, which torch may refuse.
        if "dequantize" in str(error):
            return "not comparable"
        raise
    return "equal"


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.lower().endswith(_OF_TORCHSCRIPT) for name in archive.namelist())
    except Exception:
        return False
