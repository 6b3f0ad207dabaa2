"""`fastckpt prune`: what it deletes, in which order, and all that it never deletes."""

from __future__ import annotations

import errno
import fcntl
import io
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.command_line import run_json

import fastckpt
from fastckpt import prune
from fastckpt._prune.prune import Fate
from fastckpt._steps import removal
from fastckpt._steps import save_id as save_id_module
from fastckpt._steps.held import HeldDirectory
from fastckpt._steps.manager_files import survey_manager
from fastckpt._steps.survey import kept_name
from fastckpt.cli.app import run

RANKS = 2


def save_step(
    directory: Path, step: int, save_id: int, ranks: tuple[int, ...] = (1, 0), **meta: object
) -> None:
    """Save a step of two ranks; those that are left out never come to it."""
    with save_id_module.agreed(save_id, RANKS):
        for rank in ranks:
            weights = {"w": torch.full((8,), float(save_id))}
            state = {"rank": torch.tensor([save_id, rank])}
            document = {"step": step, **meta}
            fastckpt.save_checkpoint(directory, step, weights, state, document, rank=rank)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def steps(directory: Path) -> list[int]:
    """The steps that load in full, read by the loader and not by the code under test."""
    found = sorted(int(path.stem.split("_")[1]) for path in directory.glob("model_*.pt"))
    for step in found:
        for rank in range(RANKS):
            fastckpt.load_checkpoint(
                directory, step, "cpu", load_optimizer=True, rank=rank, world_size=RANKS
            )
    return found


def manager_bytes(
    epoch: int, step: int, metrics: dict[str, float], config: dict[str, Any] | None, **more: object
) -> bytes:
    root = {
        "epoch": epoch,
        "global_step": step,
        "model_state_dict": {"w": torch.full((64,), float(step))},
        "optimizer_state_dict": None,
        "scheduler_state_dict": None,
        "scaler_state_dict": None,
        "best_metric": None,
        "metrics": metrics,
        "metrics_history": [],
        "config": config,
        **more,
    }
    file = io.BytesIO()
    torch.save(root, file)
    return file.getvalue()


CONFIG = {"metric_name": "val_loss", "metric_mode": "min"}


def manager_path(directory: Path, epoch: int, step: int) -> Path:
    return directory / f"checkpoint_epoch{epoch:04d}_step{step:08d}.pt"


def save_managed(
    directory: Path, step: int, metrics: dict[str, float], *, ranks: int = 1, epoch: int = 1
) -> Path:
    path = manager_path(directory, epoch, step)
    for rank in range(1, ranks):
        torch.save({"rank": rank}, path.with_name(f"{path.stem}_rank{rank}.pt"))
    path.write_bytes(manager_bytes(epoch, step, metrics, CONFIG))
    return path


def managed(directory: Path) -> list[int]:
    """The steps of the checkpoints that plain torch.load reads."""
    found = sorted(directory.glob("checkpoint_*[0-9].pt"))
    paths = [path for path in found if "rank" not in path.name]
    return sorted(torch.load(path, weights_only=True)["global_step"] for path in paths)


def flip_tensor(path: Path, marker: bytes = b"") -> None:
    """Flip a bit in the payload of the first tensor: only its checksum shows it."""
    data = bytearray(path.read_bytes())
    position = data.index(b"FB", data.index(b"data/0FB")) + 64 if not marker else data.index(marker)
    data[position] ^= 1
    path.write_bytes(data)


def fates(report: fastckpt.PruneReport) -> dict[int, Fate]:
    return {each.step: each.fate for each in report.checkpoints}


