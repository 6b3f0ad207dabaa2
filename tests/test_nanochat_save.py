"""save_checkpoint: the files, their bytes, the order in which they appear, the log."""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import weakref
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.archives import save_by_torch
from typing_extensions import Self

import fastckpt
from fastckpt import _native

LOGGER = "nanochat.checkpoint_manager"

META: dict[str, Any] = {
    "step": 100,
    "val_bpb": None,
    "model_config": {"n_layer": 2, "window_pattern": "SSSL"},
    "user_config": {"run": "dümmy \u2028 \U0001f600", 3: "an integer key", None: 1e-05},
    "dataloader_state_dict": {"pq_idx": 2**80, "rg_idx": 0.1},
    "loop_state": {"min_val_bpb": float("inf"), "smooth": float("nan"), "low": float("-inf")},
}


def make_model_data() -> OrderedDict[str, torch.Tensor]:
    """Return a module's own state dict, with `_metadata`, bf16 embeddings and odd shapes."""
    module = torch.nn.Module()
    module.wte = torch.nn.Embedding(7, 5).to(torch.bfloat16)
    module.c_fc = torch.nn.Linear(5, 3)
    module.smear_lambda = torch.nn.Parameter(torch.tensor([-0.0]))
    module.gate = torch.nn.Parameter(torch.full((1, 24), float("nan")))
    module.scalar = torch.nn.Parameter(torch.tensor(0.5))
    module.empty = torch.nn.Parameter(torch.empty(0, 4))
    state_dict = module.state_dict()
    assert isinstance(state_dict, OrderedDict)
    return state_dict


def make_optimizer_data() -> dict[str, Any]:
    """Return the state dict of an optimizer with AdamW and Muon groups, as nanochat's has."""
    adamw = {"step": 100, "exp_avg": torch.randn(7, 5), "exp_avg_sq": torch.rand(7, 5)}
    muon = {
        "momentum_buffer": torch.randn(4, 6, 3).bfloat16(),
        "second_momentum_buffer": torch.rand(4, 6, 1),
    }
    groups = [
        {"kind": "adamw", "lr": 0.2, "betas": (0.8, 0.95), "eps": 1e-10, "params": [0]},
        {"kind": "muon", "lr": 0.02, "momentum": 0.95, "beta2": None, "params": [1, 2, 3]},
    ]
    return {"state": {0: adamw, 1: muon}, "param_groups": groups}


