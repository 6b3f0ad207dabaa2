"""`fastckpt.verify` of files: what it finds in archives, in older formats and in meta files."""

from __future__ import annotations

import errno
import io
import os
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.faults.children import NOBODY, run_in_child, working_in
from tests.verified_files import WTE_BYTES, flip_bit, flip_payload, write_step

import fastckpt
from fastckpt import _native
from fastckpt._verify.report import Status

# Files


def test_good_file(tmp_path: Path) -> None:
    path = tmp_path / "some.pt"
    torch.save({"w": torch.arange(10.0)}, path)

    report = fastckpt.verify(path)

    (file,) = report.files
    assert report.ok
    assert report.exit_code == 0
    assert (file.path, file.role, file.status) == (str(path), "other", Status.GOOD)
    assert file.nbytes == path.stat().st_size == report.nbytes
    assert (file.checksums, file.headers_covered, file.damages) == ("all", True, ())
    assert report.steps == ()


def test_damage_names_tensor_record_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model_000007.pt"
    write_step(tmp_path, 7)
    start = path.read_bytes().index(WTE_BYTES)
    flip_bit(path, 8 * (start + 100))

    (damage,) = fastckpt.verify(path).damages

    assert damage.path == str(path)
    assert damage.record == "data/0"
    assert damage.tensors == ("wte",)
    assert (damage.offset, damage.nbytes) == (start, len(WTE_BYTES))
    assert damage.expected is not None
    assert damage.expected != damage.found


@pytest.mark.slow
def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt"
    torch.save({"w": torch.tensor([1.5])}, path)
    good = path.read_bytes()
    missed = []
    for bit in range(8 * len(good)):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        # One thread: starting more takes longer than reading a kilobyte.
        if fastckpt.verify(path, threads=1).exit_code != 1:
            missed.append(bit)
    assert missed == []


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt"
    torch.save({"w": torch.tensor([1.5])}, path)
    good = path.read_bytes()
    for nbytes in range(len(good)):
        path.write_bytes(good[:nbytes])
        assert fastckpt.verify(path, threads=1).exit_code == 1, nbytes


def test_quick_finds_what_is_missing_but_reads_no_tensor(tmp_path: Path) -> None:
    write_step(tmp_path, 1)
    path = tmp_path / "model_000001.pt"
    flip_payload(path, WTE_BYTES)
    assert fastckpt.verify(path, quick=True).ok
    os.truncate(path, path.stat().st_size - 1)
    assert fastckpt.verify(path, quick=True).exit_code == 1


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"not a checkpoint", b"PK\3\4"])
def test_junk_is_damage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "junk.pt"
    path.write_bytes(content)
    report = fastckpt.verify(path)
    assert report.status is Status.DAMAGED
    assert len(report.damages) >= 1
    assert report.damages[0].detail


def write_legacy(path: Path) -> None:
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False)


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for name in ("storages", "tensors", "pickle"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())


