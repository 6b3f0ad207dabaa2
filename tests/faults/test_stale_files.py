"""What crashes, editors and other saves leave beside checkpoints: never found as one, removed if ours and dead."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tests.faults.children import NOBODY, exit_code, in_child, run_in_child, working_in
from tests.faults.requirements import need_root
from tests.specimens import assert_same

import fastckpt
from fastckpt._steps.save_id import agreed
from fastckpt._verify.verify import Status

STATE = {"w": torch.arange(1000.0), "n": 1}
NEW = {"w": torch.arange(2000.0), "n": 2}
# Steps of which only what is planted tells; those that are there are below.
PLANTED_STEP = 900
SAVE_ID = 12345678901234

# Process 1 always lives, and the last number is above all that a process has: owners go by the lock.
DEAD = [
    ".fastckpt-1-0.tmp",
    ".fastckpt-4194304-17.tmp",
    ".fastckpt-99999999999999999999-1.tmp",
    f".fastckpt-{os.getpid()}-18446744073709551615.tmp",
    ".fastckpt-0-0.tmp",
]

# Not ours: other programs', other versions', and what only looks like ours.
FOREIGN = [
    ".fastckpt-1-0.tmp~",
    ".fastckpt-1-0.tmp.swp",
    ".fastckpt-1-0.tmp.pt",
    ".fastckpt-1.tmp",
    ".fastckpt--0.tmp",
    ".fastckpt-1-x.tmp",
    ".fastckpt-1-0-2.tmp",
    ".fastckpt-.tmp",
    ".fastckpt-1-0",
    "fastckpt-1-0.tmp",
    ".fastckpt-\uff11-0.tmp",
    f"#model_{PLANTED_STEP:06d}.pt#",
    f".#model_{PLANTED_STEP:06d}.pt.1",
    f"model_{PLANTED_STEP:06d}.pt~",
    f"model_{PLANTED_STEP:06d}.pt.bak",
    f".model_{PLANTED_STEP:06d}.pt.swp",
    f"model_{PLANTED_STEP:06d}.pt.tmp",
    f"model_{PLANTED_STEP:06d}.pt.part",
    f"model_{PLANTED_STEP:06d}.pt.torrent",
    f".nfs{PLANTED_STEP:016x}",
    f"model_{PLANTED_STEP:06d}_pt",
    f"meta_{PLANTED_STEP:06d}.json~",
    f"manifest_{PLANTED_STEP:06d}.json.tmp",
    ".fuse_hidden0000000900000001",
    "core",
]

# Second names of files of saves that a later one was about to replace.
KEPT_PARTS = [
    f"model_{PLANTED_STEP:06d}.pt",
    f"optim_{PLANTED_STEP:06d}_rank0.pt",
    f"meta_{PLANTED_STEP:06d}.json",
]
ALMOST_KEPT = [
    f".fastckpt-1234-model_{PLANTED_STEP:06d}.pt.kept",
    f".fastckpt-{SAVE_ID}-model_{PLANTED_STEP:06d}.pt.kept.pt~",
    f".fastckpt-{SAVE_ID}-model_{PLANTED_STEP:06d}.kept",
    f".fastckpt-{SAVE_ID}-.kept",
    f"fastckpt-{SAVE_ID}-model_{PLANTED_STEP:06d}.pt.kept",
]


def kept(part: str) -> str:
    return f".fastckpt-{SAVE_ID}-{part}.kept"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with steps 5 and 10, in a directory of model tags."""
    run = tmp_path / "tags" / "d12"
    for step in (5, 10):
        fastckpt.save_checkpoint(run, step, STATE, STATE, {"step": step})
    return run


def plant(directory: Path, *names: str) -> None:
    """Make files that hold a whole checkpoint, so that nothing but the name tells what they are."""
    for name in names:
        shutil.copyfile(directory / "model_000010.pt", directory / name)


def assert_only_the_steps_are_found(run: Path) -> None:
    assert_no_planted_step(run)
    report = fastckpt.verify(run)
    assert report.ok
    assert [step.step for step in report.steps] == [5, 10]
    assert not {Path(file.path).name for file in report.files} & {*DEAD, *FOREIGN, *ALMOST_KEPT}


def assert_no_planted_step(run: Path) -> None:
    assert fastckpt.find_last_step(run) == 10
    assert fastckpt.find_last_good_step(run) == 10
    assert fastckpt.find_last_good_step(run, verify="full") == 10
    assert fastckpt.find_largest_model(run.parent) == "d12"
    with pytest.raises(FileNotFoundError):
        fastckpt.load_checkpoint(run, PLANTED_STEP, "cpu")


def save_into(directory: Path) -> None:
    fastckpt.save(NEW, directory / "model.pt")
    assert_same(fastckpt.load(directory / "model.pt"), NEW)
    (directory / "model.pt").unlink()


