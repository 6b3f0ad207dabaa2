"""Files over 4 GiB, where sizes and offsets no longer fit the old fields of a zip file."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.archives import torch_writes_current_layout

import fastckpt

GIB = 1 << 30
# 0xFFFFFFFF is where zip64 begins, and that value itself is one of its signs.
LIMIT = 0xFFFFFFFF
FREE_NBYTES = 6 * GIB

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory with room for such a file, which is gone at the end."""
    if shutil.disk_usage(tmp_path).free < FREE_NBYTES:
        pytest.skip(f"needs {FREE_NBYTES // GIB} GiB of free disk")
    yield tmp_path
    for file in tmp_path.iterdir():
        file.unlink()


def zeros(path: Path, nbytes: int) -> torch.Tensor:
    """Make a tensor of zeros over a sparse file: it needs neither disk nor memory."""
    with path.open("wb") as file:
        file.truncate(nbytes)
    storage = torch.UntypedStorage.from_file(str(path), shared=True, nbytes=nbytes)
    return torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[arg-type]


def frame(path: Path, payloads: list[range]) -> bytes:
    """Return all bytes of a file but those of the payloads."""
    parts, position = [], 0
    with path.open("rb") as file:
        for payload in [*payloads, range(path.stat().st_size, 0)]:
            file.seek(position)
            parts.append(file.read(payload.start - position))
            position = payload.stop
    return b"".join(parts)


def payload_ranges(path: Path, obj: dict[str, torch.Tensor]) -> list[range]:
    on_meta = fastckpt.load(path, map_location="meta")
    starts = [t.untyped_storage()._checkpoint_offset for t in on_meta.values()]
    return [range(s, s + t.nbytes) for s, t in zip(starts, obj.values(), strict=True)]


@pytest.mark.parametrize("nbytes", [LIMIT - 1, LIMIT, 4 * GIB + 123])
def test_a_record_and_offsets_past_four_gib(nbytes: int, directory: Path) -> None:
    """The last tensors lie past 4 GiB, the first is that large."""
    obj: dict[str, Any] = {
        "large": zeros(directory / "zeros", nbytes),
        "after": torch.arange(1000.0),
        "empty": torch.empty(0),
        "last": torch.ones(3),
    }
    path = directory / "model.pt"
    fastckpt.save(obj, path, sync=False)
    payloads = payload_ranges(path, obj)
    assert payloads[1].start > LIMIT
    ours = frame(path, payloads)

    assert fastckpt.verify(path).ok
    for load in (torch.load, fastckpt.load):
        found = load(path, mmap=True)
        assert found["large"].nbytes == nbytes
        assert not found["large"][-1000:].any()
        for name in ("after", "empty", "last"):
            assert torch.equal(found[name], obj[name])
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        assert sizes["model/data/0"] == nbytes
        assert archive.read("model/data/1") == obj["after"].numpy().tobytes()
    _damage_is_found(path, payloads)

    if torch_writes_current_layout():
        del found
        path.unlink()
        torch.save(obj, path)
        assert payload_ranges(path, obj) == payloads
        assert _without_id(frame(path, payloads)) == _without_id(ours)
        assert fastckpt.verify(path).ok


def _damage_is_found(path: Path, payloads: list[range]) -> None:
    """Flip one bit on each side of 4 GiB, and put it back."""
    fd = os.open(path, os.O_RDWR)
    for position, name in ((payloads[0].stop - 5, "large"), (payloads[1].start + 9, "after")):
        byte = os.pread(fd, 1, position)
        os.pwrite(fd, bytes([byte[0] ^ 8]), position)
        (damage,) = fastckpt.verify(path).damages
        assert damage.tensors == (name,)
        os.pwrite(fd, byte, position)
    os.close(fd)


def _without_id(frame_bytes: bytes) -> tuple[bytes, bytes, int]:
    """Leave out the serialization id's first half and the two copies of the CRC over it."""
    name = b".data/serialization_id"
    local, central = frame_bytes.index(name), frame_bytes.rindex(name)
    payload = frame_bytes.index(b"PK\7\10", local) - 40
    # The descriptor's signature and CRC; the directory's CRC, which is 30 bytes before the name
    # and follows "model/".
    crc = central - len("model/") - 30
    return (
        frame_bytes[:payload] + frame_bytes[payload + 20 : payload + 44],
        frame_bytes[payload + 48 : crc] + frame_bytes[crc + 4 :],
        len(frame_bytes),
    )


def test_the_default_load_reads_past_four_gib(directory: Path) -> None:
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 12 * GIB:
        pytest.skip("needs 12 GiB of memory")
    path = directory / "model.pt"
    obj: dict[str, Any] = {"large": zeros(directory / "zeros", 4 * GIB + 5), "b": torch.ones(9)}
    fastckpt.save(obj, path, sync=False)
    found = fastckpt.load(path)
    assert found["large"].nbytes == 4 * GIB + 5
    assert not found["large"][:: GIB // 4].any()
    assert torch.equal(found["b"], obj["b"])
