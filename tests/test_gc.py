"""`fastckpt gc`: what it removes, in which order, and all that it leaves alone."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.command_line import run_json
from tests.faults.children import exit_code, in_child
from tests.manager_runs import Weights, manager_of

import fastckpt
from fastckpt import ModelExporter, collect_garbage
from fastckpt._gc.gc import GarbageKind, StepState
from fastckpt._stages import make_stage
from fastckpt._steps import removal
from fastckpt._steps import save_id as save_id_module
from fastckpt._steps.checkpoint_names import CheckpointName, parse_checkpoint_name
from fastckpt._steps.held import HeldDirectory
from fastckpt._steps.survey import kept_name
from fastckpt.cli.app import run
from fastckpt.export import hub
from fastckpt.training import manager as manager_module
from fastckpt.training import writing

RANKS = 2


def save(directory: Path, step: int, save_id: int, ranks: tuple[int, ...] = (1, 0)) -> None:
    """Save a step of two ranks; those that are left out never come to it."""
    with save_id_module.agreed(save_id, RANKS):
        for rank in ranks:
            weights = {"w": torch.full((8,), float(save_id))}
            state = {"rank": torch.tensor([save_id, rank])}
            fastckpt.save_checkpoint(directory, step, weights, state, {"step": step}, rank=rank)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def of_step(directory: Path, step: int) -> set[str]:
    return {name for name in names(directory) if f"_{step:06d}" in name}


def whole(directory: Path, step: int) -> float:
    """Load a step, which has to be whole; return the save id that its weights say."""
    for rank in range(RANKS):
        loaded = fastckpt.load_checkpoint(
            directory, step, "cpu", load_optimizer=True, rank=rank, world_size=RANKS
        )
    return float(loaded[0]["w"][0])


def leave_temporary(directory: Path, nbytes: int = 1000) -> str:
    """Let a process die in the middle of a save; return the name of what it leaves."""
    before = names(directory)
    script = (
        "import os, signal, sys\n"
        "from fastckpt import _native\n"
        "commit = _native.Commit()\n"
        "commit.write_bytes(sys.argv[1], bytes(int(sys.argv[2])))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    target = str(directory / "never.json")
    done = subprocess.run([sys.executable, "-c", script, target, str(nbytes)], check=False)
    assert done.returncode == -9
    (left,) = names(directory) - before
    return left


@contextmanager
def running_save(directory: Path) -> Iterator[str]:
    """Have a temporary file whose owner lives."""
    path = directory / f".fastckpt-{os.getpid()}-999999.tmp"
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield path.name


def in_order_of_age(directory: Path, *steps: int) -> None:
    """Date the files of steps, the first step oldest."""
    for age, step in enumerate(steps):
        for name in of_step(directory, step):
            os.utime(directory / name, (10**9 + age, 10**9 + age))


@pytest.fixture
def abandoned(tmp_path: Path) -> Path:
    """Steps 1 and 3 are whole; of step 2, rank 1 has saved nothing."""
    save(tmp_path, 1, 11)
    save(tmp_path, 2, 12, ranks=(0,))
    save(tmp_path, 3, 13)
    in_order_of_age(tmp_path, 1, 2, 3)
    return tmp_path


# Temporary files


def test_a_directory_of_whole_steps_is_left_as_it_is(tmp_path: Path) -> None:
    save(tmp_path, 1, 11)
    save(tmp_path, 2, 12)
    before = names(tmp_path)
    report = collect_garbage(tmp_path, incomplete=True)
    assert (report.files, report.steps, report.live, report.errors) == ((), (), (), ())
    assert (report.ok, report.freed_nbytes) == (True, 0)
    assert names(tmp_path) == before


def test_a_dead_save_is_cleaned_up_and_a_running_one_is_not(tmp_path: Path) -> None:
    save(tmp_path, 1, 11)
    left = leave_temporary(tmp_path, 1000)
    with running_save(tmp_path) as live:
        listed = collect_garbage(tmp_path, dry_run=True)
        assert left in names(tmp_path)
        report = collect_garbage(tmp_path)
        assert live in names(tmp_path)
    for each, removed in ((listed, False), (report, True)):
        (file,) = each.files
        assert file.path == str(tmp_path / left)
        assert (file.kind, file.nbytes, file.removed) == (GarbageKind.TEMPORARY, 1000, removed)
        assert each.freed_nbytes == 1000
        assert each.live == (str(tmp_path / live),)
    assert left not in names(tmp_path)
    assert whole(tmp_path, 1) == 11


def test_files_of_others_are_not_ours_to_remove(tmp_path: Path) -> None:
    foreign = {
        ".fastckpt-1.tmp",
        ".fastckpt-a-1.tmp",
        ".fastckpt-notes.txt",
        ".fastckpt-00000000000011-notes.txt.kept",
        ".fastckpt-11-model_000001.pt.kept",
        "model_000001.pt.tmp",
        "tmp1234",
        ".model_000001.pt.swp",
        "notes.txt",
    }
    save(tmp_path, 1, 11)
    for name in foreign:
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / ".fastckpt-1-2.tmp").mkdir()
    report = collect_garbage(tmp_path, incomplete=True)
    assert report.files == ()
    assert foreign < names(tmp_path)
    assert (tmp_path / ".fastckpt-1-2.tmp").is_dir()


def test_a_file_that_cannot_be_removed_is_an_error_and_the_rest_goes_on(
    abandoned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = leave_temporary(abandoned)

    def fail(directory: str, *, dry_run: bool = False) -> list[str]:
        if dry_run:
            return [left]
        raise OSError(errno.EPERM, "Operation not permitted", os.path.join(directory, left))

    monkeypatch.setattr(fastckpt._native, "remove_stale", fail)
    report = collect_garbage(abandoned, incomplete=True)
    assert report.errors == ((str(abandoned / left), "Operation not permitted"),)
    assert (report.ok, report.exit_code) == (False, 6)
    failed = [file for file in report.files if not file.removed]
    assert [(file.path, file.error) for file in failed] == [report.errors[0]]
    assert of_step(abandoned, 2) == set()
    assert report.freed_nbytes == sum(file.nbytes for file in report.files if file.removed)


# Second names of replaced files


def test_second_names_go_once_a_newer_save_is_whole(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    save(old, 1, 11)
    save(new, 1, 12)
    kept = {kept_name(11, name) for name in names(old)}
    for name in names(old):
        shutil.copy(old / name, new / kept_name(11, name))
    nbytes = sum((new / name).stat().st_size for name in kept)
    report = collect_garbage(new)
    assert {Path(file.path).name for file in report.files} == kept
    assert all(file.kind is GarbageKind.REPLACED and file.step == 1 for file in report.files)
    assert report.freed_nbytes == nbytes
    assert names(new) == names(old)
    assert whole(new, 1) == 12


def test_second_names_stay_while_their_save_is_the_one_that_loads(tmp_path: Path) -> None:
    save(tmp_path, 1, 11)
    save(tmp_path, 1, 12, ranks=(0,))
    before = names(tmp_path)
    assert len([name for name in before if name.endswith(".kept")]) > 0
    assert whole(tmp_path, 1) == 11
    report = collect_garbage(tmp_path, incomplete=True)
    assert (report.files, report.steps) == ((), ())
    assert names(tmp_path) == before
    assert whole(tmp_path, 1) == 11


def test_a_file_with_another_name_elsewhere_frees_nothing(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    save(old, 1, 11)
    save(new, 1, 12)
    for name in names(old):
        os.link(old / name, new / kept_name(11, name))
    assert collect_garbage(new, dry_run=True).freed_nbytes == 0
    report = collect_garbage(new)
    assert len(report.files) == len(names(old))
    assert report.freed_nbytes == 0
    assert whole(old, 1) == 11


# Steps that can never be completed


def test_an_abandoned_step_goes_only_when_told_to(abandoned: Path) -> None:
    before = of_step(abandoned, 2)
    report = collect_garbage(abandoned)
    (step,) = report.steps
    assert (step.step, step.state, step.removed) == (2, StepState.ABANDONED, False)
    assert "optim_000002_rank1.pt is missing" in step.reason
    assert step.loads_model
    assert report.files == ()
    assert of_step(abandoned, 2) == before

    assert collect_garbage(abandoned, incomplete=True, dry_run=True).freed_nbytes > 0
    assert of_step(abandoned, 2) == before

    report = collect_garbage(abandoned, incomplete=True)
    (step,) = report.steps
    assert step.removed
    assert {Path(file.path).name for file in report.files} == before
    assert report.freed_nbytes == step.nbytes == sum(file.nbytes for file in report.files)
    assert of_step(abandoned, 2) == set()
    assert (whole(abandoned, 1), whole(abandoned, 3)) == (11, 13)


def test_a_step_that_may_be_under_way_is_never_removed(tmp_path: Path) -> None:
    save(tmp_path, 1, 11)
    save(tmp_path, 2, 12, ranks=(1,))
    before = names(tmp_path)
    report = collect_garbage(tmp_path, incomplete=True)
    assert [(step.step, step.state) for step in report.steps] == [(2, StepState.UNDER_WAY)]
    assert names(tmp_path) == before

    (tmp_path / "other").mkdir()
    save(tmp_path / "other", 1, 11, ranks=(0,))
    report = collect_garbage(tmp_path / "other", incomplete=True)
    assert [(step.step, step.state) for step in report.steps] == [(1, StepState.UNDER_WAY)]


def test_a_run_that_was_started_again_is_under_way_below_the_steps_of_the_first(
    abandoned: Path,
) -> None:
    in_order_of_age(abandoned, 1, 3, 2)
    before = names(abandoned)
    report = collect_garbage(abandoned, incomplete=True)
    assert [(step.step, step.state) for step in report.steps] == [(2, StepState.UNDER_WAY)]
    assert names(abandoned) == before


def test_no_step_is_removed_while_a_save_runs_in_its_directory(abandoned: Path) -> None:
    below = abandoned / "below"
    shutil.copytree(abandoned, below)
    in_order_of_age(below, 1, 2, 3)
    with running_save(abandoned):
        report = collect_garbage(abandoned, incomplete=True)
    assert [(step.directory, step.removed) for step in report.steps] == [
        (str(abandoned), False),
        (str(below), True),
    ]
    assert len(of_step(abandoned, 2)) == 4
    assert of_step(below, 2) == set()


def test_shards_alone_and_torn_steps_are_removed_too(tmp_path: Path) -> None:
    save(tmp_path, 1, 11, ranks=(1,))
    save(tmp_path, 2, 12)
    (tmp_path / "model_000002.pt").unlink()
    save(tmp_path, 2, 13, ranks=(0,))
    for name in [name for name in names(tmp_path) if name.endswith(".kept")]:
        (tmp_path / name).unlink()
    save(tmp_path, 3, 14)
    in_order_of_age(tmp_path, 1, 2, 3)
    report = collect_garbage(tmp_path, incomplete=True)
    assert [(step.step, step.state) for step in report.steps] == [
        (1, StepState.ABANDONED),
        (2, StepState.ABANDONED),
    ]
    assert "is not of the save that" in report.steps[1].reason
    assert names(tmp_path) == of_step(tmp_path, 3)


def test_models_whose_shards_were_removed_on_purpose_stay(tmp_path: Path) -> None:
    save(tmp_path, 1, 11)
    for rank in range(RANKS):
        (tmp_path / f"optim_000001_rank{rank}.pt").unlink()
    save(tmp_path, 2, 12)
    in_order_of_age(tmp_path, 1, 2)
    before = names(tmp_path)
    report = collect_garbage(tmp_path, incomplete=True)
    assert [(step.step, step.state) for step in report.steps] == [(1, StepState.MODEL_ONLY)]
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    "files",
    [
        ("model_000001.pt",),
        ("model_000001.pt", "optim_000001_rank1.pt"),
        ("optim_000001_rank0.pt",),
    ],
)
def test_what_torch_has_saved_is_not_removed(tmp_path: Path, files: tuple[str, ...]) -> None:
    for name in files:
        torch.save({"w": torch.ones(3)}, tmp_path / name)
    save(tmp_path, 2, 12)
    in_order_of_age(tmp_path, 1, 2)
    report = collect_garbage(tmp_path, incomplete=True)
    assert [(step.step, step.state) for step in report.steps] == [(1, StepState.FOREIGN)]
    assert of_step(tmp_path, 1) == {*files}


def test_nanochats_own_steps_without_a_gap_are_whole(tmp_path: Path) -> None:
    for name in ("model_000001.pt", "optim_000001_rank0.pt", "optim_000001_rank1.pt"):
        torch.save({"w": torch.ones(3)}, tmp_path / name)
    (tmp_path / "meta_000001.json").write_text("{}")
    save(tmp_path, 2, 12)
    assert collect_garbage(tmp_path, incomplete=True).steps == ()


def test_a_damaged_step_is_not_judged(abandoned: Path) -> None:
    with (abandoned / "model_000002.pt").open("r+b") as file:
        file.truncate(100)
    before = names(abandoned)
    report = collect_garbage(abandoned, incomplete=True)
    assert [(step.step, step.state) for step in report.steps] == [(2, StepState.DAMAGED)]
    assert report.ok
    assert names(abandoned) == before


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("calls", range(6))
def test_a_crash_while_a_step_is_removed_leaves_nothing_that_looks_whole(
    abandoned: Path, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop before each unlink and fsync: the model is gone, durably, before anything else is."""
    left = calls
    trace: list[str] = []

    def then(real: Any, word: str) -> Any:
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
    if calls < 5:
        with pytest.raises(Crash):
            collect_garbage(abandoned, incomplete=True)
    else:
        assert collect_garbage(abandoned, incomplete=True).ok
    monkeypatch.undo()

    assert (
        trace
        == [
            "model_000002.pt",
            "fsync",
            "meta_000002.json",
            "optim_000002_rank0.pt",
            "manifest_000002.json",
        ][:calls]
    )
    assert (whole(abandoned, 1), whole(abandoned, 3)) == (11, 13)
    if calls:
        assert "model_000002.pt" not in names(abandoned)
    with pytest.raises(FileNotFoundError):
        fastckpt.load_checkpoint(abandoned, 2, "cpu", load_optimizer=True)
    assert collect_garbage(abandoned, incomplete=True).ok
    assert of_step(abandoned, 2) == set()