@contextmanager
def owner(path: Path) -> Iterator[int]:
    """A process that holds a temporary file, as one that is saving does; yields its number."""
    ready, says_ready = os.pipe()

    def hold() -> None:
        with path.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.write(says_ready, b"1")
            threading.Event().wait()

    child = in_child(hold)
    os.close(says_ready)
    try:
        assert os.read(ready, 1) == b"1"
        yield child
    finally:
        os.close(ready)
        os.kill(child, 9)
        assert exit_code(child) == -9


def test_nothing_that_is_planted_is_taken_for_a_checkpoint(run: Path) -> None:
    before = sorted(os.listdir(run))
    plant(run, *DEAD, *FOREIGN, *ALMOST_KEPT)
    (run.parent / ".fastckpt-3-4.tmp").touch()
    (run.parent / "d99.tmp").touch()
    assert_only_the_steps_are_found(run)
    assert sorted(os.listdir(run)) == sorted([*before, *DEAD, *FOREIGN, *ALMOST_KEPT])
    assert {Path(path).name for path in fastckpt.verify(run).leftovers} >= set(DEAD)


@pytest.mark.parametrize("sync", [True, False])
def test_the_next_save_removes_what_is_dead_and_ours_and_nothing_else(
    sync: bool, run: Path
) -> None:
    before = sorted(os.listdir(run))
    plant(run, *DEAD, *FOREIGN, *ALMOST_KEPT)
    fastckpt.save(NEW, run / before[0], sync=sync)
    assert sorted(os.listdir(run)) == sorted([*before, *FOREIGN, *ALMOST_KEPT])
    assert not fastckpt.verify(run).leftovers or all(
        Path(path).name in FOREIGN for path in fastckpt.verify(run).leftovers
    )
    plant(run, *DEAD)
    fastckpt.save_checkpoint(run, 10, STATE, STATE, {"step": 10})
    assert sorted(os.listdir(run)) == sorted([*before, *FOREIGN, *ALMOST_KEPT])


def test_a_live_owner_keeps_its_file_until_it_dies(run: Path) -> None:
    before = sorted(os.listdir(run))
    held = run / ".fastckpt-4194304-3.tmp"
    with owner(held):
        for _ in range(3):
            save_into(run)
            assert sorted(os.listdir(run)) == sorted([*before, held.name])
        assert_only_the_steps_are_found(run)
    assert held.exists()
    save_into(run)
    assert sorted(os.listdir(run)) == before


def test_a_name_that_somebody_holds_is_not_used_again(tmp_path: Path) -> None:
    """In another container, a process may have our number."""

    def hold_and_save() -> None:
        names = [f".fastckpt-{os.getpid()}-{number}.tmp" for number in range(500)]
        with owner_of_all(tmp_path, names):
            for _ in range(5):
                save_into(tmp_path)
                assert sorted(os.listdir(tmp_path)) == sorted(names)

    outcome = run_in_child(hold_and_save)
    assert outcome.ok, outcome


@contextmanager
def owner_of_all(directory: Path, names: list[str]) -> Iterator[None]:
    files = [(directory / name).open("wb") for name in names]
    try:
        for file in files:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        for file in files:
            file.close()


def test_the_file_of_a_save_that_is_under_way_is_kept(tmp_path: Path) -> None:
    """Saves of one process, in threads, to one directory: none removes what another writes."""
    big = {"w": torch.zeros(4_000_000)}
    began, go_on = threading.Event(), threading.Event()

    def note(done: int, total: int) -> None:
        began.set()
        assert go_on.wait(60)

    saving = threading.Thread(
        target=fastckpt.save, args=(big, tmp_path / "big.pt"), kwargs={"progress": note}
    )
    saving.start()
    try:
        assert began.wait(60)
        [name] = os.listdir(tmp_path)
        for _ in range(3):
            save_into(tmp_path)
            assert os.listdir(tmp_path) == [name]
    finally:
        go_on.set()
        saving.join()
    assert os.listdir(tmp_path) == ["big.pt"]
    assert torch.equal(fastckpt.load(tmp_path / "big.pt")["w"], big["w"])


def test_what_has_our_name_and_is_no_file_is_left_alone(tmp_path: Path) -> None:
    """A link leads to what is not ours, and a FIFO would wait for a writer."""
    path = tmp_path / "settled.pt"
    fastckpt.save(STATE, path)
    (tmp_path / ".fastckpt-1-1.tmp").symlink_to(path.name)
    (tmp_path / ".fastckpt-1-2.tmp").symlink_to("nowhere")
    os.mkfifo(tmp_path / ".fastckpt-1-3.tmp")
    (tmp_path / ".fastckpt-1-4.tmp").mkdir()
    (tmp_path / ".fastckpt-1-4.tmp" / "inside").touch()
    (tmp_path / ".fastckpt-1-5.tmp").hardlink_to(path)
    before = sorted(os.listdir(tmp_path))
    save_into(tmp_path)
    # Of the second name of a checkpoint the name goes, and the checkpoint stays.
    assert sorted(os.listdir(tmp_path)) == [name for name in before if "1-5" not in name]
    assert_same(fastckpt.load(path), STATE)
    assert path.stat().st_nlink == 1


