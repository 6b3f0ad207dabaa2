"""Files that change between two looks at them: what was looked at is what is used."""

from __future__ import annotations

import io
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.archives import data_pkl, legacy_bytes, record_range, torch_bytes, torchscript_bytes
from tests.faults.equal_checksums import with_checksum
from tests.faults.forgery import with_pickle
from tests.faults.opcodes import call, long1, named, program, text
from tests.legacy_files import legacy_file, persistent_id, stored, tar_file
from tests.specimens import assert_same

import fastckpt
from fastckpt._archive import load_job, other_files

pytestmark = pytest.mark.filterwarnings("ignore::fastckpt.MissingChecksumWarning")

# Memory that nobody has filled, if anybody asks torch for it.
_UNFILLED = call("torch", "FloatTensor", long1(100_000))
# So many characters can be chosen freely, more than the 32 bits of a checksum need.
_PADDING = "a" * 64


def forged_pickle(honest: bytes) -> bytes:
    """Return a pickle of a tensor that nobody has filled, as long as another and with its CRC-32."""
    body = b"]" + _UNFILLED + b"a" + text("") + b"a"
    padding = "a" * (len(honest) - len(program(body)))
    body = body[: -len(text("") + b"a")] + text(padding) + b"a"
    forged = program(body)
    start = forged.index(padding.encode())
    return with_checksum(forged, zlib.crc32(honest), range(start, start + len(padding)))


def changed_when(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, change: Callable[[], None]
) -> None:
    """Let a change happen when a function is called, before it does anything."""
    function = getattr(owner, name)

    def changing(*arguments: Any, **options: Any) -> Any:
        change()
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, changing)


def test_the_forgery_has_the_same_checksum() -> None:
    honest = data_pkl(torch_bytes([Counter(_PADDING), _PADDING * 8]))
    forged = forged_pickle(honest)
    assert len(forged) == len(honest)
    assert forged != honest
    assert zlib.crc32(forged) == zlib.crc32(honest)
    # As a file it is as good as the other: torch loads it.
    assert torch.load(io.BytesIO(with_pickle(forged)))[0].shape == (100_000,)


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("map_location", [None, "meta"])
def test_data_pkl_is_read_once(
    weights_only: bool, map_location: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Counter is for torch's unpickler to build: it gets the bytes that the decoder walked."""
    obj = [Counter(_PADDING), _PADDING * 8]
    path = tmp_path / "model.pt"
    path.write_bytes(torch_bytes(obj))
    where = record_range(path.read_bytes(), "data.pkl")
    forged = forged_pickle(data_pkl(path.read_bytes()))

    def change() -> None:
        with path.open("r+b") as file:
            file.seek(where.start)
            file.write(forged)

    # It is called between the two.
    changed_when(monkeypatch, load_job, "check_dtypes", change)
    assert_same(fastckpt.load(path, map_location, weights_only=weights_only), obj)
    assert data_pkl(path.read_bytes()) == forged


@pytest.mark.parametrize("weights_only", [True, False])
def test_pickles_before_torch_1_6_are_read_once(
    weights_only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    obj = {"counts": Counter("abca"), "w": torch.arange(1000.0)}
    path = tmp_path / "old.pt"
    path.write_bytes(legacy_bytes(obj))
    payload_nbytes = 4000

    def change() -> None:
        """Overwrite all in front of the elements: pickles, keys, and the count."""
        with path.open("r+b") as file:
            hostile = legacy_file(program(_UNFILLED))
            file.write(hostile.ljust(path.stat().st_size - payload_nbytes, b"\0"))

    changed_when(monkeypatch, other_files, "LoadJob", change)
    assert_same(fastckpt.load(path, weights_only=weights_only), obj)


def test_a_file_before_torch_1_6_that_is_cut_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "old.pt"
    path.write_bytes(legacy_bytes({"w": torch.arange(1000.0)}))

    def change() -> None:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 8)

    changed_when(monkeypatch, other_files, "LoadJob", change)
    with pytest.raises(fastckpt.FormatError, match="the file ends early"):
        fastckpt.load(path)


class Turning(io.RawIOBase):
    """A file object that shows one file, and after so many reads another."""

    def __init__(self, first: bytes, then: bytes, reads: int) -> None:
        super().__init__()
        self._contents = (first, then)
        self._left = reads
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._position, len(self._contents[0]))[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        shown = self._contents[self._left <= 0][self._position :][: len(buffer)]
        self._left -= 1
        buffer[: len(shown)] = shown
        self._position += len(shown)
        return len(shown)


SIX = struct.pack("<6f", *range(6))
_TENSOR = named("torch._utils", "_rebuild_tensor") + b"(" + persistent_id("1", 6)
HONEST = legacy_file(program(_TENSOR + b"K\0K\x06\x85K\x01\x85tR"), ["1"], [stored(6, SIX)])
HOSTILE = {
    "unfilled": legacy_file(program(_UNFILLED)),
    "large": legacy_file(program(call("__builtin__", "bytearray", long1(1 << 33)))),
    "unlisted": legacy_file(program(_TENSOR + b"K\0K\x06\x85K\x01\x85tR")),
    "archive": with_pickle(program(_UNFILLED)),
}


@pytest.mark.parametrize("then", HOSTILE)
@pytest.mark.parametrize("first", ["legacy", "tar", "torchscript", "archive"])
def test_a_file_object_that_turns_is_one_of_the_two_or_refused(first: str, then: str) -> None:
    contents: dict[str, Callable[[], bytes]] = {
        "legacy": lambda: HONEST,
        "tar": tar_file,
        "torchscript": torchscript_bytes,
        "archive": lambda: torch_bytes(torch.arange(6.0)),
    }
    shown = contents[first]()
    loaded = 0
    for reads in range(12):
        file: Any = Turning(shown, HOSTILE[then], reads)
        try:
            found = fastckpt.load(file)
        except (fastckpt.CheckpointError, RuntimeError):
            continue
        assert torch.equal(found, torch.arange(6.0))
        loaded += 1
    assert loaded > 0 or first in ("tar", "torchscript")
