"""The manifest of a step: its bytes, and that no other bytes pass for it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastckpt
from fastckpt import _native
from fastckpt._steps.manifest import Manifest, ManifestFile, decode_manifest, read_manifest
from fastckpt._steps.save_id import agreed

manifests = st.builds(
    Manifest,
    save_id=st.integers(0, 10**14 - 1),
    step=st.integers(0, 10**18 - 1),
    shards=st.integers(0, 99_999),
    meta_sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
    files=st.lists(
        st.builds(
            ManifestFile,
            name=st.text('abc_0.é\n"\\', min_size=1),
            nbytes=st.integers(0, 2**63 - 1),
            content_hash=st.integers(0, 10**20 - 1).map("{:020d}".format),
        ),
        max_size=3,
    ).map(tuple),
)


@given(manifest=manifests)
def test_round_trip(manifest: Manifest) -> None:
    data = manifest.encode()
    assert data.isascii()
    assert decode_manifest(data, "m") == manifest
    assert json.loads(data)["save_id"] == f"{manifest.save_id:014d}"


@given(manifest=manifests, position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_another_manifest(
    manifest: Manifest, position: float, bit: int
) -> None:
    data = bytearray(manifest.encode())
    data[int(position * len(data))] ^= 1 << bit
    try:
        found = decode_manifest(bytes(data), "m")
    except fastckpt.FormatError:
        return
    assert found != manifest


GOOD = Manifest(7, 100, 2, "0" * 64, (ManifestFile("model_000100.pt", 5, "0" * 20),))
DOCUMENT = json.loads(GOOD.encode())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value"),
        (b"\xff", "ascii"),
        (b"[]", "not a JSON object"),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"format_version": NaN}', "NaN has no place"),
        (b'{"format_version": 1' + b"0" * 5000 + b"}", "digits"),
        (json.dumps(DOCUMENT | {"format_version": 2}).encode(), "format version 2 is unknown"),
        (json.dumps(DOCUMENT | {"format_version": True}).encode(), "no whole number"),
        (json.dumps(DOCUMENT | {"save_id": "123"}).encode(), "'save_id'"),
        (json.dumps(DOCUMENT | {"save_id": "1" * 13 + "\u0661"}).encode(), "'save_id'"),
        (json.dumps(DOCUMENT | {"step": -1}).encode(), "'step'"),
        (json.dumps(DOCUMENT | {"step": 1.0}).encode(), "'step'"),
        (json.dumps(DOCUMENT | {"files": {}}).encode(), "list of files"),
        (json.dumps(DOCUMENT | {"files": [DOCUMENT["files"][0]] * 17}).encode(), "list of files"),
        (json.dumps(DOCUMENT | {"files": [None]}).encode(), "a file is not a JSON object"),
        (json.dumps(DOCUMENT | {"more": 1}, indent=2).encode() + b"\n", "not laid out"),
        (json.dumps(DOCUMENT).encode(), "not laid out"),
        (GOOD.encode() + b"\n", "not laid out"),
        (GOOD.encode().replace(b'"step": 100,', b'"step": 100, "step": 100,'), "not laid out"),
    ],
)
def test_other_bytes_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(fastckpt.FormatError, match=r"^m is not a manifest, or is damaged: ") as e:
        decode_manifest(data, "m")
    assert reason in str(e.value)
    assert e.value.path == "m"


@pytest.mark.parametrize("field", list(DOCUMENT))
def test_a_missing_member_is_named(field: str) -> None:
    document = {name: value for name, value in DOCUMENT.items() if name != field}
    with pytest.raises(fastckpt.FormatError, match=f"the manifest has no '{field}'"):
        decode_manifest(json.dumps(document, indent=2).encode() + b"\n", "m")


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(1 << 17))
    with pytest.raises(fastckpt.FormatError, match="131072 bytes, more than 65536"):
        read_manifest(str(tmp_path / "large"))
    (tmp_path / "directory").mkdir()
    with pytest.raises(fastckpt.FormatError, match="not a regular file"):
        read_manifest(str(tmp_path / "directory"))


def test_it_says_what_was_saved(tmp_path: Path) -> None:
    with agreed(17, 3):
        fastckpt.save_checkpoint(tmp_path, 7, {"a": torch.ones(3)}, {"b": 1}, {"m": 2})
    manifest = read_manifest(str(tmp_path / "manifest_000007.json"))
    assert (manifest.step, manifest.shards) == (7, 3)
    meta = (tmp_path / "meta_000007.json").read_bytes()
    assert manifest.meta_sha256 == hashlib.sha256(meta).hexdigest()
    assert [file.name for file in manifest.files] == ["optim_000007_rank0.pt", "model_000007.pt"]
    for file in manifest.files:
        archive = _native.Archive.open(tmp_path / file.name)
        assert archive.save_mark is not None
        assert (archive.save_mark.save_id, archive.save_mark.shards) == (manifest.save_id, 3)
        assert (archive.nbytes, archive.content_hash) == (file.nbytes, file.content_hash)
        assert (tmp_path / file.name).stat().st_size == file.nbytes
