"""Damaged and hostile safetensors, refused as a source."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests.exported_models import assert_same, refused

from fastckpt import FormatError, IncompleteCheckpointError, ModelExporter


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    state = {"a": torch.ones(10), "b": torch.ones(10), "c": torch.ones(10)}
    torch.save(state, tmp_path / "c.pt")
    ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "hub", max_shard_nbytes=80)
    return tmp_path / "hub" / "model.safetensors.index.json"


def test_a_missing_shard_and_a_missing_tensor_are_named(sharded: Path) -> None:
    second = sharded.parent / "model-00002-of-00002.safetensors"
    safetensors.torch.save_file({"c": torch.ones(1), "d": torch.ones(1)}, second)
    refused(sharded, FormatError, r"00002-of-00002.* has tensors that .* not place there: 'd'")
    safetensors.torch.save_file({"d": torch.ones(1)}, second)
    refused(sharded, FormatError, r"model-00002-of-00002.safetensors lacks .*index.json: 'c'$")
    second.unlink()
    refused(
        sharded,
        IncompleteCheckpointError,
        r"model-00002-of-00002.safetensors is missing: according to .* it has 1 of 3 tensors",
    )
    refused(
        sharded.parent / "model-00001-of-00002.safetensors",
        ValueError,
        r"is one shard of several: pass the index",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "text that is not valid JSON"),
        ("[" * 100_000, "text that is not valid JSON"),
        ("[]", "expected an object with a weight_map"),
        ('{"weight_map": {}}', "expected an object with a weight_map"),
        ('{"weight_map": {"a": 3}}', r"'a' is in 3, expected the name of a file in the same"),
        ('{"weight_map": {"a": "../x.safetensors"}}', r"'../x.safetensors', expected the name"),
        ('{"weight_map": {"a": "/etc/passwd"}}', r"'/etc/passwd', expected the name"),
        ('{"weight_map": {"a": ".."}}', r"'..', expected the name"),
    ],
)
def test_an_index_that_is_none_is_refused(text: str, message: str, sharded: Path) -> None:
    sharded.write_text(text)
    refused(sharded, FormatError, message)


def test_a_size_that_is_not_that_of_the_tensors_is_noted(sharded: Path, tmp_path: Path) -> None:
    index = json.loads(sharded.read_text())
    index["metadata"] = {"total_size": 7}
    sharded.write_text(json.dumps(index))
    report = ModelExporter.import_safetensors(sharded, tmp_path / "out.pt")
    assert report.notes == ("the index says 7 bytes of tensors; there are 120",)


@pytest.mark.parametrize("nbytes", [0, 7, 60, -1])
def test_a_truncated_file_is_refused(nbytes: int, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    file = tmp_path / "hub" / "model.safetensors"
    safetensors.torch.save_file({"w": torch.ones(10)}, file)
    file.write_bytes(file.read_bytes()[:nbytes])
    refused(file, FormatError, r"model.safetensors is not a valid safetensors file: ")


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    refused(tmp_path / "hub" / "x.safetensors", FileNotFoundError, "x.safetensors")
    refused(tmp_path / "hub" / ".", FileNotFoundError, "has neither model.safetensors nor")
    refused(tmp_path / "hub" / "x.safetensors.index.json", FileNotFoundError, "index.json")


def test_metadata_of_other_programs_change_nothing(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    metadata = {"format": "pt", "author": "somebody", "w": "v", "model_config": "{"}
    safetensors.torch.save_file({"w": torch.ones(1), "v": torch.zeros(1)}, file, metadata)
    ModelExporter.import_safetensors(file, tmp_path / "out.pt")
    saved = torch.load(tmp_path / "out.pt")
    assert list(saved) == ["model_state_dict"]
    assert_same(
        dict(sorted(saved["model_state_dict"].items())), {"v": torch.zeros(1), "w": torch.ones(1)}
    )
