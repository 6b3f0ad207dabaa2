"""`fastckpt.inspect`: what files and directories of checkpoints hold, against torch and safetensors."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.specimens import quiet

import fastckpt
from fastckpt import FileContents
from fastckpt._contents.safetensors_header import HEADER_NBYTES_MAX, read_safetensors_header
from fastckpt._inspect.names import FileName, name_of_file
from fastckpt._inspect.report import TensorRow, Total, UncoveredFormatError
from fastckpt._inspect.run_report import CheckpointRow, DirectoryContents, State
from fastckpt.cli.inspect import Sort
from fastckpt.cli.inspect_output import file_document, file_lines
from fastckpt.errors import CheckpointError, ChecksumError, FormatError


def inspected(path: Path) -> FileContents:
    contents = fastckpt.inspect(path)
    assert isinstance(contents, FileContents)
    return contents


def saved(root: Any, path: Path) -> FileContents:
    torch.save(root, path)
    return inspected(path)


def inspected_directory(path: Path) -> DirectoryContents:
    contents = fastckpt.inspect(path)
    assert isinstance(contents, DirectoryContents)
    return contents


def model() -> OrderedDict[str, torch.Tensor]:
    return OrderedDict(
        [
            ("transformer.wte.weight", torch.ones(8, 4, dtype=torch.bfloat16)),
            ("transformer.h.0.weight", torch.ones(4, 4)),
            ("lm_head.weight", torch.ones(8, 4)),
        ]
    )


def managed(step: int, epoch: int = 1, **metrics: Any) -> dict[str, Any]:
    """Make a checkpoint with the keys of `CheckpointManager`."""
    weights = model()
    state = {
        number: {"step": torch.tensor(1.0), "exp_avg": torch.zeros_like(weight)}
        for number, weight in enumerate(weights.values())
    }
    groups = [{"lr": 0.5, "betas": (0.9, 0.95), "params": [0, 1, 2]}]
    return {
        "epoch": epoch,
        "global_step": step,
        "model_state_dict": weights,
        "optimizer_state_dict": {"state": state, "param_groups": groups},
        "scheduler_state_dict": {"last_epoch": step},
        "metrics": metrics,
        "metrics_history": [{"epoch": epoch, "step": step, **metrics}],
        "rng_states": {"python": (3, tuple(range(625)), None), "torch": torch.zeros(16)},
        "config": {"metric_name": "val_loss", "save_total_limit": 5},
        "model_config": {"n_layer": 12, "dtype": torch.bfloat16},
    }


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
    subprocess.run([sys.executable, "-c", script, *map(str, paths)], check=True, timeout=60)


# What cannot be looked into.


def test_files_before_torch_1_6(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UncoveredFormatError, match=r"is a file of torch before 1\.6") as caught:
        fastckpt.inspect(path)
    assert caught.value.hint.startswith("load it with torch.load and save it again")


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


# Safetensors.

_SAFE_DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.dictionaries(
        st.text(max_size=8).filter(lambda name: name != "__metadata__"),
        st.builds(
            lambda shape, dtype: torch.zeros(shape, dtype=dtype),
            st.lists(st.integers(0, 4), max_size=3),
            st.sampled_from(_SAFE_DTYPES),
        ),
        max_size=5,
    ),
    # Of an empty dict safetensors 0.8 makes what is no JSON.
    metadata=st.none()
    | st.dictionaries(st.text(max_size=4), st.text(max_size=4), min_size=1, max_size=3),
)
def test_safetensors_as_its_own_library_writes_them(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(tensors, path, metadata)
    contents = inspected(path)
    assert contents.format == "safetensors"
    found = {row.name: (f"torch.{row.dtype}", row.shape, row.nbytes) for row in contents.tensors}
    assert found == {
        name: (str(tensor.dtype), tuple(tensor.shape), tensor.nbytes)
        for name, tensor in tensors.items()
    }
    assert contents.values == (metadata or {})
    assert contents.nbytes == path.stat().st_size


def write_safetensors(
    path: Path, header: object, data: bytes = b"", length: int | None = None
) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ([], b"", "its header is not a JSON object"),
        (b"{", b"", "Expecting property name"),
        (b"\xff", b"", "'utf-8' codec can't decode"),
        (b"[" * 100_000, b"", "nested too deeply"),
        (b'{"a": 1' + b"0" * 5000 + b"}", b"", "Exceeds the limit"),
        (b'{"a": NaN}', b"", "NaN has no place in a header"),
        (b'{"a": 1, "a": 2}', b"", "a name stands in its header twice"),
        ({"__metadata__": {"a": 1}}, b"", "its metadata is not text by name"),
        ({"__metadata__": []}, b"", "its metadata is not text by name"),
        ({"a": 1}, b"", "tensor 'a' is not described by dtype, shape and data_offsets"),
        ({"a": {**entry(), "b": 1}}, b"1234", "tensor 'a' is not described by"),
        ({"a": entry("F33")}, b"1234", "a dtype that is not known: 'F33'"),
        ({"a": entry(shape=[-1])}, b"1234", "the shape of tensor 'a' is none"),
        ({"a": entry(shape=[True])}, b"1234", "the shape of tensor 'a' is none"),
        ({"a": entry(shape=[1.0])}, b"1234", "the shape of tensor 'a' is none"),
        ({"a": entry(shape=[1] * 65)}, b"1234", "the shape of tensor 'a' is none"),
        ({"a": entry(shape=[2**62] * 60)}, b"1234", "has 4 bytes, and not those of its shape"),
        ({"a": entry(offsets=[4, 0])}, b"1234", "the data_offsets of tensor 'a' are none"),
        ({"a": entry(offsets=[0])}, b"1234", "the data_offsets of tensor 'a' are none"),
        ({"a": entry(offsets=[0, 2**70])}, b"1234", "the data_offsets of tensor 'a' are none"),
        ({"a": entry(shape=[2])}, b"1234", "has 4 bytes, and not those of its shape"),
        ({"a": entry()}, b"12345", "its tensors should end at byte"),
        ({"a": entry()}, b"123", "its tensors should end at byte"),
        (
            {"a": entry(), "b": entry(offsets=[8, 12])},
            b"123456789012",
            "tensor 'b' begins at byte 8 of the data; expected 4",
        ),
        (
            {"a": entry(), "b": entry(offsets=[2, 6])},
            b"123456",
            "tensor 'b' begins at byte 2 of the data; expected 4",
        ),
    ],
)
def test_hostile_safetensors_headers(
    header: object, data: bytes, words: str, tmp_path: Path
) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", header, data)
    with pytest.raises(FormatError) as caught:
        fastckpt.inspect(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{path} is not a safetensors file, or is damaged: ")


def test_a_length_is_only_believed_if_the_file_has_so_much(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for length in (2, 2**40, 2**63, 2**64 - 1):
        write_safetensors(path, b"{", length=length)
        with pytest.raises(FormatError, match=f"should have {length} bytes, and the file has 9"):
            read_safetensors_header(str(path))
    path.write_bytes(b"short")
    with pytest.raises(FormatError, match="fewer than the length of a header"):
        read_safetensors_header(str(path))
    with path.open("wb") as file:
        file.write(struct.pack("<Q", HEADER_NBYTES_MAX + 1))
        file.truncate(HEADER_NBYTES_MAX + 9)
    with pytest.raises(FormatError, match=f"more than {HEADER_NBYTES_MAX}"):
        read_safetensors_header(str(path))


_SPECIMEN = safetensors.torch.save({"a": torch.ones(2, 3), "b": torch.ones(4)}, {"format": "pt"})


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    position=st.integers(0, len(_SPECIMEN) - 1),
    replacement=st.binary(max_size=12),
    cut=st.integers(0, len(_SPECIMEN)),
)
@example(position=0, replacement=b"", cut=0)
def test_no_change_to_a_header_does_anything_but_refuse_or_show(
    position: int, replacement: bytes, cut: int, tmp_path: Path
) -> None:
    data = _SPECIMEN[:position] + replacement + _SPECIMEN[position + len(replacement) :]
    path = tmp_path / "a.safetensors"
    path.write_bytes(data[: len(data) - cut])
    try:
        contents = inspected(path)
    except FormatError:
        return
    data_nbytes = len(data) - cut - 8 - struct.unpack_from("<Q", data)[0]
    assert contents.total.nbytes == data_nbytes
    # What this reads, the format's own library reads too.
    loaded = safetensors.torch.load_file(path)
    assert {row.name: row.shape for row in contents.tensors} == {
        name: tuple(tensor.shape) for name, tensor in loaded.items()
    }


# Directories.


def rows_of(path: Path) -> tuple[CheckpointRow, ...]:
    (run,) = inspected_directory(path).runs
    return run.checkpoints


def size(*paths: Path) -> int:
    return sum(path.stat().st_size for path in paths)


def save_step(directory: Path, step: int, **meta: Any) -> None:
    optimizer = managed(1)["optimizer_state_dict"]
    fastckpt.save_checkpoint(directory, step, model(), optimizer, {"step": step, **meta})


def test_steps_of_a_run(tmp_path: Path) -> None:
    for step in (100, 200, 300):
        loop = {"min_val_bpb": 1.0, "total_training_time": step / 2}
        save_step(tmp_path, step, val_bpb=1 - step / 1000, loop_state=loop)
    (run,) = inspected_directory(tmp_path).runs
    assert [row.step for row in run.checkpoints] == [100, 200, 300]
    names = [
        "model_000100.pt",
        "meta_000100.json",
        "manifest_000100.json",
        "optim_000100_rank0.pt",
    ]
    assert run.checkpoints[0] == CheckpointRow(
        name="model_000100.pt",
        step=100,
        epoch=None,
        state=State.WHOLE,
        problem=None,
        nbytes=size(*(tmp_path / name for name in names)),
        model_nbytes=size(tmp_path / "model_000100.pt"),
        optimizer_nbytes=size(tmp_path / "optim_000100_rank0.pt"),
        ranks=1,
        metrics={
            "val_bpb": 0.9,
            "loop_state.min_val_bpb": 1.0,
            "loop_state.total_training_time": 50.0,
        },
        files=tuple(names),
    )
    assert run.nbytes == size(*tmp_path.iterdir())
    assert run.newest == 300
    assert run.freed_nbytes == size(
        *(path for path in tmp_path.iterdir() if "000300" not in path.name)
    )


def test_torn_and_damaged_steps(tmp_path: Path) -> None:
    for step in (100, 200, 300, 400, 500):
        save_step(tmp_path, step, val_bpb=0.5)
    (tmp_path / "meta_000200.json").unlink()
    (tmp_path / "optim_000300_rank0.pt").unlink()
    (tmp_path / "model_000400.pt").write_bytes(b"nothing of the kind")
    (tmp_path / "model_000500.pt").unlink()
    (run,) = inspected_directory(tmp_path).runs
    assert [(row.step, row.state, row.ranks) for row in run.checkpoints] == [
        (100, State.WHOLE, 1),
        (200, State.TORN, 1),
        (300, State.TORN, 0),
        (400, State.DAMAGED, 1),
        (500, State.TORN, 1),
    ]
    problems = [row.problem or "" for row in run.checkpoints]
    assert problems[0] == ""
    assert "meta_000200.json is missing" in problems[1]
    assert "optim_000300_rank0.pt is missing" in problems[2]
    assert "model_000400.pt is not a checkpoint" in problems[3]
    assert "model_000500.pt is missing" in problems[4]
    # A meta that is there is read whatever the rest is.
    assert run.checkpoints[2].metrics == {"val_bpb": 0.5}
    # Only the first step is known to be whole: nothing older would go.
    assert (run.newest, run.freed_nbytes) == (100, 0)


def test_managed_checkpoints_with_best_and_ranks(tmp_path: Path) -> None:
    for epoch, step, loss in ((0, 100, 3.0), (1, 200, 2.0), (2, 300, 2.5)):
        name = f"checkpoint_epoch{epoch:04d}_step{step:08d}"
        torch.save(managed(step, epoch, val_loss=loss), tmp_path / f"{name}.pt")
        torch.save({"rng_states": {}}, tmp_path / f"{name}_rank1.pt")
    os.link(tmp_path / "checkpoint_epoch0001_step00000200.pt", tmp_path / "best_model.pt")
    (run,) = inspected_directory(tmp_path).runs
    assert [(row.step, row.epoch, row.is_best, row.ranks) for row in run.checkpoints] == [
        (100, 0, False, 2),
        (200, 1, True, 2),
        (300, 2, False, 2),
    ]
    row = run.checkpoints[0]
    assert (row.model_nbytes, row.optimizer_nbytes) == (256, 268)
    assert row.metrics == {"val_loss": 3.0}
    assert row.nbytes == size(*(tmp_path / name for name in row.files))
    everything = size(*(path for path in tmp_path.iterdir() if path.name != "best_model.pt"))
    assert run.nbytes == everything
    # The best one has a second name, and stays.
    freed = "checkpoint_epoch0000_step00000100.pt", "checkpoint_epoch0000_step00000100_rank1.pt"
    part = "checkpoint_epoch0001_step00000200_rank1.pt"
    assert run.freed_nbytes == size(*(tmp_path / name for name in (*freed, part)))


def test_a_copy_of_the_best_takes_room(tmp_path: Path) -> None:
    torch.save(managed(100), tmp_path / "checkpoint_epoch0001_step00000100.pt")
    torch.save(managed(100), tmp_path / "best_model.pt")
    assert [row.name for row in rows_of(tmp_path)] == [
        "best_model.pt",
        "checkpoint_epoch0001_step00000100.pt",
    ]
    assert inspected_directory(tmp_path).nbytes == size(*tmp_path.iterdir())


def test_parts_of_ranks_that_are_missing_or_left(tmp_path: Path) -> None:
    torch.save(managed(100), tmp_path / "checkpoint_epoch0001_step00000100.pt")
    torch.save({}, tmp_path / "checkpoint_epoch0001_step00000100_rank2.pt")
    torch.save({}, tmp_path / "checkpoint_epoch0001_step00000200_rank1.pt")
    rows = rows_of(tmp_path)
    assert [(row.step, row.state, row.ranks) for row in rows] == [
        (100, State.TORN, 2),
        (200, State.TORN, 1),
    ]
    assert rows[0].problem == "the part of rank 1 is missing"
    assert rows[1].problem is not None
    assert rows[1].problem.endswith("checkpoint_epoch0001_step00000200.pt is missing")


def test_a_checkpoint_that_counts_its_ranks_misses_those_at_the_end(tmp_path: Path) -> None:
    root = managed(100)
    root["rng_states"]["world_size"] = 4
    name = "checkpoint_epoch0001_step00000100"
    torch.save(root, tmp_path / f"{name}.pt")
    torch.save({}, tmp_path / f"{name}_rank1.pt")
    (row,) = rows_of(tmp_path)
    assert row.state is State.TORN
    assert row.problem == "the part of rank 2 is missing, and those of 1 more ranks"
    for rank in (2, 3):
        torch.save({}, tmp_path / f"{name}_rank{rank}.pt")
    (row,) = rows_of(tmp_path)
    assert (row.state, row.ranks) == (State.WHOLE, 4)


def test_other_files_and_directories_below(tmp_path: Path) -> None:
    save_step(tmp_path / "d12", 100)
    other = tmp_path / "other"
    other.mkdir()
    torch.save({"step": 7, "loss": 2.5, "model": model()}, other / "a.pth")
    safetensors.torch.save_file(dict(model()), other / "b.safetensors")
    torch.save({}, other / "old.pt", _use_new_zipfile_serialization=False)
    (other / "text.txt").write_text("no checkpoint")
    (tmp_path / "empty").mkdir()
    (tmp_path / "d12" / ".fastckpt-1-1.tmp").touch()
    contents = inspected_directory(tmp_path)
    assert [run.directory for run in contents.runs] == [str(tmp_path / "d12"), str(other)]
    assert contents.leftovers == (str(tmp_path / "d12" / ".fastckpt-1-1.tmp"),)
    assert [(row.name, row.step, row.state) for row in contents.runs[1].checkpoints] == [
        ("a.pth", 7, State.WHOLE),
        ("b.safetensors", None, State.WHOLE),
        ("old.pt", None, State.UNCOVERED),
    ]
    assert contents.runs[1].checkpoints[0].metrics == {"loss": 2.5}
    assert inspected_directory(tmp_path / "empty").runs == ()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("checkpoint_epoch0003_step00000100.pt", FileName("managed", 100, 3)),
        ("checkpoint_epoch12345_step123456789.pt", FileName("managed", 123456789, 12345)),
        ("checkpoint_epoch0003_step00000100_rank12.pt", FileName("rank", 100, 3, 12)),
        ("model_000100.pt", FileName("model", 100)),
        ("optim_000100_rank3.pt", FileName("optimizer", 100, rank=3)),
        ("meta_000100.json", None),
        ("best_model.pt", None),
        ("checkpoint_epoch3_step100.pt", None),
        ("a_checkpoint_epoch0003_step00000100.pt", None),
    ],
)
def test_what_names_say(name: str, says: FileName | None) -> None:
    assert name_of_file(f"runs/x/{name}") == says