def test_the_rest_stays_where_the_model_cannot_be_removed(
    abandoned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(directory: HeldDirectory, name: str) -> None:
        assert name == "model_000002.pt"
        path = os.path.join(directory.path, name)
        raise OSError(errno.EPERM, "Operation not permitted", path)

    monkeypatch.setattr(HeldDirectory, "unlink", fail)
    before = names(abandoned)
    report = collect_garbage(abandoned, incomplete=True)
    monkeypatch.undo()
    assert report.errors == ((str(abandoned / "model_000002.pt"), "Operation not permitted"),)
    assert [step.removed for step in report.steps] == [False]
    assert {file.error for file in report.files} == {
        "Operation not permitted",
        "kept, since the model could not be removed",
    }
    assert names(abandoned) == before


# Directories of exports


@pytest.fixture
def killed_export(tmp_path: Path) -> Path:
    """What an export leaves that is killed when its files are whole and not yet in place."""
    torch.save({"a": torch.ones(1000), "b": torch.ones(1000)}, tmp_path / "c.pt")

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def export() -> None:
        vars(hub)["publish"] = die
        ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path, max_shard_nbytes=1)

    assert exit_code(in_child(export)) == -signal.SIGKILL
    (left,) = names(tmp_path) - {"c.pt"}
    return tmp_path / left


