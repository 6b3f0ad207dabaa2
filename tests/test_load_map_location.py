"""`map_location`: where tensors are, and who decides it."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.archives import record_range, torch_bytes
from tests.loaded_files import load_bytes
from tests.specimens import assert_same, storage_bytes

import fastckpt


@pytest.mark.parametrize(
    "map_location",
    [
        None,
        "cpu",
        torch.device("cpu"),
        {"cpu": "cpu"},
        {},
        "meta",
        torch.device("meta"),
        {"cpu": "meta"},
        lambda storage, _: storage,
        lambda *_: None,
        lambda storage, _: torch.UntypedStorage(storage.nbytes(), device="meta"),
    ],
    ids=["None", "str", "device", "dict", "{}", "meta", "device meta", "dict meta", "f", "g", "h"],
)
@pytest.mark.parametrize("weights_only", [True, False])
def test_map_location_means_what_it_means_to_torch(map_location: Any, weights_only: bool) -> None:
    obj = {"w": torch.arange(6.0).reshape(2, 3).t(), "p": torch.nn.Parameter(torch.ones(2))}
    archive = torch_bytes(obj)
    expected = torch.load(io.BytesIO(archive), map_location, weights_only=weights_only)
    assert_same(load_bytes(archive, map_location, weights_only=weights_only), expected)


def test_a_function_sees_filled_storages_and_their_locations() -> None:
    seen = []

    def place(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage:
        seen.append((storage_bytes(storage), location))
        return storage

    load_bytes(torch_bytes([torch.tensor([1, 2], dtype=torch.uint8)]), place)
    assert seen == [(b"\x01\x02", "cpu")]


def test_an_error_of_the_function_is_raised_as_it_is() -> None:
    def refuse(storage: torch.UntypedStorage, location: str) -> None:
        raise LookupError("no place")

    with pytest.raises(LookupError, match="no place"):
        load_bytes(torch_bytes(torch.ones(2)), refuse)


@pytest.mark.parametrize(
    "map_location", ["cuda:77", "nonsense", "cpu:0", {"cpu": "cuda:77"}, b"cpu", 3], ids=repr
)
def test_devices_that_are_not_there_raise_as_in_torch(map_location: Any) -> None:
    archive = torch_bytes(torch.ones(2))
    with pytest.raises((RuntimeError, TypeError, AttributeError)) as torchs:
        torch.load(io.BytesIO(archive), map_location)
    with pytest.raises(torchs.type) as ours:
        load_bytes(archive, map_location)
    assert str(ours.value) == str(torchs.value)


def test_meta_reads_no_payload_and_says_where_it_lies(tmp_path: Path) -> None:
    archive = bytearray(torch_bytes({"w": torch.ones(3)}))
    payload = record_range(bytes(archive), "data/0")
    archive[payload.start] ^= 1
    (tmp_path / "model.pt").write_bytes(archive)
    loaded = fastckpt.load(tmp_path / "model.pt", "meta")
    assert loaded["w"].is_meta
    assert loaded["w"].untyped_storage()._checkpoint_offset == payload.start


@pytest.mark.cuda
@pytest.mark.parametrize("map_location", ["cuda", "cuda:0", torch.device("cuda"), {"cpu": "cuda"}])
def test_cuda_round_trip(map_location: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    base = torch.arange(20_000_000)
    obj = {"base": base, "view": base[5:], "half": base.half(), "empty": torch.empty(0)}
    fastckpt.save(obj, path)
    expected = torch.load(path, map_location)
    assert_same(fastckpt.load(path, map_location), expected)
    fastckpt.save(expected, path)
    assert_same(fastckpt.load(path), torch.load(path))
