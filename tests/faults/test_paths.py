"""Where a save lands: names of any bytes, links of all kinds, and what is no file."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from tests.faults import links, moved_directories
from tests.faults.children import raised_by, run_in_child, working_in
from tests.faults.damage import fast_directory
from tests.specimens import assert_same

import fastckpt

SEED = 20
OLD = {"w": torch.arange(100.0), "n": 1}
NEW = {"w": torch.arange(200.0), "n": 2}

# Linux's own limits, in bytes: of a name, and of a path with the NUL at its end.
NAME_MAX = 255
PATH_MAX = 4096
# Symbolic links that the kernel follows on the way to one file.
LINKS_MAX = 40


def check_round_trip(path: Path | str) -> None:
    """Save twice, the second time over the first; nobody else finds another file there."""
    fastckpt.save(OLD, path, sync=False)
    fastckpt.save(NEW, path, sync=False)
    assert_same(fastckpt.load(path), NEW)
    assert_same(fastckpt.load(path, mmap=True), NEW)
    assert fastckpt.verify(path).ok
    with open(path, "rb") as file:
        assert_same(torch.load(file), NEW)


# Names

_SPECIAL = [
    "-rf",
    "--help",
    "%s%n%d",
    "a\nb.pt",
    " ",
    "  leading and trailing  ",
    "...",
    "~",
    "$HOME",
    "*?[a]",
    "'\"\\",
    "a\\b.pt",
    "a\\.pt",
    "\t\x1b[31m\x7f",
    "größe-🙂.pt",
    "cafe\u0301.pt",
    "\u202egnp.tp",
    "\udcff\udc80.pt",
    "NUL.pt.",
    "{}",
    "file:model.pt",
    "http:",
]


def _fits(name: str) -> bool:
    encoded = os.fsencode(name)
    # torch takes the last of these for a format of its own.
    if "/" in name or name in (".", "..") or name.endswith(".safetensors"):
        return False
    return 0 < len(encoded) <= NAME_MAX


def names() -> st.SearchStrategy[str]:
    """Draw file names: any text, any bytes (as Python passes them), lengths up to the limit."""
    text = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)
    # What a file name can hold: any bytes but these two.
    raw = st.binary(min_size=1, max_size=NAME_MAX).map(
        lambda name: os.fsdecode(name.replace(b"/", b"%").replace(b"\0", b"\xff"))
    )
    long = st.sampled_from(["x", "-", " ", "\udcfe"]).flatmap(
        lambda letter: st.integers(NAME_MAX - 2, NAME_MAX).map(lambda n: letter * n)
    )
    return st.one_of(st.sampled_from(_SPECIAL), text, raw, long).filter(_fits)


@hypothesis.settings(max_examples=500)
@hypothesis.given(name=names(), parent=st.one_of(st.none(), names()), relative=st.booleans())
def test_any_name_is_a_name(name: str, parent: str | None, relative: bool) -> None:
    with fast_directory() as top:
        directory = top
        if parent is not None:
            directory = top / parent
            directory.mkdir()
        path = name if relative else directory / name
        with working_in(directory):
            if _torch_takes(path):
                check_round_trip(path)
                assert os.listdir(directory) == [name]
            else:
                with pytest.raises(ValueError, match="torch needs a name"):
                    fastckpt.save(OLD, path)
                assert os.listdir(directory) == []


def _torch_takes(path: str | Path) -> bool:
    """Whether torch saves to this path: it has no root folder for a file that is called `.pt`, say."""
    directory, name = os.path.split(path)
    # To torch a backslash ends a directory's name, on Linux too, and that directory has to exist.
    behind_backslash = os.path.join(directory, name.rpartition("\\")[0])
    made = bool(behind_backslash) and not os.path.isdir(behind_backslash)
    if made:
        os.mkdir(behind_backslash)
    try:
        torch.save(OLD, path)
    except RuntimeError as error:
        if "invalid file name" not in str(error):
            raise
        return False
    else:
        os.unlink(path)
        return True
    finally:
        if made:
            os.rmdir(behind_backslash)


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    for name in ("x" * (NAME_MAX + 1), "é" * (NAME_MAX // 2 + 1)):
        path = str(tmp_path / name)
        with pytest.raises(OSError) as error:
            fastckpt.save(OLD, path)
        assert error.value.errno == errno.ENAMETOOLONG
        assert error.value.filename == path
    assert os.listdir(tmp_path) == []


def _deep(top: Path, nbytes: int) -> str:
    """Make directories below `top` until a path of so many bytes fits beneath; return that path."""
    path = str(top)
    while nbytes - len(path) > NAME_MAX + 1:
        # At least two characters remain: a separator and a name.
        path += "/" + "d" * min(NAME_MAX, nbytes - len(path) - 3)
        os.mkdir(path)
    return path + "/" + "f" * (nbytes - len(path) - 1)


def test_the_longest_path_works_and_a_longer_one_is_refused(tmp_path: Path) -> None:
    longest = _deep(tmp_path, PATH_MAX - 1)
    assert len(longest) == PATH_MAX - 1
    check_round_trip(longest)
    assert os.listdir(os.path.dirname(longest)) == [os.path.basename(longest)]
    too_long = os.path.join(tmp_path, *["d" * NAME_MAX] * (PATH_MAX // NAME_MAX), "f.pt")
    for call in (lambda: fastckpt.save(OLD, too_long), lambda: fastckpt.load(too_long)):
        with pytest.raises(OSError) as error:
            call()
        assert error.value.errno == errno.ENAMETOOLONG


def test_below_the_longest_path_relative_names_work(tmp_path: Path) -> None:
    def work() -> None:
        os.chdir(tmp_path)
        for _ in range(2 * PATH_MAX // NAME_MAX):
            os.mkdir("d" * NAME_MAX)
            os.chdir("d" * NAME_MAX)
        check_round_trip("f" * NAME_MAX)
        assert os.listdir() == ["f" * NAME_MAX]
        fastckpt.save_checkpoint(".", 1, OLD, OLD, {"step": 1})
        assert fastckpt.find_last_step(".") == 1
        assert_same(fastckpt.load_checkpoint(".", 1, "cpu", load_optimizer=True)[1], OLD)

    outcome = run_in_child(work)
    assert outcome.ok, outcome


# Links

TREES = 500


def test_a_save_through_links_lands_where_a_plain_open_writes() -> None:
    with fast_directory() as directory:
        tally = links.run(SEED, TREES, directory)
        print(tally)
        assert tally.failures == []
        for result in ("saved", "ENOENT", "ELOOP", "EISDIR", "ENOTDIR"):
            assert tally.outcomes[result] > 0


@pytest.mark.parametrize("absolute", [True, False])
def test_as_many_links_as_the_kernel_follows(absolute: bool, tmp_path: Path) -> None:
    fastckpt.save(OLD, tmp_path / "0.pt")
    for number in range(LINKS_MAX + 1):
        target = f"{number}.pt"
        (tmp_path / f"{number + 1}.pt").symlink_to(tmp_path / target if absolute else target)
    assert os.path.isfile(tmp_path / f"{LINKS_MAX}.pt")
    check_round_trip(tmp_path / f"{LINKS_MAX}.pt")
    assert not (tmp_path / "0.pt").is_symlink()
    assert all((tmp_path / f"{number + 1}.pt").is_symlink() for number in range(LINKS_MAX + 1))
    for call in (fastckpt.load, lambda path: fastckpt.save(OLD, path)):
        with pytest.raises(OSError) as error:
            call(tmp_path / f"{LINKS_MAX + 1}.pt")
        assert error.value.errno == errno.ELOOP
    assert_same(fastckpt.load(tmp_path / "0.pt"), NEW)


def test_another_name_of_a_replaced_file_keeps_the_old_bytes(tmp_path: Path) -> None:
    path, other = tmp_path / "model.pt", tmp_path / "kept.pt"
    fastckpt.save(OLD, path)
    other.hardlink_to(path)
    before = other.read_bytes()
    fastckpt.save(NEW, path)
    assert other.read_bytes() == before
    assert_same(fastckpt.load(other), OLD)
    assert_same(fastckpt.load(path), NEW)
    assert other.stat().st_nlink == path.stat().st_nlink == 1


@pytest.mark.parametrize("kind", ["fifo", "socket", "directory", "full directory"])
def test_what_is_no_file_is_neither_replaced_nor_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound, working_in(tmp_path):
            bound.bind(path.name)
    else:
        path.mkdir()
        if kind == "full directory":
            (path / "inside").touch()
    before = _identity(path)
    for link in (False, True):
        name = tmp_path / "link.pt" if link else path
        if link:
            name.symlink_to(path.name)
        with pytest.raises(OSError) as error:
            fastckpt.save(NEW, name)
        assert error.value.filename == str(name)
        # A socket cannot even be opened.
        with pytest.raises(OSError if kind == "socket" else fastckpt.FormatError, match=name.name):
            fastckpt.load(name)
        assert not fastckpt.verify(name).ok
    assert _identity(path) == before
    assert sorted(os.listdir(tmp_path)) == ["link.pt", "model.pt"]


def _identity(path: Path) -> tuple[int, ...]:
    """Return all that a look at it leaves as it is: not when it was last looked at."""
    status = path.lstat()
    return (status.st_mode, status.st_ino, status.st_nlink, status.st_size, status.st_mtime_ns)


# Directories that are moved, removed or exchanged while a save to them is under way

MOVES = 100


def _files_outside(top: Path, inode: int) -> list[str]:
    """Return the files that are anywhere but in the directory of this inode."""
    return [
        str(path.relative_to(top))
        for path in top.rglob("*")
        if path.is_file() and path.parent.stat().st_ino != inode
    ]


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("disturbance", moved_directories.DISTURBANCES)
def test_a_directory_that_changes_during_a_save(
    disturbance: str, sync: bool, tmp_path: Path
) -> None:
    """The file lands in the directory that the path led to at first, or the save raises."""
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    inode = directory.stat().st_ino
    path = directory / "model.pt"
    fastckpt.save(OLD, path)
    calls = 0

    def disturb_once(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            moved_directories.DISTURBANCES[disturbance](directory)

    raised = raised_by(lambda: fastckpt.save(NEW, path, sync=sync, progress=disturb_once))
    assert calls > 0
    moved = tmp_path / "moved" / "model.pt"
    assert _files_outside(tmp_path, inode) == []
    if "remove" in disturbance:
        assert raised is not None
        assert raised.is_a(FileNotFoundError)
        assert str(path) in raised.words
    else:
        assert raised is None
        assert_same(fastckpt.load(moved), NEW)
        assert os.listdir(moved.parent) == ["model.pt"]


def test_a_directory_that_changes_while_a_step_is_saved(tmp_path: Path) -> None:
    tally = moved_directories.run(SEED, MOVES, tmp_path)
    print(tally)
    assert tally.failures == []
    assert tally.cases == MOVES
    for result in ("raised", "saved to the first", "saved, then removed"):
        assert tally.outcomes[result] > 0
