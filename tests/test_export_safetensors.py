"""Weights exported as safetensors: one file or shards, there and back again."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests.exported_models import CONFIG, Tiny, assert_same, checkpoint, make_model

from fastckpt import FormatError, ModelExporter


@pytest.fixture
def model() -> Tiny:
    return make_model()


def test_one_file_is_what_the_library_and_the_hub_expect(model: Tiny, tmp_path: Path) -> None:
    path, output = checkpoint(tmp_path / "c.pt", model), tmp_path / "hub"
    report = ModelExporter.export_safetensors(path, output)
    file = output / "model.safetensors"
    assert os.listdir(output) == ["model.safetensors"]
    assert report.outputs == (str(file),)
    assert report.nbytes == file.stat().st_size
    assert report.tensors == 7
    expected = dict(model.state_dict())
    # Of the names that share memory save_model keeps the first in the alphabet, too.
    expected.pop("head.weight")
    assert_same(
        dict(sorted(safetensors.torch.load_file(file).items())), dict(sorted(expected.items()))
    )
    with safetensors.safe_open(file, "pt") as opened:
        assert opened.metadata() == {
            "format": "pt",
            "head.weight": "embed.weight",
            "fastckpt.model_config": json.dumps(CONFIG),
        }
    other = Tiny()
    assert [*map(list, safetensors.torch.load_model(other, file))] == [[], []]
    assert_same(dict(other.state_dict()), dict(model.state_dict()))
    safetensors.torch.save_model(model, str(tmp_path / "theirs.safetensors"))
    assert set(safetensors.torch.load_file(tmp_path / "theirs.safetensors")) == set(expected)


def test_the_mode_of_the_file_is_that_of_any_new_file(model: Tiny, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "c.pt", model)
    old = os.umask(0o027)
    try:
        ModelExporter.export_safetensors(path, tmp_path / "m.safetensors")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "m.safetensors").stat().st_mode) == 0o640


def test_a_large_model_is_sharded_with_an_index(tmp_path: Path) -> None:
    state = {str(i): torch.full((n,), float(i)) for i, n in enumerate([6, 6, 2, 60, 2, 2])}
    state["tied"] = state["1"]
    torch.save({"model": state, "model_config": CONFIG}, tmp_path / "c.pt")
    report = ModelExporter.export_safetensors(
        tmp_path / "c.pt", tmp_path / "hub", max_shard_nbytes=40
    )
    names = [f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)]
    assert [os.path.basename(path) for path in report.outputs] == [
        *names,
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "hub" / "model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {
            "total_size": 78 * 4,
            "tied": "1",
            "fastckpt.model_config": json.dumps(CONFIG),
        },
        "weight_map": dict(zip("012345", [names[i] for i in (0, 1, 1, 2, 3, 3)], strict=True)),
    }
    for name in names:
        shard = safetensors.torch.load_file(tmp_path / "hub" / name)
        assert set(shard) == {key for key, file in index["weight_map"].items() if file == name}
        for key, value in shard.items():
            assert torch.equal(value, state[key])
        with safetensors.safe_open(tmp_path / "hub" / name, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("max_shard_nbytes", [1, 100, 10_000])
def test_there_and_back_again(max_shard_nbytes: int, model: Tiny, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "c.pt", model)
    ModelExporter.export_safetensors(path, tmp_path / "hub", max_shard_nbytes=max_shard_nbytes)
    report = ModelExporter.import_safetensors(tmp_path / "hub", tmp_path / "back.pt")
    saved = torch.load(tmp_path / "back.pt", weights_only=True)
    assert saved["model_config"] == CONFIG
    state = saved["model_state_dict"]
    assert_same(dict(sorted(state.items())), dict(sorted(model.state_dict().items())))
    assert state["embed.weight"].data_ptr() == state["head.weight"].data_ptr()
    assert report.tensors == 7
    assert report.nbytes == (tmp_path / "back.pt").stat().st_size
    assert report.source_nbytes == sum(file.stat().st_size for file in (tmp_path / "hub").iterdir())


def test_every_dtype_goes_there_and_back(tmp_path: Path) -> None:
    dtypes = [*_dtypes_of_safetensors(), torch.float8_e4m3fn]
    state = {str(dtype): torch.tensor([0, 1, 2]).to(dtype) for dtype in dtypes}
    state["nan"] = torch.tensor([0x7FC01234, -0x80000000], dtype=torch.int32).view(torch.float32)
    torch.save(state, tmp_path / "c.pt")
    ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "m.safetensors")
    ModelExporter.import_safetensors(tmp_path / "m.safetensors", tmp_path / "back.pt")
    found = torch.load(tmp_path / "back.pt")["model_state_dict"]
    assert set(found) == set(state)
    for name, value in state.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name].view(torch.uint8), value.view(torch.uint8)), name


def _dtypes_of_safetensors() -> list[torch.dtype]:
    names = "float64 float32 float16 bfloat16 complex64 int64 int32 int16 int8 uint8 uint16 bool"
    return [getattr(torch, name) for name in names.split()]


def test_what_the_format_cannot_hold_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "z": torch.ones(1, dtype=torch.complex128)}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"no dtype torch.complex128: 'z'; export to a .pt file"):
        ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "m.safetensors")
    torch.save({"a": torch.ones(1), "x._extra_state": {"scale": 1.0}}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"'x._extra_state' in .* an object of type dict"):
        ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "m.safetensors")
    assert os.listdir(tmp_path) == ["c.pt"]


def test_a_file_of_a_few_bytes_cannot_ask_for_any_amount_of_memory(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(1 << 40)}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"'w' in .*: 4 bytes would become 4398046511104 "):
        ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "m.safetensors")
    report = ModelExporter.export_inference_checkpoint(tmp_path / "c.pt", tmp_path / "i.pt")
    assert report.nbytes < 2000
    # Each alone is not much.
    many = {f"w{n}": torch.ones(1).expand(1 << 22) for n in range(30)}
    torch.save(many, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"overlap in memory: 120 bytes would become 503316480 "):
        ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "m.safetensors")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.safetensors")
    with pytest.raises(FormatError, match=r"m.safetensors .* not a regular file"):
        ModelExporter.import_safetensors(tmp_path / "m.safetensors", tmp_path / "out.pt")


def test_tensors_that_overlap_in_part_are_stored_separately(tmp_path: Path) -> None:
    base = torch.arange(10.0)
    state = {"a": base[:6], "b": base[4:], "c": base[:6]}
    torch.save(state, tmp_path / "c.pt")
    report = ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "m.safetensors")
    found = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert_same(dict(sorted(found.items())), {"a": base[:6], "b": base[4:]})
    assert report.notes == (
        "stored once, under another name: 'c'",
        "overlapping in memory, stored as separate tensors: 'a', 'b'",
    )


def test_a_config_that_json_would_change_is_left_out_and_the_report_says_so(
    tmp_path: Path,
) -> None:
    for config in ({"shape": (1, 2)}, {1: 2}, {"x": float("nan")}, {"x": torch.float16}):
        torch.save({"model": {"w": torch.ones(1)}, "model_config": config}, tmp_path / "c.pt")
        report = ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "m.safetensors")
        assert not report.has_config
        assert report.notes == ("model_config is left out: it has values that JSON cannot hold",)
        with safetensors.safe_open(tmp_path / "m.safetensors", "pt") as opened:
            assert opened.metadata() == {"format": "pt"}


def test_several_files_replace_nothing_and_one_replaces_one(model: Tiny, tmp_path: Path) -> None:
    path, directory = checkpoint(tmp_path / "c.pt", model), tmp_path / "hub"
    ModelExporter.export_safetensors(path, directory)
    ModelExporter.export_safetensors(path, directory)
    with pytest.raises(FileExistsError) as caught:
        ModelExporter.export_safetensors(path, directory, max_shard_nbytes=100)
    assert caught.value.filename == str(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    ModelExporter.export_safetensors(path, directory, max_shard_nbytes=100)
    before = {file.name: file.read_bytes() for file in directory.iterdir()}
    for max_shard_nbytes in (100, 10_000):
        with pytest.raises(FileExistsError):
            ModelExporter.export_safetensors(path, directory, max_shard_nbytes=max_shard_nbytes)
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before