@pytest.mark.parametrize("write", [write_legacy, write_tar])
def test_old_formats_have_no_checksums(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "old.pt"
    write(path)
    report = fastckpt.verify(path)
    (file,) = report.files
    assert report.status is Status.UNCHECKED
    assert "no checksums in this format" in str(file.message)
    assert report.ok
    assert report.status.exit_code(strict=True) == 5


def test_a_writer_that_switched_checksums_off(tmp_path: Path) -> None:
    path = tmp_path / "some.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    report = fastckpt.verify(path)
    assert (report.status, report.files[0].checksums) == (Status.UNCHECKED, "none")
    os.truncate(path, 900)
    assert fastckpt.verify(path).status is Status.DAMAGED


def write_torchscript(path: Path) -> None:
    class Scale(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(64.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * x

    with warnings.catch_warnings():
        # torch deprecates TorchScript; the files are there.
        warnings.simplefilter("ignore")
        module = torch.jit.trace(Scale(), torch.ones(64))  # type: ignore[no-untyped-call]
        module.save(str(path))


def test_torchscript_headers_are_not_covered(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    write_torchscript(path)
    (file,) = fastckpt.verify(path).files
    assert (file.status, file.nbytes) == (Status.GOOD, path.stat().st_size)
    assert file.records > 3
    assert not file.headers_covered
    assert "not checked" in str(file.message)
    assert fastckpt.verify(path, quick=True).ok


def test_torchscript_payloads_are_covered(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    write_torchscript(path)
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        contents = {info.filename: archive.read(info) for info in records}
    assert zipfile.ZIP_DEFLATED in {info.compress_type for info in records}
    for info in records:
        header = good[info.header_offset : info.header_offset + 30]
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        # Every byte would take half a minute; a stride that is no power of two meets all bits.
        for offset in range(start, start + info.compress_size, 7):
            flipped = bytearray(good)
            flipped[offset] ^= 1 << offset % 8
            path.write_bytes(flipped)
            damages = fastckpt.verify(path).damages
            if info.compress_type == zipfile.ZIP_DEFLATED and not damages:
                # The last byte of a deflated record has bits that nobody uses.
                with zipfile.ZipFile(path) as archive:
                    assert archive.read(info.filename) == contents[info.filename], offset
                continue
            (damage,) = damages
            assert damage.record == info.filename.partition("/")[2], offset


def test_a_bomb_in_torchscript_is_not_inflated(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/constants.pkl", b"")
        archive.writestr("bomb/code/bomb.py", bytes(65 << 20))
    (damage,) = fastckpt.verify(path).damages
    assert damage.detail == f"compressed, and {65 << 20} bytes large when inflated"


def test_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "model_000001.pt").mkdir()
    report = fastckpt.verify(tmp_path)
    details = {Path(damage.path).name: damage.detail for damage in report.damages}
    assert details == {
        "pipe.pt": "a named pipe, not a file",
        "model_000001.pt": "a directory, not a file",
    }


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    report = fastckpt.verify([tmp_path / "no.pt", tmp_path / "no" / "such"])
    assert [file.status for file in report.files] == [Status.NOT_FOUND] * 2
    assert (report.ok, report.exit_code) == (False, 4)


def test_an_empty_directory_holds_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    report = fastckpt.verify(tmp_path)
    assert report.exit_code == 4
    assert "no checkpoint in this directory" in str(report.files[0].message)


def test_a_failing_disk_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str, **_: object) -> object:
        raise OSError(errno.EIO, "Input/output error", path)

    write_step(tmp_path, 1)
    monkeypatch.setattr(_native, "verify_file", fail)
    report = fastckpt.verify(tmp_path)
    assert report.exit_code == 6
    assert [file.message for file in report.files] == ["Input/output error", None]
    assert report.steps[0].status is Status.IO_ERROR


def test_unreadable_directory(tmp_path: Path) -> None:
    write_step(tmp_path / "open", 1)
    (tmp_path / "shut").mkdir(mode=0)
    tmp_path.chmod(0o755)

    def work() -> list[int]:
        report = fastckpt.verify(".")
        return [report.exit_code, len(report.steps)]

    # Root may read everything, so somebody else looks.
    with working_in(tmp_path):
        outcome = run_in_child(work, user=NOBODY if os.geteuid() == 0 else None)
    assert outcome.ok, outcome
    assert outcome.value == [6, 1]


# Meta files


@pytest.mark.parametrize(
    "text",
    [
        '{"min_val_bpb": Infinity, "x": NaN, "y": -Infinity}',
        "{}",
        '{"é": [1, null]}',
        "[" * 50 + "]" * 50,
    ],
)
def test_meta_that_python_reads_is_good(tmp_path: Path, text: str) -> None:
    write_step(tmp_path, 1)
    (tmp_path / "meta_000001.json").write_text(text, encoding="utf-8")
    assert fastckpt.verify(tmp_path).ok


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"", "the file is empty"),
        (b'{"step": 1', "not JSON: "),
        (b'{"step": 1}\xff', "not JSON: "),
        (b"\0" * 100, "not JSON: "),
        (b"[" * 200_000, "not JSON that Python reads: nested too deeply"),
    ],
)
def test_meta_that_is_not_json_is_damage(tmp_path: Path, content: bytes, detail: str) -> None:
    write_step(tmp_path, 1)
    path = tmp_path / "meta_000001.json"
    path.write_bytes(content)
    report = fastckpt.verify(tmp_path)
    (damage,) = report.damages
    assert damage.path == str(path)
    assert damage.detail.startswith(detail)
    assert report.steps[0].status is Status.DAMAGED


def test_a_huge_meta_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "meta_000001.json"
    path.touch()
    os.truncate(path, 1 << 40)
    (damage,) = fastckpt.verify(path).damages
    assert "it has 1099511627776 bytes, more than 67108864" in damage.detail
