"""`best_model.pt` where an older checkpoint becomes the best: it is read back first, as all that replaces."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.manager_runs import Weights, damage, manager_of, messages, names, steps_in

import fastckpt
from fastckpt import _native
from fastckpt._steps.checkpoint_names import CheckpointName

# By step: 30 has the best val_loss, 10 the best accuracy, then 20.
METRICS = {
    10: {"val_loss": 3.0, "accuracy": 0.9},
    20: {"val_loss": 2.0, "accuracy": 0.8},
    30: {"val_loss": 1.0, "accuracy": 0.1},
}
WORSE = {"val_loss": 9.0, "accuracy": 0.0}


def name(step: int) -> str:
    return str(CheckpointName(step, 0))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Checkpoints 10, 20 and 30 of a run whose best had the lowest val_loss."""
    model = Weights()
    manager = manager_of(tmp_path, model)
    for step, metrics in METRICS.items():
        model.value = 0.5 + step
        manager.save(0, step, metrics)
    assert os.path.samefile(tmp_path / "best_model.pt", tmp_path / name(30))
    return tmp_path


def by_accuracy(run: Path, **fields: Any) -> fastckpt.CheckpointManager:
    return manager_of(run, metric_name="accuracy", metric_mode="max", **fields)


@pytest.fixture
def read_back(run: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is dropped from the page cache and read from the disk, while best_model.pt is what it was."""
    done: list[tuple[str, int]] = []
    steps = {(run / name(step)).stat().st_ino: step for step in METRICS}
    real_advise, real_verify = os.posix_fadvise, _native.verify_file

    def note(what: str, inode: int) -> None:
        done.append((what, steps.get(inode, 0)))
        assert os.path.samefile(run / "best_model.pt", run / name(30))

    def advise(fd: int, offset: int, nbytes: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        note("dropped", os.fstat(fd).st_ino)
        real_advise(fd, offset, nbytes, advice)

    def verify(path: str) -> Any:
        note("read back", os.stat(path).st_ino)
        return real_verify(path)

    monkeypatch.setattr("fastckpt.training.rotation.os.posix_fadvise", advise)
    monkeypatch.setattr("fastckpt._native.verify_file", verify)
    return done


def test_the_best_by_another_metric_is_read_back_before_it_replaces_the_name(
    run: Path, read_back: list[tuple[str, int]]
) -> None:
    manager = by_accuracy(run)
    assert manager.best_metric == 0.9
    manager.save(0, 40, WORSE)
    assert os.path.samefile(run / "best_model.pt", run / name(10))
    assert read_back == [("dropped", 10), ("read back", 10)]
    # Once: the name is its now.
    manager.save(0, 50, WORSE)
    assert len(read_back) == 2


def test_a_damaged_one_never_gets_the_name_and_stays_for_repair(
    run: Path, read_back: list[tuple[str, int]], caplog: pytest.LogCaptureFixture
) -> None:
    damage(run / name(10), torch.full((4,), 10.5).numpy().tobytes())
    damaged = (run / name(10)).read_bytes()
    manager = by_accuracy(run)
    manager.save(0, 40, WORSE)
    assert os.path.samefile(run / "best_model.pt", run / name(20))
    assert len(read_back) == 4
    assert read_back[2:] == [("dropped", 20), ("read back", 20)]
    (words,) = messages(caplog)
    assert words.startswith(
        f"Not the best any more, and left where it is: {run / name(10)} is damaged ("
    )
    assert "checksum mismatch" in words
    assert manager.best_metric == 0.8
    assert manager.load_best()["global_step"] == 20
    assert (run / name(10)).read_bytes() == damaged
    # It counts for nothing from here on, and is warned of once.
    manager.save(0, 50, WORSE)
    assert len(messages(caplog)) == 1


def test_where_all_others_are_damaged_the_name_stays(run: Path) -> None:
    for step in (10, 20):
        damage(run / name(step), torch.full((4,), 0.5 + step).numpy().tobytes())
    manager = by_accuracy(run)
    manager.save(0, 40, WORSE)
    assert os.path.samefile(run / "best_model.pt", run / name(30))
    assert manager.best_metric == 0.1


def test_a_disk_that_answers_with_errors_leaves_all_as_it_was(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> None:
        raise OSError(errno.EIO, "Input/output error", path)

    manager = by_accuracy(run, save_total_limit=None)
    monkeypatch.setattr("fastckpt._native.verify_file", fail)
    with pytest.raises(OSError, match="while reading back what was written") as caught:
        manager.save(0, 40, WORSE)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(run / name(10)))
    assert os.path.samefile(run / "best_model.pt", run / name(30))
    # The new one is there: the name of the best comes after it.
    assert steps_in(run) == [10, 20, 30, 40]


@pytest.mark.parametrize("verify_before_delete", [True, False])
def test_it_is_only_read_where_the_name_is_somebodys_and_that_is_asked_for(
    run: Path, verify_before_delete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> None:
        raise AssertionError(f"{path} was read back")

    monkeypatch.setattr("fastckpt._native.verify_file", fail)
    if verify_before_delete:
        (run / "best_model.pt").unlink()
    manager = by_accuracy(run, verify_before_delete=verify_before_delete)
    manager.save(0, 40, WORSE)
    assert os.path.samefile(run / "best_model.pt", run / name(10))


def test_without_the_name_too_the_best_before_is_deleted_for_a_proven_one_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only checkpoint was the best; somebody has deleted its second name."""
    manager = manager_of(tmp_path, save_total_limit=1)
    manager.save(0, 10, {"val_loss": 2.0})
    (tmp_path / "best_model.pt").unlink()
    proven = []
    real = _native.verify_file

    def verify(path: str) -> Any:
        assert (tmp_path / name(10)).exists()
        proven.append(path)
        return real(path)

    monkeypatch.setattr("fastckpt._native.verify_file", verify)
    manager.save(0, 20, {"val_loss": 1.0})
    assert len(proven) == 1
    assert names(tmp_path) == ["best_model.pt", name(20)]
