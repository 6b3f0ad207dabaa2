"""Files of other versions of torch, and of tools that are not torch."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.specimens import assert_same, quiet

import fastckpt

SPECIMENS = Path(__file__).parents[2] / "rust" / "fastckpt-format" / "tests" / "specimens"
CHECKED = ["torch-2.15.pt", "torch-2.6.pt", "torch-2.9-alignment-7.pt", "python-zipfile.pt"]
UNCHECKED = ["torch-2.15-no-crc.pt", "torch-2.15-skip-data.pt"]


def expected(name: str) -> Any:
    return torch.load(SPECIMENS / name)


@pytest.mark.parametrize("options", [{}, {"mmap": True}, {"verify": "require"}, {"threads": 3}])
@pytest.mark.parametrize("name", CHECKED)
def test_checked_files(name: str, options: dict[str, Any]) -> None:
    assert_same(fastckpt.load(SPECIMENS / name, **options), expected(name))


@pytest.mark.parametrize("name", CHECKED)
def test_checked_files_verify(name: str) -> None:
    report = fastckpt.verify(SPECIMENS / name)
    assert report.ok
    assert report.files[0].headers_covered == (name != "python-zipfile.pt")


@pytest.mark.parametrize("name", CHECKED)
def test_a_damaged_payload_is_found_whoever_wrote_it(name: str, tmp_path: Path) -> None:
    data = bytearray((SPECIMENS / name).read_bytes())
    # The first tensor is of ones.
    data[data.index(torch.ones(3).numpy().tobytes()) + 3] ^= 0x40
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(fastckpt.ChecksumError, match="tensor 'a'") as error:
        fastckpt.load(path)
    assert error.value.tensors == ["a"]
    damages = fastckpt.verify(path).files[0].damages
    assert [damage.tensors for damage in damages] == [("a",)]


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name", UNCHECKED)
def test_files_without_checksums(name: str, mmap: bool) -> None:
    with pytest.warns(fastckpt.MissingChecksumWarning, match=name):
        assert_same(fastckpt.load(SPECIMENS / name, mmap=mmap), expected(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(fastckpt.load(SPECIMENS / name, mmap=mmap, verify=False), expected(name))
    with pytest.raises(fastckpt.ChecksumError, match=name):
        fastckpt.load(SPECIMENS / name, verify="require")
    assert fastckpt.verify(SPECIMENS / name).files[0].status.value == "unchecked"


def test_what_skip_data_left_out_is_filled_in_later(tmp_path: Path) -> None:
    """As torch's tutorial does: write the frame, then the bytes at the offsets of the records."""
    path, weight = tmp_path / "model.pt", torch.arange(1000.0)
    with torch.serialization.skip_data():
        fastckpt.save({"w": weight}, path)
    on_meta = fastckpt.load(path, map_location="meta")
    offset = on_meta["w"].untyped_storage()._checkpoint_offset
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(weight.numpy().tobytes())
    with pytest.warns(fastckpt.MissingChecksumWarning):
        assert_same(fastckpt.load(path), {"w": weight})


def test_before_torch_1_6() -> None:
    with pytest.warns(fastckpt.MissingChecksumWarning):
        assert_same(fastckpt.load(SPECIMENS / "legacy.pt"), expected("legacy.pt"))


def test_deflated_records_are_refused() -> None:
    """torch.save never deflates; mapped, torch returns the compressed bytes as weights."""
    for mmap in (False, True):
        with pytest.raises(fastckpt.FormatError, match="compressed"):
            fastckpt.load(SPECIMENS / "python-zipfile-deflated.pt", mmap=mmap)


def test_torchscript_deflates_and_is_handed_over() -> None:
    path = SPECIMENS / "torchscript.pt"
    with quiet():
        with pytest.raises(RuntimeError, match="TorchScript") as ours:
            fastckpt.load(path)
        with pytest.raises(RuntimeError, match="TorchScript") as torchs:
            torch.load(path)
        assert str(ours.value) == str(torchs.value)
        for source in (path, io.BytesIO(path.read_bytes())):
            module = fastckpt.load(source, weights_only=False)
            assert isinstance(module, torch.jit.ScriptModule)
