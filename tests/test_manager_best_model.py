"""Which checkpoint is the best, and by which name it is found."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from unittest import mock

import pytest
from tests.manager_runs import Weights, first_name, manager_of, names, save_all, steps_in

from fastckpt import _native
from fastckpt.training import best as best_module


def test_the_best_is_a_second_name_of_the_same_file(tmp_path: Path) -> None:
    manager = manager_of(tmp_path)
    paths = save_all(manager, {10: 2.0, 20: 1.0, 30: 1.0, 40: 3.0})
    assert paths[1] is not None
    best = tmp_path / "best_model.pt"
    # Of equals the earliest.
    assert os.path.samefile(best, paths[1])
    assert best.stat().st_nlink == 2
    assert manager.get_best_checkpoint() == best
    assert manager.get_latest_checkpoint() == paths[3]
    assert manager.best_metric == 1.0
    model = Weights()
    assert manager_of(tmp_path, model).load_best()["global_step"] == 20


def test_the_largest_is_the_best_where_the_configuration_says_so(tmp_path: Path) -> None:
    manager = manager_of(tmp_path, metric_mode="max", metric_name="accuracy")
    for step, accuracy in enumerate((0.5, 0.9, 0.7, math.nan)):
        manager.save(0, step, {"accuracy": accuracy})
    assert manager.load_best()["global_step"] == 1
    assert manager.best_metric == 0.9


def test_nan_is_never_the_best(tmp_path: Path) -> None:
    manager = manager_of(tmp_path)
    save_all(manager, {1: math.nan})
    assert manager.get_best_checkpoint() is None
    assert not (tmp_path / "best_model.pt").exists()
    with pytest.raises(FileNotFoundError, match="no checkpoint with a 'val_loss'") as caught:
        manager.load_best()
    assert caught.value.filename == str(tmp_path)
    save_all(manager, {2: math.inf, 3: 5.0, 4: math.nan})
    assert manager.best_metric == 5.0
    assert manager_of(tmp_path).best_metric == 5.0
    assert manager.load_best()["global_step"] == 3


@pytest.mark.parametrize("mode", ["hard link", "reflink", "copy"])
def test_without_hard_links_the_best_is_a_reflink_or_else_a_copy(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def clone(destination: int, request: int, source: int) -> int:
        calls.append(request)
        if mode == "copy":
            raise OSError(errno.EOPNOTSUPP, "no reflinks here")
        os.sendfile(destination, source, 0, os.fstat(source).st_size)
        return 0

    if mode != "hard link":
        commit = mock.MagicMock(wraps=_native.Commit())
        commit.__enter__.return_value = commit
        commit.link = lambda _path, _name: False
        monkeypatch.setattr("fastckpt.training.best.Commit", lambda: commit)
        monkeypatch.setattr("fastckpt.training.best.fcntl.ioctl", clone)
    manager = manager_of(tmp_path, save_total_limit=1)
    save_all(manager, {1: 2.0, 2: 1.0, 3: 1.5})
    best = tmp_path / "best_model.pt"
    assert best.stat().st_nlink == (2 if mode == "hard link" else 1)
    assert calls == ([] if mode == "hard link" else [0x40049409] * 2)
    assert best.read_bytes() == (tmp_path / first_name(2)).read_bytes()
    assert names(tmp_path) == ["best_model.pt", first_name(2), first_name(3)]
    # It is known for what it is, and so it is not given the name again.
    inode = best.stat().st_ino
    again = manager_of(tmp_path, save_total_limit=1)
    save_all(again, {4: 9.0})
    assert best.stat().st_ino == inode
    assert again.get_best_checkpoint() == best


def test_only_the_best_is_saved_where_the_configuration_says_so(tmp_path: Path) -> None:
    manager = manager_of(tmp_path, save_best_only=True, save_total_limit=2)
    losses = {1: 5.0, 2: 6.0, 3: 4.0, 4: math.nan, 5: 4.0, 6: 3.0, 7: 2.0}
    paths = save_all(manager, losses)
    assert [path is not None for path in paths] == [True, False, True, False, False, True, True]
    assert steps_in(tmp_path) == [6, 7]
    # What was not saved is in the history nonetheless.
    assert manager.history_steps == [1, 2, 3, 4, 5, 6, 7]
    assert manager.load()["history_steps"] == [1, 2, 3, 4, 5, 6, 7]
    again = manager_of(tmp_path, save_best_only=True, save_total_limit=2)
    assert again.save(0, 8, {"val_loss": 2.5}) is None


def test_after_an_error_the_same_manager_saves_on(tmp_path: Path) -> None:
    manager = manager_of(tmp_path, save_total_limit=1)
    save_all(manager, {10: 1.0})
    error = OSError(errno.EIO, "Input/output error", "x")
    with mock.patch.object(best_module, "name_best", side_effect=error), pytest.raises(OSError):
        save_all(manager, {20: 0.5})
    # The checkpoint is there, the name of the best is not given, and nothing is deleted.
    assert steps_in(tmp_path) == [10, 20]
    assert manager.best_metric == 0.5
    assert manager.get_best_checkpoint() == tmp_path / first_name(20)
    assert manager_of(tmp_path).load_best()["global_step"] == 20
    save_all(manager, {30: 2.0})
    assert manager.get_best_checkpoint() == tmp_path / "best_model.pt"
    assert os.path.samefile(tmp_path / "best_model.pt", tmp_path / first_name(20))
    assert steps_in(tmp_path) == [20, 30]
