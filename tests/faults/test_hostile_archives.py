"""Zip structures made to mislead: refused by name, at once, and without much memory."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.archives import torch_bytes
from tests.faults.damage import fast_directory
from tests.faults.hostile_archives import HOSTILE, OBJECT, ODD
from tests.faults.watch import Refusal, refusal_by, watched
from tests.specimens import assert_same, quiet

import fastckpt

ALL = HOSTILE | ODD
_REFUSALS = (fastckpt.FormatError, fastckpt.ChecksumError)
# The largest archive here has 7 MB, and none needs more than its directory in memory.
_GROWN_MAX_NBYTES = 64 << 20
# Their structure is sound: what is wrong shows when the payload is read.
_SOUND_STRUCTURES = ("wrong_checksum", "wrong_checksum_of_the_pickle")


@pytest.fixture(scope="module", autouse=True)
def everything_is_imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let the modules that refusals need be there before the watch begins."""
    # zipfile decodes names by it, where verify asks it about TorchScript.
    codecs.lookup("cp437")
    path = tmp_path_factory.mktemp("imports") / "model.pt"
    path.write_bytes(HOSTILE["deflated_data"]())
    with pytest.raises(fastckpt.FormatError):
        fastckpt.load(path)
    assert not fastckpt.verify(path).ok


@pytest.fixture
def path() -> Iterator[Path]:
    """A file in memory: refusals are to be measured, and not a disk."""
    with fast_directory() as directory:
        yield directory / "hostile.pt"


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_by_name_at_once(name: str, path: Path) -> None:
    data = HOSTILE[name]()
    path.write_bytes(data)
    ways: dict[str, Callable[[], object]] = {
        "load": lambda: fastckpt.load(path),
        "load, mapped": lambda: fastckpt.load(path, mmap=True),
        "load, on no device": lambda: fastckpt.load(path, map_location="meta"),
        "load, of a file object": lambda: fastckpt.load(io.BytesIO(data)),
    }
    if name not in _SOUND_STRUCTURES:
        ways["load, unchecked"] = lambda: fastckpt.load(path, verify=False)
        ways["load, mapped and unchecked"] = lambda: fastckpt.load(path, verify=False, mmap=True)
    elif name == "wrong_checksum":
        del ways["load, on no device"]  # reads no tensor

    def look() -> tuple[dict[str, object], int, list[str]]:
        refusals: dict[str, object] = {way: refusal_by(work) for way, work in ways.items()}
        report = fastckpt.verify(path)
        return refusals, report.exit_code, [str(damage.path) for damage in report.damages]

    sighting = watched(look, path.parent)
    refusals, exit_code, damaged = sighting.value
    for way in ways:
        assert refusals[way] is not None, f"{way}: it was loaded"
        refusal = Refusal(**refusals[way])
        assert refusal.is_a(*_REFUSALS), f"{way}: {refusal}"
        assert ("<BytesIO>" if "object" in way else str(path)) in refusal.words, way
    assert exit_code == 1
    assert set(damaged) == {str(path)}
    assert sighting.events == []
    assert sighting.grown_nbytes < _GROWN_MAX_NBYTES


@pytest.mark.parametrize("name", _SOUND_STRUCTURES)
def test_unchecked_loads_take_what_only_a_checksum_tells(name: str, path: Path) -> None:
    path.write_bytes(HOSTILE[name]())
    assert_same(fastckpt.load(path, verify=False), OBJECT)


@pytest.mark.parametrize("name", [name for name in ODD if name != "torchscript"])
def test_what_is_only_odd_is_read_as_torch_and_zipfile_read_it(name: str, path: Path) -> None:
    data = ODD[name]()
    path.write_bytes(data)
    for found in (
        fastckpt.load(path),
        fastckpt.load(path, mmap=True),
        fastckpt.load(io.BytesIO(data)),
        torch.load(path),
    ):
        assert_same(found, OBJECT)
    assert fastckpt.verify(path).ok
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    assert not os.path.exists("/tmp/fastckpt-climbed")


@pytest.mark.parametrize("name", ALL)
def test_what_is_accepted_is_the_same_to_zipfile_and_to_torch(name: str) -> None:
    """A scanner that reads with zipfile, and a user who loads with torch, see the same file."""
    data = ALL[name]()
    try:
        with quiet():
            found = fastckpt.load(io.BytesIO(data))
    except RuntimeError:  # TorchScript is refused in torch's own words
        assert name in HOSTILE or name == "torchscript"
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        names = [info.filename for info in archive.infolist()]
    assert len(set(map(str.lower, names))) == len(names)
    assert len({name.split("/", 1)[0] for name in names}) == 1
    assert_same(found, torch.load(io.BytesIO(data)))


def test_sparse_files_of_any_size_are_refused_at_once(path: Path) -> None:
    with path.open("wb") as file:
        file.write(torch_bytes(OBJECT))
        for nbytes in (2**63 - 1, 1 << 43):  # the second is for ext4
            with contextlib.suppress(OSError):
                file.truncate(nbytes)
                break
    assert path.stat().st_size >= 1 << 43

    def look() -> tuple[object, object, bool]:
        return (
            refusal_by(lambda: fastckpt.load(path)),
            refusal_by(lambda: fastckpt.load(path, mmap=True)),
            fastckpt.verify(path).ok,
        )

    sighting = watched(look, path.parent)
    *refusals, ok = sighting.value
    for found in refusals:
        refusal = Refusal(**found)
        assert refusal.is_a(fastckpt.FormatError)
        assert str(path) in refusal.words
    assert not ok
    assert sighting.grown_nbytes < _GROWN_MAX_NBYTES


def test_there_are_enough_of_them() -> None:
    made = {name: make() for name, make in ALL.items()}
    assert len(HOSTILE) >= 80
    # zip64_end is the honest file with the records that torch adds; none is another by mistake.
    assert len(set(made.values())) == len(made)
