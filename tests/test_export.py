"""Weights that leave a checkpoint: what is in the new files, and what an error or a kill leaves behind."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastckpt
from fastckpt import (
    ChecksumError,
    CommitUnknownError,
    EMAModel,
    ExportReport,
    FormatError,
    IncompleteCheckpointError,
    MissingChecksumWarning,
    ModelExporter,
)
from fastckpt.export import hub, publishing
from fastckpt.export.compact import compact
from fastckpt.export.weights import Weights

CONFIG = {"n_layer": 2, "rates": [0.5, None], "name": "tiny"}


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.embed(x)))
        return result


def checkpoint(path: Path, model: nn.Module, **more: Any) -> Path:
    moments = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    saved = {
        "epoch": 3,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": {"state": moments, "moments": [torch.ones(1000)]},
        "model_config": CONFIG,
        **more,
    }
    torch.save(saved, path)
    return path


@pytest.fixture
def model() -> Tiny:
    torch.manual_seed(0)
    return Tiny()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert torch.equal(found[name], value), name


# Inference checkpoints


def test_an_inference_checkpoint_has_the_weights_and_the_config(
    model: Tiny, tmp_path: Path
) -> None:
    path, output = checkpoint(tmp_path / "c.pt", model), tmp_path / "i.pt"
    report = ModelExporter.export_inference_checkpoint(path, output)
    saved = torch.load(output, weights_only=True)
    assert list(saved) == ["model_state_dict", "model_config"]
    assert saved["model_config"] == CONFIG
    assert_same(saved["model_state_dict"], dict(model.state_dict()))
    assert saved["model_state_dict"]._metadata == model.state_dict()._metadata  # type: ignore[attr-defined]
    Tiny().load_state_dict(saved["model_state_dict"])
    assert report == ExportReport(
        source=str(path),
        outputs=(str(output),),
        source_nbytes=path.stat().st_size,
        nbytes=output.stat().st_size,
        tensors=7,
        has_config=True,
    )
    assert report.source_nbytes is not None
    assert report.nbytes < report.source_nbytes / 2
    assert fastckpt.verify(output).ok


def test_shared_tensors_stay_shared(model: Tiny, tmp_path: Path) -> None:
    path, output = checkpoint(tmp_path / "c.pt", model), tmp_path / "i.pt"
    ModelExporter.export_inference_checkpoint(path, output)
    state = torch.load(output)["model_state_dict"]
    assert state["embed.weight"].data_ptr() == state["head.weight"].data_ptr()


def test_the_config_can_be_left_out(model: Tiny, tmp_path: Path) -> None:
    path, output = checkpoint(tmp_path / "c.pt", model), tmp_path / "i.pt"
    report = ModelExporter.export_inference_checkpoint(path, output, include_config=False)
    assert list(torch.load(output)) == ["model_state_dict"]
    assert not report.has_config


def test_a_checkpoint_can_be_replaced_by_its_weights(model: Tiny, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "c.pt", model)
    ModelExporter.export_inference_checkpoint(path, path)
    assert_same(torch.load(path)["model_state_dict"], dict(model.state_dict()))


@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_state"])
def test_a_state_dict_is_found_where_scripts_put_it(key: str | None, tmp_path: Path) -> None:
    state = {"w": torch.arange(3.0)}
    torch.save(state if key is None else {"step": 1, key: state}, tmp_path / "c.pt")
    ModelExporter.export_inference_checkpoint(tmp_path / "c.pt", tmp_path / "i.pt")
    assert_same(torch.load(tmp_path / "i.pt")["model_state_dict"], state)


def test_a_slice_does_not_drag_its_storage_along(tmp_path: Path) -> None:
    large = torch.arange(100_000.0)
    state = {
        "slice": large[10:20],
        "column": large.view(1000, 100)[:, 30],
        "transposed": large[1000:1012].view(3, 4).T,
        "expanded": large[:1].expand(1000),
        "overlapping": large[500:510],
        "inside": large[505:508],
        "interleaved": large[3000:3010:2],
        "between": large[3001:3011:2],
        "empty": large[7:7],
        "parameter": nn.Parameter(large[2000:2003]),
    }
    torch.save({"model": state}, tmp_path / "c.pt")
    report = ModelExporter.export_inference_checkpoint(tmp_path / "c.pt", tmp_path / "i.pt")
    found = torch.load(tmp_path / "i.pt")["model_state_dict"]
    assert_same(found, {name: value.detach() for name, value in state.items()})
    assert found["transposed"].stride() == (1, 4)
    assert found["inside"].data_ptr() == found["overlapping"].data_ptr() + 5 * 4
    assert report.nbytes < 16_000  # `column` has 4,000 bytes of its own, each record its frame.
    storages = {name: value.untyped_storage().nbytes() for name, value in found.items()}
    assert storages == {
        "slice": 40,
        "column": 4000,
        "transposed": 48,
        "expanded": 4,
        "overlapping": 40,
        "inside": 40,
        "interleaved": 20,
        "between": 20,
        "empty": 0,
        "parameter": 12,
    }
    assert not found["parameter"].requires_grad


@st.composite
def views(draw: st.DrawFn) -> dict[str, Tensor]:
    storages = [torch.arange(float(draw(st.integers(0, 30)))) for _ in range(2)]
    result = {}
    for i in range(draw(st.integers(1, 6))):
        base = draw(st.sampled_from(storages))
        first = draw(st.integers(0, len(base)))
        last = draw(st.integers(first, len(base)))
        result[str(i)] = base[first : last : draw(st.integers(1, 4))]
    return result


@given(views())
def test_compact_tensors_have_the_same_values_and_share_what_they_shared(
    tensors: dict[str, Tensor],
) -> None:
    found = compact(tensors)
    assert list(found) == list(tensors)
    for name, value in tensors.items():
        assert torch.equal(found[name], value)
    used: set[int] = set()
    for value in tensors.values():
        used |= set(range(value.data_ptr(), value.data_ptr() + value.numel() * 4))
    storages = {id(v.untyped_storage()._cdata): v.untyped_storage() for v in found.values()}
    kept = {storage._cdata: storage.nbytes() for storage in storages.values()}
    ends = [
        (v.data_ptr(), v.data_ptr() + (v.numel() - 1) * v.stride(0) * 4 + 4)
        for v in tensors.values()
        if v.numel()
    ]
    assert sum(kept.values()) <= sum(last - first for first, last in ends)
    # A write through one name is seen through all that shared the element.
    for name, value in tensors.items():
        if value.numel():
            value[0] = -1.0
            found[name][0] = -1.0
            for other, whole in tensors.items():
                assert torch.equal(found[other], whole)


def test_names_are_those_of_the_bare_model(model: Tiny, tmp_path: Path) -> None:
    partly: Any = Tiny()
    partly.norm = torch.compile(partly.norm, backend="eager")
    wrapped: Any = torch.compile(nn.DataParallel(partly), backend="eager")
    path = checkpoint(tmp_path / "c.pt", wrapped)
    report = ModelExporter.export_inference_checkpoint(path, tmp_path / "i.pt")
    state = torch.load(tmp_path / "i.pt")["model_state_dict"]
    assert list(state) == list(model.state_dict())
    assert set(state._metadata) == set(model.state_dict()._metadata)  # type: ignore[attr-defined]
    assert report.notes == (
        (
            "7 names are those of the bare model: the parts that torch.compile and "
            "DistributedDataParallel put in front of them are left out"
        ),
    )


def test_two_names_of_the_same_tensor_are_an_error(tmp_path: Path) -> None:
    torch.save({"a.b": torch.ones(1), "a._orig_mod.b": torch.ones(1)}, tmp_path / "c.pt")
    with pytest.raises(FormatError, match=r"'a.b' and 'a._orig_mod.b', which both mean .*'a.b'"):
        ModelExporter.export_inference_checkpoint(tmp_path / "c.pt", tmp_path / "i.pt")


def test_the_optimizer_is_not_read(model: Tiny, tmp_path: Path) -> None:
    marker = torch.full((50,), 7.25)
    path = checkpoint(tmp_path / "c.pt", model, optimizer_state_dict={"m": marker})
    data = path.read_bytes()
    at = data.index(bytes(marker.view(torch.uint8).numpy()))
    path.write_bytes(data[:at] + b"\xff" + data[at + 1 :])
    assert not fastckpt.verify(path).ok
    ModelExporter.export_inference_checkpoint(path, tmp_path / "i.pt")
    assert_same(torch.load(tmp_path / "i.pt")["model_state_dict"], dict(model.state_dict()))


def test_a_weight_that_has_changed_is_found_and_nothing_is_written(
    model: Tiny, tmp_path: Path
) -> None:
    path = checkpoint(tmp_path / "c.pt", model)
    data = path.read_bytes()
    at = data.index(bytes(model.embed.weight.detach().reshape(-1).view(torch.uint8).numpy()))
    path.write_bytes(data[: at + 2] + bytes([data[at + 2] ^ 1]) + data[at + 3 :])
    for export, output in (
        (ModelExporter.export_inference_checkpoint, tmp_path / "i.pt"),
        (ModelExporter.export_safetensors, tmp_path / "i.safetensors"),
    ):
        with pytest.raises(ChecksumError, match=r"embed\.weight"):
            export(path, output)
    assert os.listdir(tmp_path) == ["c.pt"]


def test_a_file_without_checksums_is_exported_with_a_warning(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(compute_crc32=False)
    try:
        torch.save({"w": torch.ones(2)}, tmp_path / "c.pt")
    finally:
        torch.serialization.set_crc32_options(compute_crc32=True)
    with pytest.warns(MissingChecksumWarning, match=r"has no checksums for its tensors"):
        ModelExporter.export_inference_checkpoint(tmp_path / "c.pt", tmp_path / "i.pt")
    assert_same(torch.load(tmp_path / "i.pt")["model_state_dict"], {"w": torch.ones(2)})


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants:UserWarning")
def test_what_only_torch_can_build_is_exported_all_the_same(tmp_path: Path) -> None:
    state = {"w": torch.arange(6.0), "s": torch.eye(3).to_sparse()}
    torch.save({"model": state, "optimizer": torch.ones(1000)}, tmp_path / "c.pt")
    ModelExporter.export_inference_checkpoint(tmp_path / "c.pt", tmp_path / "i.pt")
    found = torch.load(tmp_path / "i.pt")["model_state_dict"]
    assert torch.equal(found["s"].to_dense(), torch.eye(3))
    assert torch.equal(found["w"], state["w"])
    with pytest.raises(ValueError, match=r"'s' in .* dense tensors only: .*torch.sparse_coo"):
        ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "i.safetensors")


def test_what_holds_no_model_is_refused(tmp_path: Path) -> None:
    torch.save({"step": 1, "loss": 0.5}, tmp_path / "c.pt")
    with pytest.raises(FormatError, match=r"no state dict of a model in .*c.pt: .*'step', 'loss'"):
        ModelExporter.export_inference_checkpoint(tmp_path / "c.pt", tmp_path / "i.pt")
    with pytest.raises(FileNotFoundError):
        ModelExporter.export_inference_checkpoint(tmp_path / "none.pt", tmp_path / "i.pt")
    (tmp_path / "text.pt").write_text("no archive")
    with pytest.raises(FormatError):
        ModelExporter.export_inference_checkpoint(tmp_path / "text.pt", tmp_path / "i.pt")


# Averages


def averaged(model: Tiny, dtype: torch.dtype = torch.float32) -> EMAModel:
    model.to(dtype)
    ema = EMAModel(model, 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    ema.update()
    return ema


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_averages_are_exported_as_apply_would_put_them(
    dtype: torch.dtype, model: Tiny, tmp_path: Path
) -> None:
    ema = averaged(model, dtype)
    torch.save({"model": model.state_dict(), "ema_state_dict": ema.state_dict()}, tmp_path / "c.pt")
    report = ModelExporter.export_inference_checkpoint(
        tmp_path / "c.pt", tmp_path / "i.pt", use_ema=True
    )
    state = torch.load(tmp_path / "i.pt")["model_state_dict"]
    with ema.applied():
        assert_same(state, dict(model.state_dict()))
    assert state["embed.weight"].data_ptr() == state["head.weight"].data_ptr()
    assert report.notes == (
        (
            "4 of 7 tensors are moving averages; the others are the model's own: buffers and frozen "
            "parameters"
        ),
    )


def test_averages_of_swa_utils_and_plain_dicts_are_exported(model: Tiny, tmp_path: Path) -> None:
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    reference.update_parameters(model)
    with torch.no_grad():
        model.norm.weight.add_(1)
    reference.update_parameters(model)
    expected = dict(reference.module.state_dict())
    for ema in (reference.state_dict(), dict(reference.module.state_dict())):
        torch.save({"model": model.state_dict(), "ema_state_dict": ema}, tmp_path / "c.pt")
        ModelExporter.export_inference_checkpoint(
            tmp_path / "c.pt", tmp_path / "i.pt", use_ema=True
        )
        assert_same(torch.load(tmp_path / "i.pt")["model_state_dict"], expected)


def test_averages_that_do_not_fit_are_named(model: Tiny, tmp_path: Path) -> None:
    def refused(message: str, **more: Any) -> None:
        torch.save({"model": model.state_dict(), **more}, tmp_path / "c.pt")
        with pytest.raises(FormatError, match=message):
            ModelExporter.export_inference_checkpoint(
                tmp_path / "c.pt", tmp_path / "i.pt", use_ema=True
            )

    refused(r"has no moving averages: expected a dict under the key 'ema_state_dict'")
    refused(r"neither the state of an EMAModel nor", ema_state_dict={"decay": 0.5})
    refused(r"does not have: 'lost'$", ema_state_dict={"lost": torch.ones(1)})
    refused(
        r"the average of 'norm.weight' in .* \(1,\), expected the model's, \(4,\)",
        ema_state_dict={"norm.weight": torch.ones(1)},
    )


# Safetensors


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
    with pytest.raises(ValueError, match=r"no dtype torch.complex128: 'z'; a .pt file holds it"):
        ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "m.safetensors")
    torch.save({"a": torch.ones(1), "x._extra_state": {"scale": 1.0}}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"'x._extra_state' in .* an object of type dict"):
        ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "m.safetensors")
    assert os.listdir(tmp_path) == ["c.pt"]


def test_a_file_of_a_few_bytes_cannot_ask_for_any_amount_of_memory(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(1 << 40)}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"'w' in .* has 4398046511104 bytes .* made of 4: "):
        ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "m.safetensors")
    report = ModelExporter.export_inference_checkpoint(tmp_path / "c.pt", tmp_path / "i.pt")
    assert report.nbytes < 2000


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
        "stored once under another name: 'c'",
        "overlap in memory, and are stored as separate tensors: 'a', 'b'",
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


# Damaged and hostile safetensors


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    state = {"a": torch.ones(10), "b": torch.ones(10), "c": torch.ones(10)}
    torch.save(state, tmp_path / "c.pt")
    ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "hub", max_shard_nbytes=80)
    return tmp_path / "hub" / "model.safetensors.index.json"


def refused(source: Path, kind: type[Exception], message: str) -> None:
    output = source.parent.parent / "out.pt"
    with pytest.raises(kind, match=message):
        ModelExporter.import_safetensors(source, output)
    assert not output.exists()


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
        r"model-00002-of-00002.safetensors is missing: .* it has 1 of 3 tensors",
    )
    refused(
        sharded.parent / "model-00001-of-00002.safetensors",
        ValueError,
        r"is one shard of several: give the index",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "text that is no JSON"),
        ("[" * 100_000, "text that is no JSON"),
        ("[]", "expected an object with a weight_map"),
        ('{"weight_map": {}}', "expected an object with a weight_map"),
        ('{"weight_map": {"a": 3}}', r"'a' is in 3, expected the name of a file beside it"),
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
    refused(file, FormatError, r"model.safetensors is no good safetensors file: ")


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


# Failing in the middle


def limited_export(path: Path, output: Path, limit_nbytes: int, **options: int) -> str:
    """Export in a process that may not write files larger than this; return what it raised."""
    script = (
        "import resource, signal, sys, errno, fastckpt\n"
        "from fastckpt.export import publishing\n"
        "import fastckpt.export.hub, safetensors.torch\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_nbytes}, {limit_nbytes}))\n"
        "try:\n"
        f"    fastckpt.ModelExporter.export_safetensors({str(path)!r}, {str(output)!r}, **{options})\n"
        "except OSError as error:\n"
        "    print(errno.errorcode[error.errno])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_disk_that_takes_no_more_leaves_nothing(tmp_path: Path) -> None:
    state = {"small": torch.ones(10), "large": torch.ones(50_000)}
    torch.save(state, tmp_path / "c.pt")
    (tmp_path / "hub").mkdir()
    # The first shard fits, the second does not.
    found = limited_export(
        tmp_path / "c.pt", tmp_path / "hub", limit_nbytes=100_000, max_shard_nbytes=1000
    )
    assert found == "EFBIG"
    assert os.listdir(tmp_path / "hub") == []


def test_an_error_while_shards_become_visible_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.ones(10), "b": torch.ones(10)}, tmp_path / "c.pt")
    real = os.rename

    def fail_at_the_index(source: str, target: str) -> None:
        if target.endswith(".json"):
            raise OSError(5, "Input/output error", target)
        real(source, target)

    monkeypatch.setattr(os, "rename", fail_at_the_index)
    with pytest.raises(OSError, match=r"Input/output error"):
        ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "hub", max_shard_nbytes=1)
    assert os.listdir(tmp_path / "hub") == []


def test_files_become_visible_in_order_each_after_it_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.ones(10), "b": torch.ones(10)}, tmp_path / "c.pt")
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(fd: int) -> None:
        events.append(f"fsync {os.path.basename(os.readlink(f'/proc/self/fd/{fd}'))}")
        fsync(fd)

    def note_rename(source: str, target: str) -> None:
        events.append(f"rename {os.path.basename(target)}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "hub", max_shard_nbytes=1)
    names = [
        *(f"model-0000{i}-of-00002.safetensors" for i in (1, 2)),
        "model.safetensors.index.json",
    ]
    assert events == [*(f"fsync {n}" for n in names), *(f"rename {n}" for n in names)]


def test_a_kill_leaves_nothing_that_looks_whole_and_the_next_export_clears_it(
    tmp_path: Path,
) -> None:
    torch.save({"a": torch.ones(10), "b": torch.ones(10)}, tmp_path / "c.pt")
    script = (
        "import os, signal, sys, fastckpt\n"
        "from fastckpt.export import hub\n"
        "def die(*_):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "hub.publish = die\n"
        "fastckpt.ModelExporter.export_safetensors(*sys.argv[1:], max_shard_nbytes=1)\n"
    )
    args = [sys.executable, "-c", script, str(tmp_path / "c.pt"), str(tmp_path / "hub")]
    assert subprocess.run(args, check=False).returncode == -signal.SIGKILL
    (left,) = os.listdir(tmp_path / "hub")
    assert left.startswith(".fastckpt-export-")
    assert len(os.listdir(tmp_path / "hub" / left)) == 3
    refused(tmp_path / "hub" / ".", FileNotFoundError, "has neither")
    ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "hub")
    assert os.listdir(tmp_path / "hub") == ["model.safetensors"]


def test_the_stage_of_an_export_that_runs_is_left_alone(tmp_path: Path) -> None:
    with publishing.staging(str(tmp_path)) as first, publishing.staging(str(tmp_path)) as second:
        assert first != second
        assert os.path.isdir(first)
    assert os.listdir(tmp_path) == []


def test_a_stage_of_another_machine_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / ".fastckpt-export-00000000-abcdefgh"
    other.mkdir()
    with publishing.staging(str(tmp_path)):
        pass
    assert os.listdir(tmp_path) == [other.name]


def test_a_directory_that_cannot_be_synced_leaves_none_of_several_and_the_only_one_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.ones(10), "b": torch.ones(10)}, tmp_path / "c.pt")
    (tmp_path / "hub").mkdir()

    def fail(_: object, directory: str) -> None:
        raise OSError(5, "Input/output error", directory)

    monkeypatch.setattr(publishing, "Commit", type("Failing", (), {"sync_directory": fail}))
    with pytest.raises(OSError, match=r"Input/output error"):
        ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "hub", max_shard_nbytes=1)
    assert os.listdir(tmp_path / "hub") == []
    with pytest.raises(CommitUnknownError, match=r"in place, but its directory could not"):
        ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "hub")
    assert os.listdir(tmp_path / "hub") == ["model.safetensors"]


def test_a_full_disk_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Weights({"w": torch.empty(0)}, None, "c.pt", 1)
    monkeypatch.setattr(hub, "sum", lambda _: 1 << 60, raising=False)
    with pytest.raises(OSError, match=r"[Nn]o space|free") as caught:
        hub.write_safetensors(weights, tmp_path / "m.safetensors", 100)
    assert caught.value.errno == 28
    assert os.listdir(tmp_path) == []


def test_what_is_not_installed_is_named_with_the_extra(
    model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint(tmp_path / "c.pt", model)
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    words = r"a .safetensors file needs safetensors: pip install 'fastckpt\[export\]'"
    with pytest.raises(ImportError, match=words):
        ModelExporter.export_safetensors(path, tmp_path / "m.safetensors")
    with pytest.raises(ImportError, match=words):
        ModelExporter.import_safetensors(path, tmp_path / "m.pt")


def test_the_memory_is_that_of_the_weights_not_of_the_checkpoint(tmp_path: Path) -> None:
    weights, rest = torch.ones(1 << 20), torch.ones(32 << 20)  # 4 MiB and 128 MiB
    torch.save({"model": {"w": weights}, "optimizer": rest}, tmp_path / "c.pt")
    script = (
        "import resource, sys, fastckpt, torch\n"
        "from fastckpt import ModelExporter\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "ModelExporter.export_inference_checkpoint(*sys.argv[1:])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "c.pt"), str(tmp_path / "i.pt")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 60_000  # KiB
