"""Meta files and manifests that are changed in all ways: read as Python's json reads them, or refused.

A manifest is read only where it is, to the byte, what would be written for what it says.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.harness import Tally
from tests.property.hostile_cases import described, look_at_refusal, measured
from tests.property.mutation import change_bytes, change_value

import fastckpt
from fastckpt._steps.manifest import Manifest, ManifestFile, decode_manifest
from fastckpt.nanochat.meta import decode_meta, encode_meta

_WORDS = [
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-0", b"1E400", b"0.1e-5", b"null", b"true", b"01",
    b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"[]," * 500, b'"\\ud800"', b'"\\u0000"', b"\\", b'"',
    b"\xef\xbb\xbf", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\0", b"/*", b"//", b",", b":", b"{", b"}",
    b"]", b" ", b"\n", b"  ", b"\r\n", b'"step": 8,', b'"step": 100,', b"'", b"-", b"+", b"1_0", b"0x10",
    b'"format_version": 1,', b'"files": [],', b'"save_id": "00000000000007",', b'"../x"', b"__class__",
]  # fmt: skip
_VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 16, 2**31, 2**63 - 1, 2**63, 2**64, 10**18, 1.0, 1e308, float("nan"),
    float("inf"), "", "0", "7" * 14, "7" * 20, "f" * 64, "F" * 64, "\u0661" * 14, "\ud800", "a/b", "a\0b",
    [], [[]], {}, {"name": "x"}, ["model_000100.pt"], "model_000100.pt\n",
]  # fmt: skip
META = {
    "step": 100,
    "val_bpb": 0.7531,
    "model_config": {"sequence_len": 2048, "vocab_size": 65536, "n_layer": 12, "window": "SSSL"},
    "user_config": {"run": "dummy", "device_type": "", "depth": 12, "target_flops": -1.0},
    "loop_state": {"min_val_bpb": float("inf"), "smooth_train_loss": 2.25, "dataloader": [0, 17]},
    "name": "\u00fc\n\u2028",
}


def _manifest() -> bytes:
    files = [
        ManifestFile(f"{role}_000100{rank}.pt", 4096 + len(rank), "12345678901234567890")
        for role, rank in (("model", ""), ("optim", "_rank0"))
    ]
    return Manifest.of_meta(encode_meta(META), 20260102030405, 100, 4, files).encode()


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Change both files in all ways, and look at what comes of reading each."""
    tally = Tally()
    bases = {"meta": encode_meta(META), "manifest": _manifest()}
    judges: dict[str, Callable[[bytes, Path], str]] = {"meta": of_meta, "manifest": of_manifest}
    for number in range(cases):
        random = Random(f"{seed}-{number}")
        kind = random.choice(list(bases))
        data = _change(random, bases[kind])
        path = directory / f"{kind}_000100.json"
        try:
            tally.count(f"{kind}: {measured(judges[kind], data, path)}")
        except Exception as error:
            tally.fail(described(number, seed, error, data))
    return tally


def of_meta(data: bytes, path: Path) -> str:
    """Compare the decoder of metas with Python's json; returns "read" or "refused"."""
    try:
        expected = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        expected = None
        refused = True
    else:
        refused = False
    try:
        found = decode_meta(data, str(path))
    except fastckpt.FormatError as error:
        if not refused:
            raise AssertionError(f"json reads it: {error}") from error
        return look_at_refusal(error, path)
    assert not refused, "json refuses it"
    # NaN is not equal to itself, and 1 is equal to True.
    assert repr(found) == repr(expected)
    return "read"


def of_manifest(data: bytes, path: Path) -> str:
    """Decode a manifest; returns "read" or "refused"."""
    try:
        manifest = decode_manifest(data, str(path))
    except fastckpt.FormatError as error:
        return look_at_refusal(error, path)
    assert manifest.encode() == data
    assert 0 <= manifest.save_id < 10**14
    assert manifest.step >= 0
    assert manifest.shards >= 0
    assert all("/" not in file.name and file.nbytes >= 0 for file in manifest.files)
    return "read"


def _change(random: Random, data: bytes) -> bytes:
    """Change bytes, or a value, which leaves the layout as it is written."""
    if random.random() < 0.5:
        return change_bytes(random, data, _WORDS)
    document = json.loads(data)
    for _ in range(random.randint(1, 2)):
        change_value(random, document, _VALUES)
    end = b"\n" if data.endswith(b"\n") else b""
    return json.dumps(document, indent=2).encode("ascii") + end