def without_serialization_id(path: Path) -> bytes:
    """Return a .pt file's bytes with the serialization id and both copies of its CRC blanked."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith("/serialization_id"))
        digits = archive.read(entry)
        directory = archive.start_dir
    assert len(digits) == 40
    payload = data.index(digits, entry.header_offset)
    descriptor = data.index(b"PK\x07\x08", payload)
    central = data.index(entry.filename.encode(), directory) - 46
    for start, nbytes in ((payload, 40), (descriptor + 4, 4), (central + 16, 4)):
        data[start : start + nbytes] = bytes(nbytes)
    return bytes(data)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


class CommitSpy:
    """The real commit; records what is asked of it, and fails where told to."""

    def __init__(self, fail_at: str | None = None) -> None:
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.fail_at = fail_at
        self.commit = _native.Commit()

    def __call__(self) -> CommitSpy:
        return self

    def __enter__(self) -> Self:
        self.commit.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.commit.__exit__(kind, error, trace)

    def _note(self, verb: str, paths: Sequence[Any]) -> None:
        call = (verb, tuple(os.path.basename(path) for path in paths))
        self.calls.append(call)
        if self.fail_at == f"{verb} {call[1][0]}":
            raise OSError(errno.EIO, "seeded failure", os.fspath(paths[0]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.commit, name)

    def write_archive(self, path: Any, *args: Any, **kwargs: Any) -> _native.Written:
        self._note("write", [path])
        return self.commit.write_archive(path, *args, **kwargs)

    def write_bytes(self, path: Any, data: bytes) -> None:
        self._note("write", [path])
        self.commit.write_bytes(path, data)

    def publish(self, paths: Sequence[Any]) -> None:
        self._note("publish", paths)
        self.commit.publish(paths)


def spy_on_commit(monkeypatch: pytest.MonkeyPatch, fail_at: str | None = None) -> CommitSpy:
    spy = CommitSpy(fail_at)
    monkeypatch.setattr(_native, "Commit", spy)
    return spy


def test_files_are_those_of_torch_and_json(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    theirs.mkdir()
    model_data, optimizer_data = make_model_data(), make_optimizer_data()
    fastckpt.save_checkpoint(ours, 100, model_data, optimizer_data, META)
    save_by_torch(model_data, theirs / "model_000100.pt")
    save_by_torch(optimizer_data, theirs / "optim_000100_rank0.pt")
    with open(theirs / "meta_000100.json", "w", encoding="utf-8") as file:
        json.dump(META, file, indent=2)
    assert names(ours) == ["manifest_000100.json", *names(theirs)]
    assert (ours / "meta_000100.json").read_bytes() == (theirs / "meta_000100.json").read_bytes()
    for name in ("model_000100.pt", "optim_000100_rank0.pt"):
        assert without_serialization_id(ours / name) == without_serialization_id(theirs / name)


def test_torch_loads_what_is_saved(tmp_path: Path) -> None:
    model_data, optimizer_data = make_model_data(), make_optimizer_data()
    fastckpt.save_checkpoint(tmp_path, 1, model_data, optimizer_data, META)
    ways: list[dict[str, Any]] = [{}, {"mmap": True}, {"weights_only": False}]
    for options in ways:
        model = torch.load(tmp_path / "model_000001.pt", **options)
        assert type(model) is OrderedDict
        assert model._metadata == model_data._metadata  # type: ignore[attr-defined]
        assert list(model) == list(model_data)
        for name, tensor in model_data.items():
            assert model[name].dtype == tensor.dtype
            assert model[name].shape == tensor.shape
            raw, expected = (
                t.contiguous().view(torch.uint8) if t.dim() else t for t in (model[name], tensor)
            )
            assert torch.equal(raw, expected)
    optimizer = torch.load(tmp_path / "optim_000001_rank0.pt")
    assert list(optimizer["state"]) == [0, 1]
    assert type(optimizer["state"][0]["step"]) is int
    assert optimizer["param_groups"] == optimizer_data["param_groups"]
    assert type(optimizer["param_groups"][0]["betas"]) is tuple
    for index, entry in optimizer_data["state"].items():
        for name, value in entry.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(optimizer["state"][index][name], value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text() | st.integers() | st.floats() | st.booleans(), inner, max_size=4
        )
    ),
    max_leaves=20,
)


@given(meta=json_values)
def test_meta_bytes_are_those_of_json_dump(
    tmp_path_factory: pytest.TempPathFactory, meta: object
) -> None:
    directory = tmp_path_factory.mktemp("meta")
    fastckpt.save_checkpoint(directory, 1, {}, None, meta)
    with open(directory / "expected.json", "w", encoding="utf-8") as file:
        json.dump(meta, file, indent=2)
    expected = (directory / "expected.json").read_bytes()
    assert (directory / "meta_000001.json").read_bytes() == expected
    _, _, loaded = fastckpt.load_checkpoint(directory, 1, "cpu")
    assert repr(loaded) == repr(json.loads(expected))  # repr: a NaN is not equal to itself


def test_log_says_each_file_in_the_order_of_commit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    fastckpt.save_checkpoint(tmp_path, 100, {}, {"state": {}}, META)
    assert caplog.record_tuples == [
        (LOGGER, logging.INFO, f"Saved optimizer state to: {tmp_path}/optim_000100_rank0.pt"),
        (LOGGER, logging.INFO, f"Saved metadata to: {tmp_path}/meta_000100.json"),
        (LOGGER, logging.INFO, f"Saved model parameters to: {tmp_path}/model_000100.pt"),
    ]


def test_each_line_is_logged_when_its_file_is_there(tmp_path: Path) -> None:
    seen: list[tuple[str, list[str]]] = []

    class Watcher(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append((record.getMessage().split(" to: ")[0], names(tmp_path)))

    logger, watcher = logging.getLogger(LOGGER), Watcher()
    logger.addHandler(watcher)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        fastckpt.save_checkpoint(tmp_path, 1, {}, {}, {})
    finally:
        logger.setLevel(level)
        logger.removeHandler(watcher)
    assert [line for line, _ in seen] == [
        "Saved optimizer state",
        "Saved metadata",
        "Saved model parameters",
    ]
    first = {"manifest_000001.json", "meta_000001.json", "optim_000001_rank0.pt"}
    assert first <= set(seen[0][1])
    assert "model_000001.pt" not in seen[1][1]
    assert seen[2][1] == sorted([*first, "model_000001.pt"])


def test_higher_rank_saves_its_shard_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    monkeypatch.setenv("RANK", "3")
    directory = tmp_path / "made" / "by" / "rank 3"
    fastckpt.save_checkpoint(directory, 5, {"never": "looked at"}, {"state": {}}, object(), rank=3)
    assert names(directory) == ["optim_000005_rank3.pt"]
    assert caplog.messages == [f"Saved optimizer state to: {directory}/optim_000005_rank3.pt"]


def test_higher_rank_without_optimizer_leaves_no_trace(tmp_path: Path) -> None:
    fastckpt.save_checkpoint(tmp_path / "run", 5, {}, None, {}, 1)
    assert names(tmp_path) == []


def test_master_without_optimizer_saves_model_and_meta(tmp_path: Path) -> None:
    fastckpt.save_checkpoint(str(tmp_path), 5, {}, None, {"model_config": {}})
    assert names(tmp_path) == ["manifest_000005.json", "meta_000005.json", "model_000005.pt"]


def test_empty_optimizer_state_is_saved(tmp_path: Path) -> None:
    fastckpt.save_checkpoint(tmp_path, 5, {}, {}, {})
    assert torch.load(tmp_path / "optim_000005_rank0.pt") == {}


@pytest.mark.parametrize(
    ("step", "digits"),
    [
        (0, "000000"),
        (999_999, "999999"),
        (1_000_000, "1000000"),
        (np.int64(42), "000042"),
        (np.int32(7), "000007"),
    ],
)
def test_steps_are_padded_to_six_digits(tmp_path: Path, step: Any, digits: str) -> None:
    fastckpt.save_checkpoint(tmp_path, step, {}, {}, {}, rank=np.int64(0))
    expected = [f"manifest_{digits}.json", f"meta_{digits}.json"]
    expected += [f"model_{digits}.pt", f"optim_{digits}_rank0.pt"]
    assert names(tmp_path) == expected
    assert fastckpt.load_checkpoint(tmp_path, step, "cpu", True) == ({}, {}, {})
    assert fastckpt.find_last_step(tmp_path) == int(step)


def test_existing_files_are_replaced_and_keep_their_mode(tmp_path: Path) -> None:
    fastckpt.save_checkpoint(tmp_path, 5, {"a": torch.zeros(1000)}, {"state": {}}, {"old": 1})
    os.chmod(tmp_path / "model_000005.pt", 0o640)
    fastckpt.save_checkpoint(tmp_path, 5, {"a": torch.ones(2)}, {"state": {1: 2}}, {"new": 1})
    model_data, optimizer_data, meta = fastckpt.load_checkpoint(tmp_path, 5, "cpu", True)
    assert torch.equal(model_data["a"], torch.ones(2))
    assert (optimizer_data, meta) == ({"state": {1: 2}}, {"new": 1})
    assert len(names(tmp_path)) == 4
    assert (tmp_path / "model_000005.pt").stat().st_mode & 0o777 == 0o640


def test_new_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        fastckpt.save_checkpoint(tmp_path, 5, {}, {}, {})
    finally:
        os.umask(before)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in names(tmp_path)} == {0o640}


circular: list[object] = []
circular.append(circular)


@pytest.mark.parametrize(
    ("meta", "error"),
    [
        ({"tensor": torch.ones(1)}, TypeError),
        ({"step": np.int64(1)}, TypeError),
        ({(1, 2): "key"}, TypeError),
        ({"set": {1}}, TypeError),
        (circular, ValueError),
    ],
)
def test_meta_that_json_cannot_express_raises_before_anything_is_written(
    tmp_path: Path, meta: object, error: type[Exception]
) -> None:
    with pytest.raises(error):
        fastckpt.save_checkpoint(tmp_path / "run", 5, {}, {}, meta)
    assert names(tmp_path) == []


@pytest.mark.parametrize("position", ["model", "optimizer"])
def test_object_that_cannot_be_pickled_raises_before_anything_is_written(
    tmp_path: Path, position: str
) -> None:
    bad: dict[str, Any] = {"function": lambda: None}
    model_data, optimizer_data = (bad, {}) if position == "model" else ({}, bad)
    with pytest.raises((AttributeError, Exception), match="lambda"):
        fastckpt.save_checkpoint(tmp_path / "run", 5, model_data, optimizer_data, {})
    assert names(tmp_path) == []


def test_everything_is_written_before_anything_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = spy_on_commit(monkeypatch)
    fastckpt.save_checkpoint(tmp_path, 5, {}, {}, {})
    shard, manifest = "optim_000005_rank0.pt", "manifest_000005.json"
    meta, model = "meta_000005.json", "model_000005.pt"
    written = sorted(spy.calls[:4])
    assert written == [("write", (name,)) for name in (manifest, meta, model, shard)]
    assert spy.calls[4:] == [("publish", (shard, manifest, meta)), ("publish", (model,))]


@pytest.mark.parametrize(
    "fail_at",
    [
        "write optim_000005_rank0.pt",
        "write meta_000005.json",
        "write model_000005.pt",
        "publish optim_000005_rank0.pt",
    ],
)
def test_failure_before_the_first_publish_changes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fail_at: str,
) -> None:
    fastckpt.save_checkpoint(tmp_path, 5, {"old": 1}, {"old": 2}, {"old": 3})
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    caplog.set_level(logging.INFO, LOGGER)
    caplog.clear()
    spy_on_commit(monkeypatch, fail_at)
    with pytest.raises(OSError, match="seeded failure"):
        fastckpt.save_checkpoint(tmp_path, 5, {"new": 1}, {"new": 2}, {"new": 3})
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    assert caplog.messages == []


def test_step_is_not_found_until_its_model_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fastckpt.save_checkpoint(tmp_path, 5, {}, {}, {})
    caplog.set_level(logging.INFO, LOGGER)
    caplog.clear()
    spy_on_commit(monkeypatch, "publish model_000006.pt")
    with pytest.raises(OSError, match="seeded failure"):
        fastckpt.save_checkpoint(tmp_path, 6, {}, {}, {})
    assert fastckpt.find_last_step(tmp_path) == 5
    assert [name for name in names(tmp_path) if "000006" in name] == [
        "manifest_000006.json",
        "meta_000006.json",
        "optim_000006_rank0.pt",
    ]
    assert [name for name in names(tmp_path) if name.endswith(".tmp")] == []
    assert [message.split(" to: ")[0] for message in caplog.messages] == [
        "Saved optimizer state",
        "Saved metadata",
    ]
    with pytest.raises(fastckpt.IncompleteCheckpointError, match=r"not saved to its end.*: 5"):
        fastckpt.load_checkpoint(tmp_path, 6, "cpu")


def test_missing_directories_are_made(tmp_path: Path) -> None:
    fastckpt.save_checkpoint(tmp_path / "base" / "d12", 5, {}, None, {})
    assert (tmp_path / "base" / "d12" / "model_000005.pt").is_file()


def test_file_in_place_of_the_directory_raises(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(FileExistsError):
        fastckpt.save_checkpoint(tmp_path / "run", 5, {}, {}, {})
    assert (tmp_path / "run").read_text() == "in the way"


def test_random_state_and_thread_count_are_untouched(tmp_path: Path) -> None:
    torch.manual_seed(1)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    fastckpt.save_checkpoint(tmp_path, 5, {"a": torch.ones(100)}, {"b": torch.ones(3)}, {})
    fastckpt.load_checkpoint(tmp_path, 5, "cpu", load_optimizer=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_nothing_is_left_without_the_garbage_collector(tmp_path: Path) -> None:
    """base_train freezes and disables the collector: what a cycle holds is held for ever."""

    def round_trip() -> list[weakref.ref[Any]]:
        model_data = {"a": torch.ones(1 << 20), "b": torch.ones(3)}
        fastckpt.save_checkpoint(tmp_path, 5, model_data, {"c": torch.ones(5)}, META)
        loaded, optimizer, _ = fastckpt.load_checkpoint(tmp_path, 5, "cpu", load_optimizer=True)
        tensors = [*model_data.values(), *loaded.values(), *optimizer.values()]
        return [weakref.ref(tensor) for tensor in tensors]

    def resources() -> tuple[int, int]:
        with open("/proc/self/maps") as maps:
            return len(os.listdir("/proc/self/fd")), len(maps.readlines())

    gc.collect()
    gc.disable()
    try:
        for _ in range(5):  # thread pools and allocator arenas are made once
            round_trip()
        descriptors, mappings = resources()
        for _ in range(50):
            assert [reference() for reference in round_trip()] == [None] * 5
        after = resources()
    finally:
        gc.enable()
    assert after[0] == descriptors
    # malloc may move its own arenas; one mapping left per round would be 50 or more.
    assert after[1] < mappings + 25
