"""What deletes looks again right before it does, in the directory that it opened, under a lock."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fastckpt._steps import held as held_module
from fastckpt._steps import removal
from fastckpt._steps.held import HeldDirectory
from fastckpt._steps.removal import Going, Removal

MODEL, SHARD, META = "model_000100.pt", "optim_000100_rank0.pt", "meta_000100.json"
NAMES = (MODEL, SHARD, META)
CHANGED = "kept, since it was saved again meanwhile"
LOCKED = "kept, since another process is saving or deleting here"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir()
    for name in (*NAMES, "model_000200.pt"):
        (directory / name).write_text(name)
    return directory


@pytest.fixture
def held(run: Path) -> Iterator[HeldDirectory]:
    with closing(HeldDirectory.open(str(run))) as held:
        yield held


def going_of(held: HeldDirectory, **more: object) -> Going:
    """Judge step 100 as it is now."""
    return Going(
        directory=held,
        first=[MODEL],
        rest=[SHARD, META],
        judged=held.look_at(list(NAMES)),
        part="_000100",
        belongs=lambda name: "000100" in name,
        what="model",
        **more,  # type: ignore[arg-type]
    )


def save_again(path: Path) -> None:
    """Publish a file as a save does: under its name there is another inode."""
    temporary = path.with_name(".new")
    temporary.write_text(f"a newer {path.name}")
    temporary.rename(path)


def names(directory: Path) -> set[str]:
    return {*os.listdir(directory)}


def kept(run: Path, words: str, *which: str) -> dict[str, str]:
    return {str(run / name): words for name in which}


def test_what_is_as_it_was_judged_goes_and_nothing_else(run: Path, held: HeldDirectory) -> None:
    removal = Removal()
    assert removal.remove(going_of(held)) == {}
    assert names(run) == {"model_000200.pt"}
    assert removal.errors == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "change",
    [save_again, lambda path: path.write_text("written in place"), os.utime],
    ids=["saved again", "written in place", "touched"],
)
def test_nothing_goes_where_a_file_has_changed_since_it_was_judged(
    name: str, change: Callable[[Path], object], run: Path, held: HeldDirectory
) -> None:
    going = going_of(held)
    change(run / name)
    before = names(run)
    assert Removal().remove(going) == kept(run, CHANGED, *NAMES)
    assert names(run) == before


def test_nothing_goes_where_a_file_of_the_checkpoint_has_appeared(
    run: Path, held: HeldDirectory
) -> None:
    going = going_of(held)
    (run / "optim_000100_rank1.pt").write_text("of another rank")
    assert Removal().remove(going) == kept(run, CHANGED, *NAMES)
    assert {*NAMES} < names(run)


def test_what_somebody_else_has_removed_meanwhile_is_no_change(
    run: Path, held: HeldDirectory
) -> None:
    going = going_of(held)
    (run / MODEL).unlink()
    (run / META).unlink()
    assert Removal().remove(going) == {}
    assert names(run) == {"model_000200.pt"}


@pytest.mark.parametrize("saved", [MODEL, SHARD, META, "optim_000100_rank1.pt"])
def test_a_save_between_the_model_and_the_rest_keeps_all_that_is_left(
    saved: str, run: Path, held: HeldDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fsync in between takes time, and the lock is not held across it."""
    going = going_of(held)
    real = removal.sync_directory

    def save_meanwhile(path: str) -> None:
        save_again(run / saved)
        real(path)

    monkeypatch.setattr(removal, "sync_directory", save_meanwhile)
    assert Removal().remove(going) == kept(run, CHANGED, SHARD, META)
    assert names(run) == {saved, SHARD, META, "model_000200.pt"}


def test_nothing_goes_on_account_of_what_is_not_there_any_more(
    run: Path, held: HeldDirectory
) -> None:
    going = going_of(held, relies_on=held.look_at(["model_000200.pt"]))
    save_again(run / "model_000200.pt")
    words = "kept, since model_000200.pt, which was verified, has changed meanwhile"
    assert Removal().remove(going) == kept(run, words, *NAMES)
    assert {*NAMES} < names(run)