def test_a_dead_export_is_cleaned_up_and_a_running_one_is_not(
    killed_export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = killed_export.parent
    nbytes = sum(path.stat().st_size for path in killed_export.iterdir())
    assert nbytes > 8000
    stage = make_stage(str(directory))
    running = Path(stage.path)
    (running / "model.safetensors").write_bytes(bytes(500))
    listed = collect_garbage(directory, dry_run=True)
    assert len(list(killed_export.iterdir())) == 3
    assert run(["gc", "--dry-run", str(directory)]) == 0
    text = capsys.readouterr()
    report = collect_garbage(directory)
    assert names(directory) == {"c.pt", running.name}
    for each, removed in ((listed, False), (report, True)):
        (file,) = each.files
        assert (file.path, file.kind) == (str(killed_export), GarbageKind.EXPORT)
        assert (file.nbytes, file.removed, file.error) == (nbytes, removed, None)
        assert each.freed_nbytes == nbytes
        assert each.live == (str(running),)
    size = f"{nbytes / 1000:.1f} kB"
    assert text.out.splitlines() == [
        f"WOULD REMOVE: 1 directory, {size} would be freed",
        str(directory),
        f"  would remove  stale export     {size:>9}  {killed_export.name}",
    ]
    assert text.err.startswith("note: 1 save or export is running; ")
    stage.close()
    assert collect_garbage(directory).freed_nbytes == 500
    assert names(directory) == {"c.pt"}


def test_an_export_of_before_the_machine_was_started_is_removed(killed_export: Path) -> None:
    """The next export leaves it alone, since it might be another machine's."""
    earlier = killed_export.with_name(".fastckpt-export-00000000-abcd_012")
    killed_export.rename(earlier)
    ModelExporter.export_safetensors(earlier.with_name("c.pt"), earlier.with_name("m.safetensors"))
    assert earlier.exists()
    assert [file.path for file in collect_garbage(earlier.parent).files] == [str(earlier)]
    assert not earlier.exists()


def test_what_only_looks_like_an_export_is_left_alone(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").touch()
    (tmp_path / ".fastckpt-export-00000000-abcd_012").symlink_to(elsewhere)
    (tmp_path / ".fastckpt-export-00000000-abcd_013").write_bytes(b"mine")
    (tmp_path / ".fastckpt-export-mine").mkdir()
    before = names(tmp_path)
    report = collect_garbage(tmp_path, incomplete=True)
    assert (report.files, report.live) == ((), ())
    assert names(tmp_path) == before
    assert names(elsewhere) == {"mine"}


def test_an_export_that_cannot_be_removed_is_an_error(
    killed_export: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str, *, dir_fd: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system", name)

    monkeypatch.setattr(os, "unlink", fail)
    assert run(["gc", str(killed_export.parent)]) == 6
    captured = capsys.readouterr()
    assert captured.out.startswith("NOT REMOVED: 1 directory\n")
    assert captured.err == f"error: {killed_export}: Read-only file system\n"
    report = collect_garbage(killed_export.parent)
    assert report.freed_nbytes == 0
    assert [file.error for file in report.files] == ["Read-only file system"]


# Files of ranks without their checkpoint


def managed(step: int, rank: int = 0) -> str:
    return str(CheckpointName(step, 0, rank))


def save_managed(directory: Path, step: int, ranks: tuple[int, ...] = (1, 0)) -> None:
    """Save a checkpoint of two ranks with a CheckpointManager; those that are left out never come to it."""
    with save_id_module.agreed(1000 + step, RANKS), pytest.MonkeyPatch.context() as patch:
        for rank in ranks:
            patch.setattr(manager_module, "rank_and_world_size", lambda rank=rank: (rank, RANKS))
            manager_of(directory, Weights(step), metric_name=None).save(0, step, {})


@contextmanager
def rank_0_in_the_middle_of(directory: Path, step: int) -> Iterator[int]:
    """Run a process that saves a checkpoint, and stops when it is written and has no name yet."""
    ready, says_ready = os.pipe()

    def stop(*args: Any, **options: Any) -> None:
        write_into(*args, **options)
        os.write(says_ready, b"1")
        threading.Event().wait()

    def save_and_stop() -> None:
        vars(writing)["write_into"] = stop
        save_managed(directory, step, ranks=(0,))

    write_into = vars(writing)["write_into"]
    child = in_child(save_and_stop)
    os.close(says_ready)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        assert exit_code(child) == -signal.SIGKILL


@pytest.fixture
def orphaned(tmp_path: Path) -> Path:
    """Checkpoints 10 and 30 are whole; of 20 there is rank 1's file, dated between the two."""
    for step, ranks in ((10, (1, 0)), (30, (1, 0)), (20, (1,))):
        save_managed(tmp_path, step, ranks)
    for name in names(tmp_path):
        parsed = parse_checkpoint_name(name)
        assert parsed is not None
        os.utime(tmp_path / name, (10**9 + parsed.step, 10**9 + parsed.step))
    return tmp_path


def test_what_ranks_saved_of_a_checkpoint_that_is_gone_goes_only_when_told_to(
    orphaned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(orphaned)
    left = orphaned / managed(20, 1)
    nbytes = left.stat().st_size
    assert run(["gc", str(orphaned)]) == 0
    captured = capsys.readouterr()
    assert captured.out == (
        "NOTHING TO REMOVE\n"
        f"epoch 0, step 20 in {orphaned} can never be completed (1 file, {nbytes / 1000:.1f} kB): "
        f"{orphaned / managed(20)} is missing: rank 0 has not saved it, or it was deleted\n"
    )
    assert captured.err == "hint: --incomplete removes 1 step that can never be completed\n"
    assert collect_garbage(orphaned, incomplete=True, dry_run=True).freed_nbytes == nbytes
    assert names(orphaned) == before

    report = run_json(capsys, "gc", "--incomplete", str(orphaned), status="good")["report"]
    (file,), (step,) = report["files"], report["steps"]
    assert file == {
        "path": str(left),
        "kind": "incomplete",
        "step": 20,
        "nbytes": nbytes,
        "removed": True,
        "error": None,
    }
    assert (step["step"], step["epoch"], step["state"]) == (20, 0, "abandoned")
    assert step["removed"]
    assert report["freed_nbytes"] == nbytes
    assert names(orphaned) == before - {left.name}


def test_what_is_newer_than_every_later_checkpoint_may_be_completed(orphaned: Path) -> None:
    """A run that was started again from step 10 has come to 20; 30 is of the first run."""
    before = names(orphaned)
    os.utime(orphaned / managed(20, 1), (2 * 10**9, 2 * 10**9))
    (step,) = collect_garbage(orphaned, incomplete=True).steps
    assert (step.state, step.removed) == (StepState.UNDER_WAY, False)
    assert names(orphaned) == before


@pytest.mark.parametrize("content", [None, b"no archive"])
def test_without_a_later_whole_checkpoint_nothing_is_known(
    orphaned: Path, content: bytes | None
) -> None:
    later = orphaned / managed(30)
    later.unlink()
    if content is not None:
        later.write_bytes(content)
    before = names(orphaned)
    report = collect_garbage(orphaned, incomplete=True)
    assert {step.state for step in report.steps} == {StepState.UNDER_WAY}
    assert names(orphaned) == before


def test_nothing_is_removed_while_rank_0_may_still_be_writing(orphaned: Path) -> None:
    left = orphaned / managed(20, 1)
    with rank_0_in_the_middle_of(orphaned, 20):
        report = collect_garbage(orphaned, incomplete=True)
        assert [step.removed for step in report.steps] == [False]
        assert len(report.live) == 1
        assert left.exists()
    # It was killed there.
    report = collect_garbage(orphaned, incomplete=True)
    assert [(file.kind, file.step) for file in report.files] == [
        (GarbageKind.TEMPORARY, None),
        (GarbageKind.INCOMPLETE, 20),
    ]
    assert names(orphaned) == {managed(step, rank) for step in (10, 30) for rank in (0, 1)}


@pytest.mark.parametrize(
    ("content", "state"),
    [(torch.ones(3), StepState.FOREIGN), (b"no archive", StepState.DAMAGED)],
)
def test_files_of_ranks_that_are_not_ours_or_are_damaged_stay(
    orphaned: Path, content: Any, state: StepState
) -> None:
    left = orphaned / managed(20, 1)
    if isinstance(content, bytes):
        left.write_bytes(content)
    else:
        torch.save(content, left)
    os.utime(left, (10**9, 10**9))
    (step,) = collect_garbage(orphaned, incomplete=True).steps
    assert (step.state, step.removed) == (state, False)
    assert left.exists()


def test_a_power_cut_leaves_no_checkpoint_that_lacks_what_its_ranks_saved(
    orphaned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may have deleted the checkpoint just now: that has to be durable first."""
    trace: list[str] = []

    def sync_directory(path: str) -> None:
        trace.append(f"fsync {path}")

    def unlink(_directory: HeldDirectory, name: str) -> None:
        trace.append(f"unlink {name}")

    monkeypatch.setattr(removal, "sync_directory", sync_directory)
    monkeypatch.setattr(HeldDirectory, "unlink", unlink)
    collect_garbage(orphaned, incomplete=True)
    monkeypatch.undo()
    assert trace == [f"fsync {orphaned}", f"unlink {managed(20, 1)}"]


# Directories


def test_directories_below_and_links_are_looked_through_once(tmp_path: Path) -> None:
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    for directory in (runs / "d12", elsewhere):
        save(directory, 1, 11)
        leave_temporary(directory)
    (runs / "link").symlink_to(elsewhere)
    (runs / "loop").symlink_to(runs)
    report = collect_garbage([runs, elsewhere])
    assert sorted(os.path.dirname(file.path) for file in report.files) == [
        str(runs / "d12"),
        str(runs / "link"),
    ]
    assert report.ok
    for directory in (runs / "d12", elsewhere):
        assert whole(directory, 1) == 11
        assert not [name for name in names(directory) if name.startswith(".")]


def test_a_path_that_is_no_directory_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    report = collect_garbage([tmp_path / "nothing", tmp_path / "file"])
    assert report.not_found == (str(tmp_path / "nothing"), str(tmp_path / "file"))
    assert (report.status, report.exit_code) == ("not_found", 4)


# The command


def test_text(abandoned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = leave_temporary(abandoned, 1500)
    assert run(["gc", "--dry-run", str(abandoned)]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[:3] == [
        "WOULD REMOVE: 1 file, 1.5 kB would be freed",
        str(abandoned),
        f"  would remove  temporary file      1.5 kB  {left}",
    ]
    assert lines[3].startswith(f"step 2 in {abandoned} can never be completed (4 files, ")
    assert lines[4] == "  its model and meta are whole: they can be loaded without the optimizer"
    assert captured.err == "hint: --incomplete removes 1 step that can never be completed\n"

    assert run(["gc", "--incomplete", str(abandoned)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("REMOVED: 5 files, ")
    assert f"  removed       temporary file      1.5 kB  {left}\n" in captured.out
    assert "  removed       incomplete step" in captured.out
    assert captured.err == ""

    assert run(["gc", str(abandoned)]) == 0
    assert capsys.readouterr().out == "NOTHING TO REMOVE\n"


def test_document(abandoned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run_json(capsys, "gc", "--incomplete", str(abandoned), status="good")["report"]
    assert report["freed_nbytes"] == sum(file["nbytes"] for file in report["files"])
    assert report["files"][0]["path"] == str(abandoned / "model_000002.pt")
    assert {file["kind"] for file in report["files"]} == {"incomplete"}
    (step,) = report["steps"]
    assert (step["step"], step["state"], step["removed"]) == (2, "abandoned", True)


def test_exit_codes_of_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "nothing")
    assert run(["gc", missing]) == 4
    captured = capsys.readouterr()
    assert captured.out == "NOT FOUND: 1 path\n"
    assert captured.err == f"error: {missing}: no such directory\n"
    assert run(["gc"]) == 2
    assert "hint: try `fastckpt gc --help`" in capsys.readouterr().err


def test_running_saves_are_noted(abandoned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running_save(abandoned) as live:
        assert run(["gc", "--incomplete", str(abandoned)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("NOTHING TO REMOVE\n")
    assert captured.err == (
        "note: 1 save or export is running; their files are not touched: "
        f"{abandoned}/{live}\n"
        "hint: no step is removed while a save or an export is running in its directory\n"
    )


def test_names_do_not_control_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = tmp_path / "d\x1b[2J\n12"
    save(evil, 1, 11)
    leave_temporary(evil)
    assert run(["gc", str(evil)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_the_command_imports_no_torch(abandoned: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fastckpt", "gc", str(abandoned)],
        text=True,
        capture_output=True,
        check=True,
        timeout=200,
    )
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()
    }
    assert "typer" in imported
    assert not imported & {"torch", "numpy", "rich"}
