"""Weights that leave a checkpoint: which these are, and what is in the new file."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.exported_models import CONFIG, Tiny, assert_same, checkpoint, make_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastckpt
from fastckpt import (
    ChecksumError,
    EMAModel,
    ExportReport,
    FormatError,
    MissingChecksumWarning,
    ModelExporter,
)
from fastckpt.export.compact import compact


@pytest.fixture
def model() -> Tiny:
    return make_model()


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
        config_keys=("model_config",),
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
    assert report.config_keys == ()


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


def test_parts_that_lie_between_each_other_do_not_multiply_what_they_are_cut_from(
    tmp_path: Path,
) -> None:
    matrix = torch.arange(64.0 * 64).reshape(64, 64)
    state = {}
    for n in range(64):
        state[f"column.{n}"], state[f"part.{n}"] = matrix[:, n], matrix[1:, n]
    torch.save({"model": state}, tmp_path / "c.pt")
    report = ModelExporter.export_inference_checkpoint(tmp_path / "c.pt", tmp_path / "i.pt")
    assert_same(torch.load(tmp_path / "i.pt")["model_state_dict"], state)
    assert report.nbytes < 2 * matrix.nbytes


@pytest.mark.parametrize("bits", ["conj", "dtype"])
def test_what_is_expanded_is_changed_once(bits: str, tmp_path: Path) -> None:
    """A copy of it would have as many elements as the file claims."""
    expanded = torch.full((3, 1), 2 + 1j).expand(3, 2**40)
    if bits == "conj":
        saved: dict[str, Any] = {"model": {"w": expanded.conj()}}
        value = torch.full((3,), 2 - 1j)
    else:
        average = torch.full((1,), 0.5, dtype=torch.float64).expand(3, 2**40)
        saved = {"model": {"w": expanded.real}, "ema_state_dict": {"w": average}}
        value = torch.full((3,), 0.5)
    torch.save(saved, tmp_path / "c.pt")
    report = ModelExporter.export_inference_checkpoint(
        tmp_path / "c.pt", tmp_path / "i.pt", use_ema=bits == "dtype"
    )
    found = torch.load(tmp_path / "i.pt")["model_state_dict"]["w"]
    assert torch.equal(found[:, 7], value)
    assert (found.shape, found.stride(1)) == ((3, 2**40), 0)
    assert report.nbytes < 2_000
    windows = torch.zeros(2**16, dtype=torch.complex64).as_strided((2**15, 2**15), (1, 1))
    torch.save({"model": {"w": windows.conj()}}, tmp_path / "c.pt")
    with pytest.raises(
        ValueError,
        match=r"'w' overlaps itself .*: 524288 bytes would become 8589934592 in a dense copy",
    ):
        ModelExporter.export_inference_checkpoint(tmp_path / "c.pt", tmp_path / "j.pt")


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
        ("7 names lost the prefixes of torch.compile and DistributedDataParallel"),
    )


def test_two_names_of_the_same_tensor_are_an_error(tmp_path: Path) -> None:
    torch.save({"a.b": torch.ones(1), "a._orig_mod.b": torch.ones(1)}, tmp_path / "c.pt")
    with pytest.raises(
        FormatError, match=r"has both 'a.b' and 'a._orig_mod.b' for the tensor 'a.b'"
    ):
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
    with pytest.raises(ValueError, match=r"'s' in .*torch.sparse_coo.* dense tensors only"):
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
            "4 of 7 tensors are moving averages; the others, buffers and frozen parameters, are the "
            "model's own"
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