def test_nothing_goes_while_somebody_saves(
    run: Path, held: HeldDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_module, "_PATIENCE_SECS", 0.05)
    going = going_of(held)
    with closing(HeldDirectory.open(str(run))) as saver:
        # As savers do: any number of them share it.
        fcntl.flock(saver._fd, fcntl.LOCK_SH)
        assert Removal().remove(going) == kept(run, LOCKED, *NAMES)
        assert {*NAMES} < names(run)
        with held.locked() as is_locked:
            assert not is_locked
    assert Removal().remove(going) == {}


def test_the_lock_is_given_up_although_a_forked_process_has_the_directory_open(
    run: Path, held: HeldDirectory
) -> None:
    with held.locked() as is_locked:
        assert is_locked
        inherited = os.dup(held._fd)
    with closing(HeldDirectory.open(str(run))) as other, other.locked() as is_locked:
        assert is_locked
    os.close(inherited)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EBADF, errno.ENOTSUP, errno.EINVAL])
def test_where_directories_have_no_locks_the_second_look_has_to_do(
    number: int, run: Path, held: HeldDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_fd: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    going = going_of(held)
    save_again(run / SHARD)
    assert Removal().remove(going) == kept(run, CHANGED, *NAMES)
    assert Removal().remove(going_of(held)) == {}
    assert names(run) == {"model_000200.pt"}


def test_a_link_swapped_in_above_the_directory_deletes_nothing_elsewhere(
    run: Path, held: HeldDirectory, tmp_path: Path
) -> None:
    going = going_of(held)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in NAMES:
        (elsewhere / name).write_text("of somebody else")
    run.rename(tmp_path / "moved")
    run.symlink_to(elsewhere)
    assert Removal().remove(going) == {}
    assert names(elsewhere) == {*NAMES}
    assert names(tmp_path / "moved") == {"model_000200.pt"}


def test_a_directory_that_was_swapped_before_it_was_opened_has_other_files(
    run: Path, held: HeldDirectory, tmp_path: Path
) -> None:
    judged = going_of(held).judged
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in NAMES:
        (elsewhere / name).write_text(name)
    run.rename(tmp_path / "moved")
    run.symlink_to(elsewhere)
    with closing(HeldDirectory.open(str(run))) as swapped:
        going = Going(swapped, [MODEL], [SHARD, META], judged, "_000100", lambda _: True)
        assert Removal().remove(going) == kept(run, CHANGED, *NAMES)
    assert names(elsewhere) == {*NAMES}


def test_a_file_that_a_link_leads_to_counts_too(
    run: Path, held: HeldDirectory, tmp_path: Path
) -> None:
    """A save to a linked shard replaces the file on the other disk, and leaves the link as it was."""
    (run / SHARD).rename(tmp_path / "shard")
    (run / SHARD).symlink_to(tmp_path / "shard")
    going = going_of(held)
    save_again(tmp_path / "shard")
    assert Removal().remove(going) == kept(run, CHANGED, *NAMES)
    assert Removal().remove(going_of(held)) == {}
    assert names(run) == {"model_000200.pt"}


def test_where_files_have_no_numbers_of_their_own_size_and_time_have_to_do(
    run: Path, held: HeldDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FUSE and network file systems may number a file anew once the kernel has forgotten it."""
    monkeypatch.setattr(held, "_has_numbers", False)
    going = going_of(held)
    status = os.stat(run / MODEL)
    (run / "copy").write_text(MODEL)
    os.utime(run / "copy", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(run / "copy", run / MODEL)
    assert os.stat(run / MODEL).st_ino != status.st_ino
    assert Removal().remove(going) == {}
    (run / MODEL).write_text(MODEL)
    going = going_of(held)
    save_again(run / MODEL)
    assert Removal().remove(going) == kept(run, CHANGED, *NAMES)
