"""load_checkpoint: what comes back, what is said where files are missing or damaged."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastckpt
from fastckpt._steps import opened


def save_with_torch(directory: Path, step: int, model_data: object, *shards: object) -> None:
    """Write a step as nanochat does, without fastckpt."""
    torch.save(model_data, directory / f"model_{step:06d}.pt")
    for rank, shard in enumerate(shards):
        torch.save(shard, directory / f"optim_{step:06d}_rank{rank}.pt")
    (directory / f"meta_{step:06d}.json").write_text(json.dumps({"step": step}, indent=2))


def test_loads_what_nanochat_saved(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    save_with_torch(tmp_path, 5, module.state_dict(), {"rank": 0}, {"rank": 1})
    model_data, optimizer_data, meta = fastckpt.load_checkpoint(tmp_path, 5, "cpu")
    assert type(model_data) is OrderedDict
    assert list(model_data) == ["weight", "bias"]
    assert model_data._metadata == module.state_dict()._metadata  # type: ignore[attr-defined]
    assert torch.equal(model_data["weight"], module.weight)
    assert optimizer_data is None
    assert meta == {"step": 5}
    for rank in (0, 1):
        loaded = fastckpt.load_checkpoint(tmp_path, 5, "cpu", True, rank, world_size=2)
        assert loaded[1] == {"rank": rank}


def test_returns_a_tuple_of_three(tmp_path: Path) -> None:
    save_with_torch(tmp_path, 5, {})
    assert fastckpt.load_checkpoint(str(tmp_path), np.int64(5), "cpu") == ({}, None, {"step": 5})


@pytest.mark.parametrize(
    ("device", "type_"),
    [
        ("cpu", "cpu"),
        (torch.device("cpu"), "cpu"),
        ("meta", "meta"),
        (torch.device("meta"), "meta"),
    ],
)
def test_device_is_a_name_or_a_device(
    tmp_path: Path, device: str | torch.device, type_: str
) -> None:
    save_with_torch(tmp_path, 5, {"a": torch.ones(3)}, {"b": torch.ones(2, dtype=torch.bfloat16)})
    model_data, optimizer_data, _ = fastckpt.load_checkpoint(tmp_path, 5, device, True)
    assert (model_data["a"].device.type, model_data["a"].shape) == (type_, (3,))
    assert (optimizer_data["b"].device.type, optimizer_data["b"].dtype) == (type_, torch.bfloat16)


@pytest.mark.cuda
def test_loads_to_a_cuda_device(tmp_path: Path) -> None:
    model_data = {"a": torch.randn(1 << 20), "b": torch.randn(3)}
    save_with_torch(tmp_path, 5, model_data)
    loaded, _, _ = fastckpt.load_checkpoint(tmp_path, 5, torch.device("cuda", 0))
    for name, tensor in model_data.items():
        assert loaded[name].device == torch.device("cuda", 0)
        assert torch.equal(loaded[name].cpu(), tensor)


state_values = st.one_of(
    st.integers(),
    st.floats(allow_nan=False),
    st.none(),
    st.text(max_size=5),
    st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)),
    st.lists(st.integers(), max_size=3),
)


@given(
    state=st.dictionaries(st.integers(0, 10**6), st.dictionaries(st.text(), state_values)),
    groups=st.lists(st.dictionaries(st.text(), state_values), max_size=3),
    step=st.integers(0, 10**8),
    rank=st.integers(0, 10**4),
)
def test_optimizer_state_comes_back_with_its_types(
    tmp_path_factory: pytest.TempPathFactory, state: Any, groups: Any, step: int, rank: int
) -> None:
    directory = tmp_path_factory.mktemp("run")
    saved = {"state": state, "param_groups": groups}
    fastckpt.save_checkpoint(directory, step, {}, None, {})
    fastckpt.save_checkpoint(directory, step, None, saved, None, rank=rank)
    if rank == 0:  # That was the master again, whose None is a model and a meta.
        model, _, meta = fastckpt.load_checkpoint(directory, step, "cpu")
        assert model is None
        assert meta is None
    _, loaded, _ = fastckpt.load_checkpoint(directory, step, "cpu", True, rank)
    assert repr(loaded) == repr(saved)  # tells 1 from 1.0 and True, and tuples from lists


def test_loaded_tensors_are_private_and_outlive_the_file(tmp_path: Path) -> None:
    fastckpt.save_checkpoint(tmp_path, 5, {"a": torch.arange(1000.0)}, None, {})
    before = (tmp_path / "model_000005.pt").read_bytes()
    model_data, _, _ = fastckpt.load_checkpoint(tmp_path, 5, "cpu")
    model_data["a"].add_(1)  # trained in place
    assert (tmp_path / "model_000005.pt").read_bytes() == before
    fastckpt.save_checkpoint(tmp_path, 5, model_data, None, {})  # over the file it came from
    assert torch.equal(model_data["a"], torch.arange(1000.0) + 1)
    again, _, _ = fastckpt.load_checkpoint(tmp_path, 5, "cpu")
    assert torch.equal(again["a"], model_data["a"])


def test_loaded_tensors_have_a_storage_each_and_torch_saves_them(tmp_path: Path) -> None:
    saved = {f"p{i}": torch.randn(5) for i in range(20)} | {
        "i": torch.arange(3),
        "e": torch.empty(0),
    }
    fastckpt.save_checkpoint(tmp_path, 5, saved, None, {})
    loaded, _, _ = fastckpt.load_checkpoint(tmp_path, 5, "cpu")
    assert len({tensor.untyped_storage()._cdata for tensor in loaded.values()}) == len(saved)
    for name, tensor in saved.items():
        assert loaded[name].untyped_storage().nbytes() == tensor.untyped_storage().nbytes()
    torch.save(loaded, tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt")
    assert all(torch.equal(again[name], tensor) for name, tensor in saved.items())


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    weight = torch.randn(4, 4)
    fastckpt.save_checkpoint(tmp_path, 5, {"wte": weight, "lm_head": weight.t()}, None, {})
    loaded, _, _ = fastckpt.load_checkpoint(tmp_path, 5, "cpu")
    loaded["wte"].zero_()
    assert torch.equal(loaded["lm_head"], torch.zeros(4, 4))


# What is missing.


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (5, 10):
        fastckpt.save_checkpoint(tmp_path, step, {"a": torch.ones(1000)}, {}, {"step": step})
        fastckpt.save_checkpoint(tmp_path, step, None, {}, None, rank=1)
    return tmp_path


def missing(run: Path, *removed: str) -> FileNotFoundError:
    for name in removed:
        (run / name).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        fastckpt.load_checkpoint(run, 10, "cpu", load_optimizer=True)
    return caught.value


def test_model_is_missed_first_then_the_shard_then_the_meta(run: Path) -> None:
    shard, meta, model = "optim_000010_rank0.pt", "meta_000010.json", "model_000010.pt"
    error = missing(run, meta)
    assert isinstance(error, fastckpt.IncompleteCheckpointError)
    assert error.filename == str(run / meta)
    assert str(error) == (
        f"{run}/{meta} is missing: step 10 has a model but no meta "
        "(fastckpt.load reads the model by itself); newest good step here: 5"
    )
    error = missing(run, shard)
    assert isinstance(error, fastckpt.IncompleteCheckpointError)
    assert str(error) == (
        f"{run}/{shard} is missing: step 10 has 1 optimizer shard (ranks that have one: 1); "
        "newest good step here: 5"
    )
    error = missing(run, model)
    assert isinstance(error, fastckpt.IncompleteCheckpointError)
    assert str(error) == (
        f"{run}/{model} is missing: step 10 was not saved to its end; newest good step here: 5"
    )


def test_shard_is_not_missed_unless_asked_for(run: Path) -> None:
    (run / "optim_000010_rank0.pt").unlink()
    assert fastckpt.load_checkpoint(run, 10, "cpu")[1] is None


def test_step_without_any_shard_says_how_to_load_it(tmp_path: Path) -> None:
    fastckpt.save_checkpoint(tmp_path, 5, {}, None, {})
    with pytest.raises(fastckpt.IncompleteCheckpointError, match="load_optimizer=False"):
        fastckpt.load_checkpoint(tmp_path, 5, "cpu", load_optimizer=True)


def test_unknown_step_names_the_newest_good_step(tmp_path: Path) -> None:
    for step in range(8):
        fastckpt.save_checkpoint(tmp_path, step, {}, None, {})
    with pytest.raises(FileNotFoundError) as caught:
        fastckpt.load_checkpoint(tmp_path, 100, "cpu")
    assert type(caught.value) is FileNotFoundError
    assert caught.value.filename == str(tmp_path / "model_000100.pt")
    assert caught.value.strerror == ("no checkpoint of step 100 (newest good step here: 7)")


def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"there is no directory {tmp_path}/none"):
        fastckpt.load_checkpoint(tmp_path / "none", 1, "cpu")


def test_empty_directory_has_no_other_step(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no other step here"):
        fastckpt.load_checkpoint(tmp_path, 1, "cpu")


# What is damaged.


def test_flipped_bit_names_tensor_and_newest_good_step(run: Path) -> None:
    path = run / "model_000010.pt"
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        header = archive.getinfo("model_000010/data/0").header_offset
    data[header + 30 + sum(struct.unpack_from("<HH", data, header + 26)) + 999] ^= 4
    path.write_bytes(data)
    with pytest.raises(fastckpt.ChecksumError, match="'a'") as caught:
        fastckpt.load_checkpoint(run, 10, "cpu")
    assert caught.value.tensors == ["a"]
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("; newest good step here: 5")


@pytest.mark.parametrize("name", ["model_000010.pt", "optim_000010_rank0.pt"])
def test_truncated_file_is_named(run: Path, name: str) -> None:
    os.truncate(run / name, 500)
    with pytest.raises(fastckpt.CheckpointError, match=name):
        fastckpt.load_checkpoint(run, 10, "cpu", load_optimizer=True)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "line 1, column 1"),
        (b'{\n  "step": 10', "line 2, column 13"),
        (b"\x00" * 100, "line 1, column 1"),
        (b"{} trailing", "Extra data"),
        (b'{"a": "\xff"}', "utf-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        ('{"a": 1}'.encode("utf-16"), "utf-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_meta_that_is_not_json_is_refused(run: Path, content: bytes, reason: str) -> None:
    path = run / "meta_000010.json"
    path.write_bytes(content)
    (run / "manifest_000010.json").unlink()
    with pytest.raises(fastckpt.FormatError) as caught:
        fastckpt.load_checkpoint(run, 10, "cpu")
    assert str(caught.value).startswith(f"{path} is not a meta file: ")
    assert reason in str(caught.value)
    assert str(caught.value).endswith("newest good step here: 5")
    assert caught.value.path == str(path)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "content",
    [
        b"null",
        b"[1, 2]",
        b'{"a": 1, "a": 2}',
        b'{"a": 1e999, "b": -Infinity, "c": 123456789012345678901234567890}',
        b'{"lone": "\\ud800"}',
        b'  {"a" :\r\n[ ]}  ',
        b"[" * 200 + b"]" * 200,
    ],
)
def test_meta_is_read_as_json_reads_it(run: Path, content: bytes) -> None:
    (run / "manifest_000010.json").unlink()
    (run / "meta_000010.json").write_bytes(content)
    assert fastckpt.load_checkpoint(run, 10, "cpu")[2] == json.loads(content)


def test_meta_over_the_cap_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "META_NBYTES_MAX", 100)
    (run / "manifest_000010.json").unlink()
    path = run / "meta_000010.json"
    path.write_bytes(b"[" + b" " * 98 + b"]")
    meta: object = fastckpt.load_checkpoint(run, 10, "cpu")[2]
    assert meta == []
    path.write_bytes(b"[" + b" " * 99 + b"]")
    with pytest.raises(fastckpt.FormatError, match="101 bytes, more than 100"):
        fastckpt.load_checkpoint(run, 10, "cpu")


def test_a_meta_that_was_changed_is_refused(run: Path) -> None:
    path = run / "meta_000010.json"
    path.write_bytes(path.read_bytes().replace(b"10", b"11"))
    with pytest.raises(fastckpt.ChecksumError, match="not the file that was saved") as caught:
        fastckpt.load_checkpoint(run, 10, "cpu")
    assert caught.value.path == str(path)
    assert "delete the manifest" in str(caught.value)
    assert [damage.path for damage in fastckpt.verify(run).damages] == [str(path)]
    (run / "manifest_000010.json").unlink()
    assert fastckpt.load_checkpoint(run, 10, "cpu")[2] == {"step": 11}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_meta_that_is_no_file_is_refused(run: Path, make: Any) -> None:
    (run / "meta_000010.json").unlink()
    make(run / "meta_000010.json")
    with pytest.raises(fastckpt.FormatError, match="not a regular file"):
        fastckpt.load_checkpoint(run, 10, "cpu")