@pytest.mark.parametrize("sticky", [True, False])
def test_what_cannot_be_removed_does_not_hold_up_a_save(sticky: bool, tmp_path: Path) -> None:
    """Files of another user: they may not be opened, or, in a directory like /tmp, not removed."""
    need_root()
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o1777 if sticky else 0o777)
    for number in range(3):
        (directory / f".fastckpt-1-{number}.tmp").touch()
        (directory / f".fastckpt-1-{number}.tmp").chmod(0o644 if sticky else 0)
    with working_in(directory):
        outcome = run_in_child(lambda: save_into(Path()), user=NOBODY)
    assert outcome.ok, outcome
    assert len(os.listdir(directory)) == 3
    save_into(directory)
    assert os.listdir(directory) == []


def test_thousands_of_dead_files_are_removed_by_one_save(tmp_path: Path) -> None:
    for number in range(3000):
        (tmp_path / f".fastckpt-{number % 7}-{number}.tmp").touch()
    save_into(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_killed_process_leaves_what_the_next_save_removes(tmp_path: Path) -> None:
    """As it is in life: killed while its temporary file is open."""
    ready, says_ready = os.pipe()

    def save_and_wait() -> None:
        def note(done: int, total: int) -> None:
            os.write(says_ready, b"1")
            threading.Event().wait()

        fastckpt.save({"w": torch.zeros(1_000_000)}, tmp_path / "model.pt", progress=note)

    child = in_child(save_and_wait)
    os.close(says_ready)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    os.kill(child, 9)
    assert exit_code(child) == -9
    [name] = os.listdir(tmp_path)
    assert stat.S_ISREG((tmp_path / name).stat().st_mode)
    assert name.startswith(f".fastckpt-{child}-")
    assert name.endswith(".tmp")
    assert not fastckpt.verify(tmp_path).steps
    save_into(tmp_path)
    assert os.listdir(tmp_path) == []


# Second names of replaced files


@pytest.mark.parametrize("part", KEPT_PARTS)
def test_a_kept_part_alone_is_no_step(part: str, run: Path) -> None:
    plant(run, kept(part))
    for _ in range(2):
        assert_no_planted_step(run)
        steps = {step.step: step.status for step in fastckpt.verify(run).steps}
        # All that could be said of it is that it is no whole step.
        planted = steps.pop(PLANTED_STEP, Status.INCOMPLETE)
        assert planted is Status.INCOMPLETE
        assert steps == {5: Status.GOOD, 10: Status.GOOD}
        fastckpt.save_checkpoint(run, 10, STATE, STATE, {"step": 10})
        # It is of another step, of which nothing tells whether a save is under way.
        assert kept(part) in os.listdir(run)


@pytest.mark.parametrize("content", [b"", b"PK\3\4 half of an archive", bytes(5000)])
def test_a_kept_part_that_is_damaged_hides_nothing(content: bytes, run: Path) -> None:
    for step in (10, PLANTED_STEP):
        for part in KEPT_PARTS:
            name = kept(part.replace(f"{PLANTED_STEP:06d}", f"{step:06d}"))
            (run / name).write_bytes(content)
    assert fastckpt.find_last_step(run) == 10
    assert fastckpt.find_last_good_step(run) == 10
    assert_same(fastckpt.load_checkpoint(run, 10, "cpu", load_optimizer=True)[1], STATE)
    fastckpt.save_checkpoint(run, 10, NEW, NEW, {"step": 10})
    assert_same(fastckpt.load_checkpoint(run, 10, "cpu", load_optimizer=True)[1], NEW)


def save_rank(run: Path, save_id: int, data: object, rank: int) -> None:
    with agreed(save_id, 2):
        fastckpt.save_checkpoint(run, 20, data, data, {"step": 20}, rank)


@pytest.mark.parametrize("first", [0, 1])
def test_second_names_go_when_the_save_that_needs_them_not_is_whole(
    first: int, tmp_path: Path
) -> None:
    for rank in (0, 1):
        save_rank(tmp_path, 1, STATE, rank)
    names = sorted(os.listdir(tmp_path))
    save_rank(tmp_path, 2, NEW, first)
    hidden = {name for name in os.listdir(tmp_path) if name.startswith(".")}
    parts = (f"optim_000020_rank{first}.pt", "model_000020.pt", "meta_000020.json")
    assert {f".fastckpt-{1:014d}-{part}.kept" for part in parts[: 1 if first else 3]} <= hidden
    assert fastckpt.find_last_step(tmp_path) == fastckpt.find_last_good_step(tmp_path) == 20
    for rank in (0, 1):
        found = fastckpt.load_checkpoint(
            tmp_path, 20, "cpu", load_optimizer=True, rank=rank, world_size=2
        )
        assert_same(found[1], STATE)
    save_rank(tmp_path, 2, NEW, 1 - first)
    assert sorted(os.listdir(tmp_path)) == names
    for rank in (0, 1):
        found = fastckpt.load_checkpoint(
            tmp_path, 20, "cpu", load_optimizer=True, rank=rank, world_size=2
        )
        assert_same(found[1], NEW)
