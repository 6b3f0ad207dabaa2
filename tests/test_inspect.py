"""`fastckpt.inspect` of one file: what it holds, against torch, and what cannot be looked into."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.inspected_files import inspected, inspected_directory, managed, model, saved
from tests.specimens import quiet

import fastckpt
from fastckpt._inspect.report import TensorRow, Total
from fastckpt.cli.inspect import Sort
from fastckpt.cli.inspect_output import file_document, file_lines
from fastckpt.errors import CheckpointError, ChecksumError, FormatError, UncoveredFormatError

# Files.


def test_tensors_of_a_managed_checkpoint(tmp_path: Path) -> None:
    contents = saved(managed(7, val_loss=2.5), tmp_path / "a.pt")
    assert contents.format == "torch"
    assert contents.nbytes == (tmp_path / "a.pt").stat().st_size
    assert (contents.step, contents.epoch) == (7, 1)
    assert contents.tensors[0] == TensorRow(
        name="model_state_dict.transformer.wte.weight",
        group="model",
        module="transformer",
        kind="tensor",
        dtype="bfloat16",
        shape=(8, 4),
        nbytes=64,
        storages=("0",),
    )
    assert [(row.name, row.group, row.module) for row in contents.tensors[3:6]] == [
        ("optimizer_state_dict.state.0.step", "optimizer", "step"),
        ("optimizer_state_dict.state.0.exp_avg", "optimizer", "exp_avg"),
        ("optimizer_state_dict.state.1.step", "optimizer", "step"),
    ]
    assert contents.tensors[-1].name == "rng_states.torch"
    assert contents.tensors[-1].group == "other"


def test_totals(tmp_path: Path) -> None:
    contents = saved(managed(7), tmp_path / "a.pt")
    assert contents.groups() == [
        Total("model", 3, 80, 64 + 64 + 128, 256),
        Total("optimizer", 6, 83, 12 + 256, 268),
        Total("other", 1, 16, 64, 64),
    ]
    assert contents.modules("model") == [
        Total("transformer", 2, 48, 128, 128),
        Total("lm_head", 1, 32, 128, 128),
    ]
    assert contents.modules("optimizer") == [
        Total("step", 3, 3, 12, 12),
        Total("exp_avg", 3, 80, 256, 256),
    ]
    assert contents.total == Total("total", 10, 179, 588, 588)


def test_plain_values_and_metrics(tmp_path: Path) -> None:
    contents = saved(managed(7, val_loss=2.5, acc=1), tmp_path / "a.pt")
    assert contents.metrics == {"val_loss": 2.5, "acc": 1}
    assert contents.values == {
        "epoch": 1,
        "global_step": 7,
        "optimizer_state_dict.param_groups.0.lr": 0.5,
        "optimizer_state_dict.param_groups.0.betas": [0.9, 0.95],
        "scheduler_state_dict.last_epoch": 7,
        "metrics.val_loss": 2.5,
        "metrics.acc": 1,
        "rng_states.python.0": 3,
        "rng_states.python.2": None,
        "config.metric_name": "val_loss",
        "config.save_total_limit": 5,
        "model_config.n_layer": 12,
        "model_config.dtype": "torch.bfloat16",
    }
    assert contents.omitted == {"metrics_history": 1, "rng_states.python.1": 625}


def test_metrics_at_the_top_and_from_numpy(tmp_path: Path) -> None:
    import numpy as np

    root = {
        "model": model(),
        "iter_num": np.int64(9),
        "val_loss": np.float64(2.25),
        "acc": np.float32(0.5),
        "config": {"lr": 0.1},
        "best": True,
    }
    contents = saved(root, tmp_path / "a.pt")
    assert contents.step == 9
    assert contents.metrics == {"val_loss": 2.25, "acc": 0.5}


def test_shared_storages_are_counted_once(tmp_path: Path) -> None:
    tied = torch.ones(8, 4)
    large = torch.zeros(100)
    root = {"wte": tied, "lm_head": tied, "row": tied[0], "view": large[:10]}
    contents = saved(root, tmp_path / "a.pt")
    assert contents.total == Total("total", 4, 32 + 32 + 4 + 10, 4 * 78, 128 + 400)
    assert [row.shares_with for row in contents.tensors] == [None, "wte", "wte", None]
    expanded = saved({"w": torch.ones(1).expand(1000)}, tmp_path / "b.pt")
    assert (expanded.total.nbytes, expanded.total.storage_nbytes) == (4000, 4)


def test_a_common_beginning_of_all_names_is_no_module(tmp_path: Path) -> None:
    root = {"module.a.weight": torch.ones(1), "module.b.weight": torch.ones(1)}
    modules = saved(root, tmp_path / "a.pt").modules("model")
    assert [total.name for total in modules] == ["module.a", "module.b"]
    blocks = {f"h.{number}.weight": torch.ones(1) for number in range(50)}
    assert [total.name for total in saved(blocks, tmp_path / "a.pt").modules("model")] == ["h"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_optimizers(wrapped: bool, tmp_path: Path) -> None:
    state = managed(1)["optimizer_state_dict"]
    # A list of two is what nanochat saved before 2026-01-29.
    contents = saved([state, state] if wrapped else state, tmp_path / "optim_000100_rank0.pt")
    assert {row.group for row in contents.tensors} == {"optimizer"}
    assert contents.step == 100
    assert "state" not in str(contents.values.keys() - {"param_groups"})


def test_tensors_that_only_torch_builds(tmp_path: Path) -> None:
    with quiet():
        root = {
            "sparse": torch.eye(3).to_sparse(),
            "csr": torch.eye(3, dtype=torch.float64).to_sparse_csr(),
            "conjugate": torch.ones(2, dtype=torch.complex64).conj(),
            "quantized": torch.quantize_per_tensor(torch.ones(5), 0.1, 0, torch.qint8),
            "meta": torch.empty(3, device="meta"),
            "buffer": torch.nn.Buffer(torch.ones(2, 2)),
            "parameter": torch.nn.Parameter(torch.ones(2)),
        }
        contents = saved(root, tmp_path / "a.pt")
    assert [(row.name, row.kind, row.dtype, row.shape, row.nbytes) for row in contents.tensors] == [
        ("sparse", "sparse", "float32", (3, 3), 2 * 3 * 8 + 3 * 4),
        ("csr", "sparse", "float64", (3, 3), 4 * 8 + 3 * 8 + 3 * 8),
        ("conjugate", "tensor", "complex64", (2,), 16),
        ("quantized", "quantized", "qint8", (5,), 5),
        ("meta", "meta", "float32", (3,), 0),
        ("buffer", "tensor", "float32", (2, 2), 16),
        ("parameter", "parameter", "float32", (2,), 8),
    ]
    assert {row.group for row in contents.tensors} == {"model"}
    assert contents.total.storage_nbytes == sum(contents.storage_nbytes.values())


def test_a_module_that_was_saved_whole_and_a_storage(tmp_path: Path) -> None:
    contents = saved(torch.nn.Linear(2, 3), tmp_path / "a.pt")
    assert [(row.name, row.kind) for row in contents.tensors] == [
        ("_parameters.weight", "parameter"),
        ("_parameters.bias", "parameter"),
    ]
    contents = saved({"s": torch.ones(3).untyped_storage()}, tmp_path / "a.pt")
    assert [(row.kind, row.shape, row.nbytes) for row in contents.tensors] == [
        ("storage", (12,), 12)
    ]


def test_the_meta_of_a_step_is_read_with_its_model(tmp_path: Path) -> None:
    meta = {
        "step": 100,
        "val_bpb": 0.875,
        "model_config": {"n_layer": 12},
        "device_batch_size": 32,
        "loop_state": {"min_val_bpb": float("inf"), "total_training_time": 60.5},
    }
    fastckpt.save_checkpoint(tmp_path, 100, model(), None, meta)
    contents = inspected(tmp_path / "model_000100.pt")
    assert contents.meta == str(tmp_path / "meta_000100.json")
    assert contents.step == 100
    assert contents.metrics == {
        "val_bpb": 0.875,
        "loop_state.min_val_bpb": float("inf"),
        "loop_state.total_training_time": 60.5,
    }
    assert contents.values["model_config.n_layer"] == 12


@pytest.mark.parametrize("broken", ["[" * 100_000, "{", '"\udcff"'])
def test_a_broken_meta_does_not_hide_the_model(broken: str, tmp_path: Path) -> None:
    fastckpt.save_checkpoint(tmp_path, 100, model(), None, {"step": 100})
    meta = tmp_path / "meta_000100.json"
    meta.write_bytes(broken.encode("utf-8", "surrogateescape"))
    contents = inspected(tmp_path / "model_000100.pt")
    assert len(contents.tensors) == 3
    assert contents.problem is not None
    assert contents.problem.startswith(f"{meta} is not a meta file: ")


def test_tensors_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.arange(4000.0)}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert inspected(path).tensors[0].shape == (4000,)


def test_no_torch_is_imported(tmp_path: Path) -> None:
    torch.save(managed(3), tmp_path / "a.pt")
    fastckpt.save_checkpoint(tmp_path, 100, model(), None, {"step": 100})
    safetensors.torch.save_file(dict(model()), tmp_path / "a.safetensors")
    script = (
        "import sys, fastckpt\n"
        "for path in sys.argv[1:]: fastckpt.inspect(path)\n"
        "heavy = {'torch', 'numpy', 'rich', 'typer', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    paths = [tmp_path, tmp_path / "a.pt", tmp_path / "a.safetensors"]
    subprocess.run([sys.executable, "-c", script, *map(str, paths)], check=True, timeout=200)


# What cannot be looked into.


def test_files_before_torch_1_6(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UncoveredFormatError, match=r"is a file of torch before 1\.6") as caught:
        fastckpt.inspect(path)
    assert caught.value.hint.startswith("fastckpt.load reads it; saved again")


def test_torchscript(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    with quiet():
        traced = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(2))  # type: ignore[no-untyped-call]
        torch.jit.save(traced, path)
    with pytest.raises(UncoveredFormatError, match="is a TorchScript archive") as caught:
        fastckpt.inspect(path)
    assert "torch.jit.load(path).state_dict()" in caught.value.hint


def test_pickles_of_other_protocols(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(2)}, path, pickle_protocol=4)
    with pytest.raises(UncoveredFormatError, match="protocol") as caught:
        fastckpt.inspect(path)
    assert "only if you trust who made it" in caught.value.hint


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(b"no checkpoint at all")
    with pytest.raises(FormatError, match="is not a checkpoint"):
        fastckpt.inspect(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/text", "hello")
    with pytest.raises(FormatError, match=r"data\.pkl"):
        fastckpt.inspect(path)
    torch.save({"name": torch.ones(2)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(b"name")] ^= 1
    path.write_bytes(data)
    with pytest.raises(ChecksumError, match=r"data\.pkl"):
        fastckpt.inspect(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError):
        fastckpt.inspect(path)
    with pytest.raises(FileNotFoundError):
        fastckpt.inspect(tmp_path / "nothing.pt")


def _records_of_a_checkpoint() -> dict[str, bytes]:
    buffer = io.BytesIO()
    with quiet():
        torch.save({**managed(3, val_loss=2.5), "sparse": torch.eye(2).to_sparse()}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


_RECORDS = _records_of_a_checkpoint()
_PICKLE = next(name for name in _RECORDS if name.endswith("/data.pkl"))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(_RECORDS[_PICKLE]) - 1), st.integers(0, 255)),
        min_size=1,
        max_size=4,
    )
)
def test_a_changed_pickle_is_shown_or_refused_and_nothing_else(
    changes: list[tuple[int, int]], tmp_path: Path
) -> None:
    pickled = bytearray(_RECORDS[_PICKLE])
    for position, byte in changes:
        pickled[position] = byte
    path = tmp_path / "a.pt"
    # The checksums are made anew: this is what somebody else made, not what a disk has done.
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**_RECORDS, _PICKLE: bytes(pickled)}.items():
            archive.writestr(name, data)
    (run,) = inspected_directory(tmp_path).runs
    if run.checkpoints[0].problem is not None:
        with pytest.raises(CheckpointError) as caught:
            fastckpt.inspect(path)
        assert str(caught.value) == run.checkpoints[0].problem
        return
    contents = inspected(path)
    assert contents.total.storage_nbytes <= sum(map(len, _RECORDS.values()))
    lines = [
        *file_lines(contents, tree=True, sort=None),
        *file_lines(contents, tree=False, sort=None),
    ]
    assert lines
    json.dumps(file_document(contents, sort=Sort.NAME), allow_nan=False)