def reasons(report: fastckpt.PruneReport) -> dict[int, tuple[str, ...]]:
    return {each.step: each.reasons for each in report.checkpoints}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Steps 100 to 600; the best is 200."""
    for number in range(1, 7):
        save_step(tmp_path, 100 * number, 10 + number, val_bpb=abs(number - 2) + 0.5)
    return tmp_path


# nanochat's steps


def test_the_newest_the_multiples_and_the_best_stay(runs: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in runs.iterdir()}
    report = prune(runs, keep=2, keep_every=300, metric="val_bpb")
    assert steps(runs) == [200, 300, 500, 600]
    assert reasons(report) == {
        100: (),
        200: ("best",),
        300: ("every",),
        400: (),
        500: ("newest",),
        600: ("newest", "every", "verified"),
    }
    gone = {name for name in sizes if "000100" in name or "000400" in name}
    assert {Path(file.path).name for file in report.files} == gone
    assert names(runs) == set(sizes) - gone
    assert report.freed_nbytes == sum(sizes[name] for name in gone)
    assert (report.ok, report.exit_code, report.errors) == (True, 0, ())


def test_a_dry_run_says_the_same_and_deletes_nothing(runs: Path) -> None:
    before = names(runs)
    listed = prune(runs, keep=1, dry_run=True)
    assert names(runs) == before
    report = prune(runs, keep=1)
    assert fates(listed) == fates(report)
    assert listed.freed_nbytes == report.freed_nbytes > 0
    assert not any(file.removed for file in listed.files)
    assert all(file.removed for file in report.files)
    assert steps(runs) == [600]


@pytest.mark.parametrize(("mode", "best"), [("min", 200), ("max", 100)])
def test_the_best_is_the_least_or_the_greatest_and_never_nan(
    tmp_path: Path, mode: str, best: int
) -> None:
    values = {100: 9.0, 200: 1.0, 300: math.nan, 400: 5.0, 500: math.nan}
    for step, value in values.items():
        save_step(tmp_path, step, step, eval={"loss": value})
    prune(tmp_path, keep=1, metric="eval.loss", mode=mode)
    assert steps(tmp_path) == [best, 500]


def test_a_metric_that_is_nowhere_is_an_error_that_names_what_there_is(runs: Path) -> None:
    before = names(runs)
    with pytest.raises(
        ValueError, match=r"no metric 'val_los' in .* \(available: val_bpb, step\)$"
    ):
        prune(runs, keep=1, metric="val_los")
    assert names(runs) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": 0}, "keep must be at least 1"),
        ({"keep": 1, "keep_every": 0}, "keep_every must be at least 1"),
        ({"keep": 1, "metric": "x", "mode": "least"}, "mode must be 'min' or 'max'"),
        ({"keep": 1, "verify": "no"}, "verify must be 'quick' or 'full', not 'no'"),
        ({"keep": 1, "mode": "max"}, "mode needs a metric_name"),
    ],
)
def test_arguments_out_of_range_are_refused(
    runs: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        prune(runs, **options)
    assert len(steps(runs)) == 6


def test_torn_steps_neither_count_nor_go(runs: Path) -> None:
    (runs / "optim_000600_rank1.pt").unlink()
    save_step(runs, 700, 17, ranks=(1,))
    before = {name for name in names(runs) if "000600" in name or "000700" in name}
    report = prune(runs, keep=2)
    assert fates(report)[600] is Fate.LEFT_ALONE
    assert fates(report)[700] is Fate.LEFT_ALONE
    assert "optim_000600_rank1.pt is missing" in reasons(report)[600][0]
    assert {name for name in names(runs) if "000600" in name or "000700" in name} == before
    assert {step for step, fate in fates(report).items() if fate is Fate.KEPT} == {400, 500}
    assert report.ok


def test_a_step_whose_replaced_files_are_there_counts_and_stays(runs: Path) -> None:
    name = kept_name(99, "model_000100.pt")
    shutil.copy(runs / "model_000100.pt", runs / name)
    report = prune(runs, keep=1)
    assert steps(runs) == [100, 600]
    assert name in names(runs)
    assert reasons(report)[100] == ("files that a save has replaced are still there",)


def test_a_step_that_is_being_saved_again_keeps_the_save_that_loads(runs: Path) -> None:
    """Rank 1 has not come to its save yet: the files of the old one have hidden names."""
    save_step(runs, 600, 99, ranks=(0,))
    report = prune(runs, keep=1)
    assert steps(runs) == [600]
    assert "verified" in reasons(report)[600]


def test_a_damaged_newest_does_not_count_and_stays(runs: Path) -> None:
    path = runs / "optim_000600_rank1.pt"
    flip_tensor(path)
    report = prune(runs, keep=2)
    assert fates(report)[600] is Fate.DAMAGED
    assert reasons(report)[600] == ("optim_000600_rank1.pt: checksum mismatch in tensor 'rank'",)
    assert path.exists()
    assert reasons(report)[500] == ("newest", "verified")
    assert [step for step, fate in fates(report).items() if fate is Fate.KEPT] == [400, 500]
    assert (report.status, report.exit_code) == ("damaged", 1)


def test_the_only_good_one_stays_however_old_it_is(runs: Path) -> None:
    for step in (200, 300, 400, 500, 600):
        flip_tensor(runs / f"model_{step:06d}.pt")
    report = prune(runs, keep=1)
    assert fates(report)[100] is Fate.KEPT
    assert not report.files
    assert fastckpt.verify([str(path) for path in runs.glob("*_000100*")]).ok


def test_where_nothing_that_stays_can_be_verified_nothing_goes(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        path = tmp_path / f"model_{step:06d}.pt"
        torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
        (tmp_path / f"meta_{step:06d}.json").write_text("{}")
    before = names(tmp_path)
    report = prune(tmp_path, keep=1)
    assert names(tmp_path) == before
    assert (report.status, report.exit_code) == ("blocked", 1)
    (words,) = report.blocked
    assert words.startswith(
        "none of the checkpoints that would stay can be verified: model_000003.pt: not a zip archive"
    )
    report = prune(tmp_path, keep=1, verify=False)
    assert (report.ok, report.quick) == (True, True)
    assert names(tmp_path) == {"model_000003.pt", "meta_000003.json"}


def test_without_verifying_a_flipped_bit_is_not_seen(runs: Path) -> None:
    flip_tensor(runs / "model_000600.pt")
    report = prune(runs, keep=1, verify=False)
    assert report.ok
    assert "verified" not in reasons(report)[600]
    assert [path.name for path in runs.glob("model_*")] == ["model_000600.pt"]


def test_a_file_with_another_name_elsewhere_frees_nothing(runs: Path) -> None:
    elsewhere = runs.parent / f"{runs.name}-links"
    elsewhere.mkdir()
    for name in names(runs):
        os.link(runs / name, elsewhere / name)
    assert prune(runs, keep=1, dry_run=True).freed_nbytes == 0
    assert prune(runs, keep=1).freed_nbytes == 0
    assert (steps(runs), len(steps(elsewhere))) == ([600], 6)


def test_a_step_that_was_saved_again_since_it_was_judged_stays(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(*args: Any, **options: Any) -> Any:
        save_step(runs, 100, 99)
        return fastckpt.verify(*args, **options)

    monkeypatch.setattr("fastckpt._prune.plan.verify", verify)
    report = prune(runs, keep=1)
    assert steps(runs) == [100, 600]
    again = {file.error for file in report.files if "000100" in file.path}
    assert again == {"kept, since it was saved again meanwhile"}


# A CheckpointManager's checkpoints


def test_of_a_managers_checkpoints_the_best_of_its_metric_stays(tmp_path: Path) -> None:
    for step, loss in ((10, 3.0), (20, 1.0), (30, math.nan), (40, 2.0), (50, 4.0)):
        save_managed(tmp_path, step, {"val_loss": loss, "accuracy": loss}, ranks=3)
    report = prune(tmp_path, keep=2, metric="accuracy", mode="max")
    assert managed(tmp_path) == [20, 40, 50]
    assert reasons(report)[20] == ("best",)
    assert [each.name for each in report.checkpoints][:2] == [
        "epoch 1, step 10",
        "epoch 1, step 20",
    ]
    assert len(names(tmp_path)) == 9


@pytest.mark.parametrize("how", ["link", "copy", "symlink"])
def test_what_best_model_is_another_name_of_stays(tmp_path: Path, how: str) -> None:
    paths = [save_managed(tmp_path, step, {"val_loss": 1.0 / step}) for step in (1, 2, 3, 4)]
    best = tmp_path / "best_model.pt"
    if how == "link":
        os.link(paths[1], best)
    elif how == "copy":
        shutil.copy(paths[1], best)
    else:
        best.symlink_to(paths[1])
    report = prune(tmp_path, keep=1)
    assert managed(tmp_path) == [2, 4]
    assert reasons(report)[2] == ("best",)
    assert torch.load(best, weights_only=True)["global_step"] == 2


def test_the_best_value_in_the_newest_file_tells_where_no_metric_is_named(tmp_path: Path) -> None:
    for step, value in ((1, 5.0), (2, 9.0), (3, 7.0)):
        data = manager_bytes(0, step, {"f1": value}, None, best_metric=9.0)
        manager_path(tmp_path, 0, step).write_bytes(data)
    prune(tmp_path, keep=1)
    assert managed(tmp_path) == [2, 3]


def test_where_a_file_leaves_open_which_end_is_best_neither_goes(tmp_path: Path) -> None:
    for step, value in ((1, 5.0), (2, 9.0), (3, 1.0), (4, 7.0)):
        data = manager_bytes(0, step, {"f1": value}, {"metric_name": "f1"})
        manager_path(tmp_path, 0, step).write_bytes(data)
    prune(tmp_path, keep=1)
    assert managed(tmp_path) == [2, 3, 4]


def test_a_metrics_dict_that_holds_itself_is_read_once(tmp_path: Path) -> None:
    metrics: dict[str, Any] = {"val_loss": 1.0}
    metrics["again"] = metrics
    for step in (1, 2):
        manager_path(tmp_path, 0, step).write_bytes(manager_bytes(0, step, metrics, CONFIG))
    prune(tmp_path, keep=1)
    assert managed(tmp_path) == [1, 2]


def test_names_of_metrics_are_made_when_they_are_needed(tmp_path: Path) -> None:
    """Dicts in dicts, each under the same long key: all the paths together would have gigabytes."""
    nested: dict[str, Any] = {"loss": 2.0}
    for _ in range(150):
        nested = {"k" * 50_000: nested}
    for step in (1, 2, 3):
        metrics: dict[str, Any] = {"val_loss": float(step), "deep": nested}
        manager_path(tmp_path, 0, step).write_bytes(manager_bytes(0, step, metrics, CONFIG))
    tracemalloc.start()
    try:
        prune(tmp_path, keep=1)
        peak_nbytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert managed(tmp_path) == [1, 3]
    assert peak_nbytes < 16 << 20


def test_a_damaged_best_model_says_nothing_and_is_not_touched(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_managed(tmp_path, step, {"val_loss": float(step)})
    (tmp_path / "best_model.pt").write_bytes(b"nothing")
    report = prune(tmp_path, keep=1)
    assert (report.ok, managed(tmp_path)) == (True, [1, 3])
    assert (tmp_path / "best_model.pt").read_bytes() == b"nothing"


def test_a_best_one_that_is_damaged_does_not_stand_for_the_best_that_is_good(
    tmp_path: Path,
) -> None:
    for step, loss in ((1, 2.0), (2, 3.0), (3, 4.0), (4, 1.0)):
        save_managed(tmp_path, step, {"val_loss": loss})
    flip_tensor(manager_path(tmp_path, 1, 4))
    report = prune(tmp_path, keep=1)
    assert fates(report) == {
        1: Fate.KEPT,
        2: Fate.REMOVED,
        3: Fate.KEPT,
        4: Fate.DAMAGED,
    }


def rank_file(directory: Path, step: int, rank: int) -> Path:
    return directory / f"checkpoint_epoch0001_step{step:08d}_rank{rank}.pt"


@pytest.fixture
def torn(tmp_path: Path) -> Path:
    """Checkpoints of three ranks; those of steps 1, 3 and 5 are gone but for the files of ranks 1 and 2."""
    for step in range(1, 6):
        save_managed(tmp_path, step, {"val_loss": float(step)}, ranks=3)
        for path in tmp_path.glob(f"*{step:08d}*"):
            os.utime(path, (10**9 + step, 10**9 + step))
    for step in (1, 3, 5):
        manager_path(tmp_path, 1, step).unlink()
    return tmp_path


def test_files_of_ranks_whose_checkpoint_is_gone_go_too(torn: Path) -> None:
    # Of step 3, rank 2 has saved again since: a run that was started again from step 2, say.
    os.utime(rank_file(torn, 3, 2), (2 * 10**9, 2 * 10**9))
    report = prune(torn, keep=2)
    gone = [rank_file(torn, 1, 1), rank_file(torn, 1, 2)]
    assert [file.path for file in report.leftovers] == [str(path) for path in gone]
    assert not any(path.exists() for path in gone)
    assert {rank_file(torn, 3, 1).name, rank_file(torn, 3, 2).name} < names(torn)
    assert {rank_file(torn, 5, 1).name, rank_file(torn, 5, 2).name} < names(torn)


def test_files_of_ranks_stay_while_a_save_is_running(torn: Path) -> None:
    before = names(torn)
    with (torn / f".fastckpt-{os.getpid()}-999999.tmp").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert prune(torn, keep=2).leftovers == ()
    assert before < names(torn)
    assert len(prune(torn, keep=2).leftovers) == 4


def test_both_kinds_in_one_directory_are_counted_each_by_itself(runs: Path) -> None:
    for step in (1, 2, 3):
        save_managed(runs, step, {"val_loss": float(step)})
    prune(runs, keep=1)
    assert (steps(runs), managed(runs)) == ([600], [1, 3])


def test_files_of_others_are_never_touched(runs: Path) -> None:
    foreign = {
        "checkpoint_epoch1_step1.pt",
        "checkpoint_epoch0001_step00000001_rank0.pt",
        "checkpoint_epoch0001_step00000001.pt.bak",
        "model_1.pt",
        "notes.txt",
        "last.ckpt",
    }
    for name in foreign:
        (runs / name).write_bytes(b"mine")
    prune(runs, keep=1)
    assert foreign < names(runs)


METRICS = st.one_of(st.none(), st.just(math.nan), st.integers(0, 4).map(float), st.just(math.inf))


@settings(max_examples=150, deadline=None)
@given(
    found=st.dictionaries(st.integers(0, 12), st.tuples(METRICS, st.booleans()), max_size=8),
    keep=st.integers(1, 4),
    every=st.one_of(st.none(), st.integers(1, 5)),
    mode=st.sampled_from(["min", "max"]),
    link=st.integers(0, 12),
)
def test_what_stays_is_what_a_naive_count_says(
    found: dict[int, tuple[float | None, bool]],
    keep: int,
    every: int | None,
    mode: str,
    link: int,
) -> None:
    """`found`: for each step its metric and whether a bit of its tensor is flipped."""
    config = {"metric_name": "loss", "metric_mode": mode}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for step, (value, is_damaged) in found.items():
            path = manager_path(directory, 0, step)
            path.write_bytes(
                manager_bytes(0, step, {} if value is None else {"loss": value}, config)
            )
            if step == link:
                os.link(path, directory / "best_model.pt")
            if is_damaged:
                flip_tensor(path)
        report = prune(directory, keep=keep, keep_every=every)
        there = {files.step for files in survey_manager(name)[0] if files.name}

    removed = set(found) - there
    assert removed == {step for step, fate in fates(report).items() if fate is Fate.REMOVED}
    good = {step for step, (_, is_damaged) in found.items() if not is_damaged}
    known_bad = {step for step, fate in fates(report).items() if fate is Fate.DAMAGED}
    assert known_bad <= set(found) - good
    counted = sorted(set(found) - known_bad)
    values = {step: found[step][0] for step in counted}
    rated = {step: value for step, value in values.items() if value is not None and value == value}
    asked = {step for step in counted if every and step % every == 0} | set(counted[-keep:])
    if rated:
        best_value = (min if mode == "min" else max)(rated.values())
        asked.add(min(step for step, value in rated.items() if value == best_value))
    asked |= {link} & set(counted)
    if removed:
        # Exactly what nothing asks for goes, and the newest good one has been seen to be good.
        assert removed == set(counted) - asked
        assert good & there
        assert max(good) in there
    else:
        assert not set(counted) - asked or not good & asked


# Errors, crashes and kills


class Crash(BaseException):
    """The process ends here."""


def crash_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let only so many unlinks and fsyncs happen; returns what happened."""
    left = calls
    trace: list[str] = []

    def then(real: Callable[..., Any], word: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Crash
            left -= 1
            trace.append(word or os.path.basename(args[0]))
            return real(*args, **options)

        return call

    monkeypatch.setattr(os, "unlink", then(os.unlink, ""))
    monkeypatch.setattr(removal, "sync_directory", then(removal.sync_directory, "fsync"))
    return trace


STEP_ORDER = [
    "model_000100.pt",
    "fsync",
    "meta_000100.json",
    "optim_000100_rank0.pt",
    "optim_000100_rank1.pt",
    "manifest_000100.json",
]


@pytest.mark.parametrize("calls", range(7))
def test_a_crash_anywhere_leaves_whole_steps_and_no_others(
    tmp_path: Path, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_step(tmp_path, 100, 11)
    save_step(tmp_path, 200, 12)
    trace = crash_after(calls, monkeypatch)
    if calls < len(STEP_ORDER):
        with pytest.raises(Crash):
            prune(tmp_path, keep=1)
    else:
        assert prune(tmp_path, keep=1).ok
    monkeypatch.undo()
    assert trace == STEP_ORDER[:calls]
    assert steps(tmp_path) == ([100, 200] if calls == 0 else [200])
    assert prune(tmp_path, keep=1).ok
    assert fastckpt.collect_garbage(tmp_path, incomplete=True).ok
    assert {name for name in names(tmp_path) if "000100" in name} == set()


@pytest.mark.parametrize("calls", range(5))
def test_a_crash_among_a_managers_files_is_made_good_by_the_next_prune(
    tmp_path: Path, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save_managed(tmp_path, step, {"val_loss": 1.0 / step}, ranks=3)
    trace = crash_after(calls, monkeypatch)
    try:
        prune(tmp_path, keep=1)
    except Crash:
        assert calls < 4
    monkeypatch.undo()
    name = "checkpoint_epoch0001_step00000001"
    order = [f"{name}.pt", "fsync", f"{name}_rank1.pt", f"{name}_rank2.pt"]
    assert trace == order[:calls]
    assert managed(tmp_path) == ([1, 2] if calls == 0 else [2])
    assert prune(tmp_path, keep=1).ok
    assert len(names(tmp_path)) == 3


def test_an_error_is_reported_and_the_rest_goes_on(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = HeldDirectory.unlink

    def unlink(directory: HeldDirectory, name: str) -> None:
        if name in {"model_000100.pt", "optim_000200_rank0.pt"}:
            path = os.path.join(directory.path, name)
            raise OSError(errno.EPERM, "Operation not permitted", path)
        real(directory, name)

    monkeypatch.setattr(HeldDirectory, "unlink", unlink)
    report = prune(runs, keep=3)
    monkeypatch.undo()
    assert report.errors == (
        (str(runs / "model_000100.pt"), "Operation not permitted"),
        (str(runs / "optim_000200_rank0.pt"), "Operation not permitted"),
    )
    assert (report.status, report.exit_code) == ("io_error", 6)
    assert steps(runs) == [100, 400, 500, 600]
    assert "model_000200.pt" not in names(runs)
    errors = {os.path.basename(file.path): file.error for file in report.files if file.error}
    assert errors.pop("model_000100.pt") == errors.pop("optim_000200_rank0.pt")
    assert set(errors.values()) == {"kept, since the model could not be removed"}
    removed = sum(file.nbytes for file in report.files if file.removed)
    assert report.freed_nbytes == removed


def failing_fsync(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Let the fsync of one file fail; returns the names of those that are flushed from here on."""
    flushed: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        if flushed[-1] == name:
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return flushed


def test_what_the_others_go_for_is_flushed_to_the_disk_first(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = failing_fsync(monkeypatch, "none")
    assert prune(runs, keep=1, metric="val_bpb").ok
    of_step = "model_{0}.pt meta_{0}.json manifest_{0}.json optim_{0}_rank0.pt optim_{0}_rank1.pt"
    (best, newest) = steps(runs)
    expected = [of_step.format(f"{step:06d}").split() for step in (best, newest)]
    assert sorted(flushed) == sorted(expected[0] + expected[1])


def test_where_what_stays_cannot_be_flushed_nothing_goes(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = names(runs)
    failing_fsync(monkeypatch, "model_000600.pt")
    report = prune(runs, keep=1)
    words = "Input/output error, while flushing the file to disk (fsync)"
    assert report.errors == ((str(runs / "model_000600.pt"), words),)
    assert names(runs) == before
    assert {file.error for file in report.files} == {
        f"kept, since what stays may not be on the disk: {words}"
    }
    assert (report.status, report.freed_nbytes) == ("io_error", 0)


CHILD = (
    "import sys\n"
    "from fastckpt.cli.app import run\n"
    "import fastckpt._prune.prune, fastckpt._copy.copy\n"
    "print('go', flush=True)\n"
    "code = run(sys.argv[1:])\n"
    "assert 'torch' not in sys.modules\n"
    "sys.exit(code)\n"
)


def test_kills_at_random_moments_leave_whole_checkpoints(tmp_path: Path) -> None:
    original = tmp_path / "original"
    for number in range(1, 9):
        save_step(original, number, 10 + number)
        save_managed(original, number, {"val_loss": 1.0 / number}, ranks=2)
    rng = random.Random(7)
    seconds = 0.02
    outcomes = set()
    for case in range(8):
        directory = tmp_path / f"case{case}"
        shutil.copytree(original, directory)
        command = [sys.executable, "-c", CHILD, "prune", str(directory), "--keep", "2"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"go\n"
            started = time.monotonic()
            if case:
                time.sleep(rng.uniform(0, seconds))
                child.send_signal(signal.SIGKILL)
            child.wait(200)
        if not case:
            seconds = time.monotonic() - started
        left = steps(directory)
        assert left == list(range(9 - len(left), 9))
        assert managed(directory)[-2:] == [7, 8]
        outcomes.add((len(left), len(managed(directory))))
        assert run(["prune", str(directory), "--keep", "2"]) == 0
        assert fastckpt.collect_garbage(directory, incomplete=True).ok
        assert (steps(directory), managed(directory)) == ([7, 8], [7, 8])
        assert len(names(directory)) == 2 * 5 + 2 * 2
        shutil.rmtree(directory)
    assert (2, 2) in outcomes


# The command


def test_text(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "optim_000600_rank1.pt").unlink()
    arguments = ["prune", str(runs), "--keep", "2", "--metric", "val_bpb"]
    assert run([*arguments, "--dry-run"]) == 0
    captured = capsys.readouterr()
    freed = prune(runs, keep=2, metric="val_bpb", dry_run=True).freed_nbytes
    size = f"{freed / 1000:.1f} kB"
    lines = captured.out.splitlines()
    assert lines[0] == f"WOULD DELETE: 2 checkpoints, 10 files, {size} would be freed"
    assert [line.split()[:4] for line in lines[2:]] == [
        ["step", "100", "would", "delete"],
        ["step", "200", "kept", lines[3].split()[3]],
        ["step", "300", "would", "delete"],
        ["step", "400", "kept", lines[5].split()[3]],
        ["step", "500", "kept", lines[6].split()[3]],
        ["step", "600", "left", "alone"],
    ]
    assert lines[3].endswith(" kB  best")
    assert lines[6].endswith(" kB  newest, verified")
    hint = (
        f"hint: 1 checkpoint incomplete or under way: `fastckpt gc {runs}` says what can be done\n"
    )
    assert captured.err == hint
    assert run(arguments) == 0
    assert capsys.readouterr().out.startswith(f"DELETED: 2 checkpoints, 10 files, {size} freed\n")
    assert run(arguments) == 0
    assert capsys.readouterr().out.startswith("NOTHING TO DELETE\n")


def test_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run_json(capsys, "prune", str(runs), "--keep", "5", status="good")["report"]
    assert [each["fate"] for each in report["checkpoints"]] == ["removed", *["kept"] * 5]
    first = report["checkpoints"][0]
    assert (first["step"], first["epoch"], len(first["files"])) == (100, None, 5)
    assert all(file["removed"] and file["error"] is None for file in first["files"])
    assert report["freed_nbytes"] == first["nbytes"]


def test_what_is_blocked_says_why_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        path = manager_path(tmp_path, 0, step)
        path.write_bytes(manager_bytes(0, step, {"f1": 1.0 / step}, None))
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(torch.load(path, weights_only=True), path)
        finally:
            torch.serialization.set_crc32_options(True)
    assert run(["prune", str(tmp_path), "--keep", "1"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith(
        "NOTHING DELETED: no checkpoint that would stay can be verified\n"
    )
    assert "it was written without checksums" in captured.err
    assert "--quick deletes without reading what stays" in captured.err
    assert managed(tmp_path) == [1, 2]
    assert run(["prune", str(tmp_path), "--keep", "1", "--no-verify"]) == 0
    assert "warning: what stays was not read" in capsys.readouterr().err
    assert managed(tmp_path) == [2]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nothing", "--keep", "1"], 4, "NOT FOUND: no checkpoints in nothing\n"),
        ([".", "--keep", "1", "--metric", "x"], 4, "NOT FOUND"),
        ([".", "--keep", "0"], 2, ""),
        ([".", "--keep", "1", "--mode", "max"], 2, ""),
        (["."], 2, ""),
    ],
)
def test_other_exit_codes(
    tmp_path: Path,
    arguments: list[str],
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["prune", *arguments]) == code
    assert capsys.readouterr().out.startswith(words)
    run_json(capsys, "prune", *arguments, status={2: "usage", 4: "not_found"}[code], code=code)


def test_it_needs_no_torch(runs: Path) -> None:
    command = [sys.executable, "-c", CHILD, "prune", str(runs), "--keep", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert steps(runs) == [600]
