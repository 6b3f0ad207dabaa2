"""find_largest_model, find_last_step, load_optimizer_state, and nanochat's base directory."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastckpt
from fastckpt.nanochat import discovery

LOGGER = "nanochat.checkpoint_manager"


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["d4", "d12", "d8"], "d12"),
        (["d2", "d10"], "d10"),
        (["d12", "d20_run2", "zzz"], "d20_run2"),
        (["d", "depth30", "d3"], "d3"),
        (["xd99", "d1"], "d1"),
        (["d007", "d6"], "d007"),
    ],
)
def test_largest_model_has_the_highest_depth(
    tmp_path: Path, tags: list[str], expected: str
) -> None:
    for tag in tags:
        (tmp_path / tag).mkdir()
    (tmp_path / "d99").write_text("a file, no model tag")
    assert fastckpt.find_largest_model(tmp_path) == expected


def test_largest_model_without_depths_is_the_newest(tmp_path: Path) -> None:
    for age, tag in enumerate(["newest", "middle", "oldest"]):
        (tmp_path / tag).mkdir()
        os.utime(tmp_path / tag, (1e9 - age, 1e9 - age))
    assert fastckpt.find_largest_model(str(tmp_path)) == "newest"


def test_link_to_a_directory_is_a_model_tag(tmp_path: Path) -> None:
    (tmp_path / "d1").mkdir()
    (tmp_path / "d2").symlink_to(tmp_path / "d1")
    (tmp_path / "d3").symlink_to(tmp_path / "nowhere")
    assert fastckpt.find_largest_model(tmp_path) == "d2"


def test_no_model_tag_raises(tmp_path: Path) -> None:
    (tmp_path / "d12").write_text("a file")
    with pytest.raises(FileNotFoundError, match=f"^No checkpoints found in {tmp_path}$"):
        fastckpt.find_largest_model(tmp_path)
    with pytest.raises(FileNotFoundError):
        fastckpt.find_largest_model(tmp_path / "none")


@given(steps=st.sets(st.integers(0, 10**9), min_size=1, max_size=20))
def test_last_step_is_the_highest_number(
    tmp_path_factory: pytest.TempPathFactory, steps: set[int]
) -> None:
    directory = tmp_path_factory.mktemp("steps")
    for step in steps:
        (directory / f"model_{step:06d}.pt").touch()
    assert fastckpt.find_last_step(directory) == max(steps)


def test_last_step_looks_at_the_end_of_names_only(tmp_path: Path) -> None:
    for name in (
        "model_000003.pt",
        "tmp_model_000011.pt",  # counts, as in nanochat
        "model_000099.pt.tmp",
        ".fastckpt-1-2.tmp",
        "model_000098.safetensors",
        "optim_000097_rank0.pt",
        "meta_000096.json",
        "model_.pt",
    ):
        (tmp_path / name).touch()
    assert fastckpt.find_last_step(tmp_path) == 11
    assert type(fastckpt.find_last_step(str(tmp_path))) is int


def test_no_step_raises(tmp_path: Path) -> None:
    (tmp_path / "meta_000001.json").touch()
    with pytest.raises(FileNotFoundError, match=f"^No checkpoints found in {tmp_path}$"):
        fastckpt.find_last_step(tmp_path)
    with pytest.raises(FileNotFoundError):
        fastckpt.find_last_step(tmp_path / "none")


# The base directory, and what is found from there.


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    return tmp_path / "base"


def test_base_directory_is_read_at_each_call_and_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / name))
        assert discovery.source_directory("sft") == str(tmp_path / name / "chatsft_checkpoints")
        assert (tmp_path / name).is_dir()


@pytest.mark.parametrize("empty", [True, False])
def test_base_directory_defaults_to_the_cache_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: bool
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if empty:
        monkeypatch.setenv("NANOCHAT_BASE_DIR", "")
    else:
        monkeypatch.delenv("NANOCHAT_BASE_DIR")
    expected = tmp_path / ".cache" / "nanochat"
    assert discovery.source_directory("rl") == str(expected / "chatrl_checkpoints")
    assert expected.is_dir()


def test_installed_nanochat_says_where_its_base_directory_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "nanochat"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "common.py").write_text("def get_base_dir():\n    return '/somewhere/else'\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert discovery.source_directory("base") == "/somewhere/else/base_checkpoints"
    finally:
        forget_nanochat()


def forget_nanochat() -> None:
    import sys

    for name in [name for name in sys.modules if re.match(r"nanochat(\.|$)", name)]:
        del sys.modules[name]


def test_unknown_source_is_a_key_error(base: Path) -> None:
    with pytest.raises(KeyError, match="pretrain"):
        fastckpt.load_model("pretrain", "cpu", "eval")
    with pytest.raises(KeyError, match="pretrain"):
        fastckpt.load_optimizer_state("pretrain", "cpu", 0)


def test_optimizer_state_of_one_rank(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = base / "base_checkpoints" / "d12"
    for step in (9, 10):
        fastckpt.save_checkpoint(run, step, {}, {"state": {0: torch.ones(step)}}, {})
    fastckpt.save_checkpoint(run, 11, None, {"state": {}}, None, rank=1)  # no model: no step
    (base / "base_checkpoints" / "d2").mkdir()
    caplog.set_level(logging.INFO, LOGGER)
    caplog.clear()
    state = fastckpt.load_optimizer_state("base", "cpu", 0)
    assert state is not None
    assert torch.equal(state["state"][0], torch.ones(10))
    state = fastckpt.load_optimizer_state(
        "base", torch.device("cpu"), rank=0, model_tag="d12", step=9
    )
    assert state is not None
    assert torch.equal(state["state"][0], torch.ones(9))
    assert fastckpt.load_optimizer_state("base", "cpu", 1) is None
    assert caplog.messages == [
        f"Loading optimizer state from {run}/optim_000010_rank0.pt",
        f"Loading optimizer state from {run}/optim_000009_rank0.pt",
        f"Optimizer checkpoint not found: {run}/optim_000010_rank1.pt",
    ]


def test_higher_ranks_are_silent(
    base: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fastckpt.save_checkpoint(base / "rl", 1, {}, None, {})
    (base / "chatrl_checkpoints").mkdir()
    (base / "rl").rename(base / "chatrl_checkpoints" / "d1")
    monkeypatch.setenv("RANK", "1")
    caplog.set_level(logging.INFO, LOGGER)
    caplog.clear()
    assert fastckpt.load_optimizer_state("rl", "cpu", rank=1) is None
    assert caplog.messages == []


def test_optimizer_state_without_any_model_raises(base: Path) -> None:
    (base / "base_checkpoints" / "d12").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="No checkpoints found in"):
        fastckpt.load_optimizer_state("base", "cpu", 0)
