"""What is read back from the disk before anything goes on its account."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from tests.manager_runs import Weights, first_name, manager_of, names, save_all

import fastckpt
from fastckpt import _native
from fastckpt.training import rotation


def test_what_the_disk_does_not_return_is_not_published(tmp_path: Path) -> None:
    model = Weights(0.5)
    manager = manager_of(tmp_path, model, save_total_limit=1)
    save_all(manager, {10: 1.0})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = rotation._drop_from_page_cache

    def damaging(path: str) -> None:
        real(path)
        with open(path, "r+b") as file:
            file.seek(file.read().find(torch.full((4,), 0.5).numpy().tobytes()))
            file.write(b"\xff")

    with (
        mock.patch.object(rotation, "_drop_from_page_cache", damaging),
        pytest.raises(fastckpt.ChecksumError) as caught,
    ):
        save_all(manager, {20: 0.5})
    assert str(caught.value).startswith(
        f"{tmp_path / first_name(20)} was not saved: read back from the disk, it is not what was "
        "written ("
    )
    assert caught.value.tensors == ["model_state_dict.w"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert manager.best_metric == 1.0
    # The next one is good, and all goes on.
    save_all(manager, {30: 0.5})
    assert names(tmp_path) == ["best_model.pt", first_name(30)]
    assert manager.history_steps == [10, 30]


@pytest.mark.parametrize(("verify", "proofs"), [(True, [20, 30, 40, 40]), (False, [])])
def test_a_save_is_read_back_only_if_something_goes_on_its_account(
    verify: bool, proofs: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proven = []
    real = rotation.prove_good

    def watched(commit: Any, path: str) -> None:
        assert not os.path.exists(path) or "00000040" in path, "it is visible already"
        proven.append(int(path[-11:-3]))
        real(commit, path)

    monkeypatch.setattr(rotation, "prove_good", watched)
    manager = manager_of(tmp_path, save_total_limit=2, verify_before_delete=verify)
    # The first has nothing to replace; 20 is a new best; 25 changes nothing that is there.
    save_all(manager, {10: 3.0, 20: 2.0})
    shutil.rmtree(tmp_path)
    again = manager_of(tmp_path, save_total_limit=3, verify_before_delete=verify)
    save_all(again, {10: 1.0, 25: 2.0})
    assert proven == [step for step in proofs if step < 25]
    save_all(again, {30: 0.5, 40: 2.0, 50: 2.0} if not verify else {30: 0.5})
    if verify:
        assert proven == [20, 30]
        save_all(again, {40: 4.0})  # 10 goes
        save_all(again, {40: 5.0})  # and this one is replaced
        assert proven == [20, 30, 40, 40]


def test_what_is_proven_comes_from_the_disk_and_not_from_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = manager_of(tmp_path, save_total_limit=1)
    save_all(manager, {10: 1.0})
    done: list[tuple[str, int]] = []
    real_advise, real_verify = os.posix_fadvise, _native.verify_file

    def advise(fd: int, offset: int, nbytes: int, advice: int) -> None:
        assert (offset, nbytes, advice) == (0, 0, os.POSIX_FADV_DONTNEED)
        done.append(("dropped", os.fstat(fd).st_ino))
        real_advise(fd, offset, nbytes, advice)

    def verify(path: str) -> Any:
        done.append(("read back", os.stat(path).st_ino))
        return real_verify(path)

    monkeypatch.setattr("fastckpt.training.rotation.os.posix_fadvise", advise)
    monkeypatch.setattr("fastckpt._native.verify_file", verify)
    save_all(manager, {20: 0.5})
    inode = (tmp_path / first_name(20)).stat().st_ino
    assert done == [("dropped", inode), ("read back", inode)]
