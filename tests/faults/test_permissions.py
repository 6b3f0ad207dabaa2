"""What the system does not allow: an error before any data is written, and modes that are kept."""

from __future__ import annotations

import errno
import os
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults.children import NOBODY, Outcome, Raised, raised_by, run_in_child, working_in
from tests.faults.requirements import need_program, need_root
from tests.specimens import assert_same

import fastckpt

OLD = {"w": torch.arange(1000.0), "n": 1}
NEW = {"w": torch.ones(2_000_000), "n": 2}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint in a directory of its own."""
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    path = directory / "model.pt"
    fastckpt.save(OLD, path)
    return path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def owner_of(path: Path) -> tuple[int, int]:
    return path.stat().st_uid, path.stat().st_gid


def assert_old_is_there(path: Path) -> None:
    assert os.listdir(path.parent) == [path.name]
    assert fastckpt.verify(path).ok
    assert_same(fastckpt.load(path), OLD)


def as_nobody(directory: Path, work: Callable[[], Any]) -> Outcome:
    """Run in a child without any rights, inside a directory: the way to it may be shut for it."""
    with working_in(directory):
        return run_in_child(work, user=NOBODY if os.geteuid() == 0 else None)


def refused_save(path: Path | str, *, sync: bool = True) -> tuple[Raised, bool]:
    """Save what may not be saved; return the error, and whether data had been written before."""
    began = False

    def note(done: int, total: int) -> None:
        nonlocal began
        began = True

    raised = raised_by(lambda: fastckpt.save(NEW, path, sync=sync, progress=note))
    assert raised is not None
    assert raised.is_a(OSError)
    return raised, began


def refused_as_nobody(directory: Path, name: str) -> tuple[Raised, bool]:
    outcome = as_nobody(directory, lambda: [vars(refused_save(name)[0]), refused_save(name)[1]])
    assert outcome.ok, outcome
    return Raised(**outcome.value[0]), outcome.value[1]


# Modes


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o027, 0o077, 0o777])
def test_new_files_have_the_mode_of_a_plain_open(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        fastckpt.save(OLD, tmp_path / "model.pt")
        fastckpt.save_checkpoint(tmp_path, 1, OLD, OLD, {"step": 1})
    finally:
        os.umask(before)
    modes = {name: mode_of(tmp_path / name) for name in os.listdir(tmp_path)}
    assert len(modes) >= 4
    assert set(modes.values()) == {0o666 & ~umask}


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o444, 0o640, 0o664, 0o666, 0o755, 0o604, 0o000])
def test_a_replaced_file_keeps_its_mode(mode: int, saved: Path) -> None:
    saved.chmod(mode)
    before = os.umask(0o077)
    try:
        fastckpt.save(NEW, saved)
    finally:
        os.umask(before)
    assert mode_of(saved) == mode
    saved.chmod(0o600)
    assert_same(fastckpt.load(saved), NEW)


def test_all_files_of_a_replaced_step_keep_their_modes(tmp_path: Path) -> None:
    fastckpt.save_checkpoint(tmp_path, 1, OLD, OLD, {"step": 1})
    names = sorted(os.listdir(tmp_path))
    for number, name in enumerate(names):
        (tmp_path / name).chmod(0o600 + 0o011 * number)
    fastckpt.save_checkpoint(tmp_path, 1, NEW, NEW, {"step": 1})
    assert sorted(os.listdir(tmp_path)) == names
    assert [mode_of(tmp_path / name) for name in names] == [
        0o600 + 0o011 * number for number in range(len(names))
    ]


def test_a_replaced_file_keeps_its_owner_where_root_saves(saved: Path) -> None:
    need_root()
    os.chown(saved, NOBODY, NOBODY + 1)
    saved.chmod(0o640)
    fastckpt.save(NEW, saved)
    assert owner_of(saved) == (NOBODY, NOBODY + 1)
    assert mode_of(saved) == 0o640


def test_a_file_of_somebody_else_becomes_ours_with_its_mode(saved: Path) -> None:
    """As with every tool that renames into place: the directory is what has to allow it."""
    need_root()
    os.chown(saved.parent, NOBODY, NOBODY)
    saved.chmod(0o644)
    outcome = as_nobody(saved.parent, lambda: fastckpt.save(NEW, saved.name))
    assert outcome.ok, outcome
    assert owner_of(saved) == (NOBODY, NOBODY)
    assert mode_of(saved) == 0o644
    assert_same(fastckpt.load(saved), NEW)


def test_files_in_a_setgid_directory_have_its_group(tmp_path: Path) -> None:
    need_root()
    os.chown(tmp_path, NOBODY, NOBODY + 1)
    tmp_path.chmod(0o2775)
    for number in (1, 2):

        def save(number: int = number) -> None:
            fastckpt.save_checkpoint("run", number, OLD, OLD, {"step": number})
            fastckpt.save_checkpoint("run", number, NEW, NEW, {"step": number})

        outcome = as_nobody(tmp_path, save)
        assert outcome.ok, outcome
    files = list((tmp_path / "run").iterdir())
    assert len(files) >= 6
    assert {path.stat().st_gid for path in [tmp_path / "run", *files]} == {NOBODY + 1}
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) & stat.S_ISGID


def _acl(*entries: tuple[int, int, int]) -> bytes:
    """Write an access control list as Linux keeps it: (tag, permissions, id) each."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


# linux/posix_acl.h
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER, _UNDEFINED = 1, 2, 4, 16, 32, 0xFFFFFFFF
_READ_FOR_NOBODY = _acl(
    (_USER_OBJ, 7, _UNDEFINED),
    (_USER, 4, NOBODY),
    (_GROUP_OBJ, 0, _UNDEFINED),
    (_MASK, 7, _UNDEFINED),
    (_OTHER, 0, _UNDEFINED),
)


def set_acl(path: Path, kind: str) -> None:
    try:
        os.setxattr(path, f"system.posix_acl_{kind}", _READ_FOR_NOBODY)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        pytest.skip("no access control lists on this file system")


def acl_of(path: Path) -> bytes:
    return os.getxattr(path, "system.posix_acl_access")


def test_the_default_acl_of_a_directory_holds_for_new_files(tmp_path: Path) -> None:
    need_root()
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    directory.chmod(0o755)
    set_acl(directory, "default")
    plain = directory / "plain"
    plain.touch()
    fastckpt.save(OLD, directory / "model.pt")
    assert acl_of(directory / "model.pt") == acl_of(plain)
    assert mode_of(directory / "model.pt") == mode_of(plain)
    outcome = as_nobody(directory, lambda: assert_same(fastckpt.load("model.pt"), OLD))
    assert outcome.ok, outcome


def test_nobody_gains_rights_when_a_file_with_an_acl_is_replaced(saved: Path) -> None:
    """Its mode shows what the list allows to anybody on it, which is not what the group may do."""
    need_root()
    os.chown(saved, 0, NOBODY)
    set_acl(saved, "access")
    assert mode_of(saved) == 0o770

    def may_read() -> bool:
        # By group alone: the list names a user of the same number.
        os.setgroups([NOBODY])
        os.setresuid(NOBODY + 1, NOBODY + 1, NOBODY + 1)
        return os.access(saved.name, os.R_OK, effective_ids=True)

    with working_in(saved.parent):
        assert run_in_child(may_read).value is False
        fastckpt.save(NEW, saved)
        assert run_in_child(may_read).value is False
    assert acl_of(saved) == _READ_FOR_NOBODY


def test_a_file_without_an_acl_gets_none_from_its_directory(saved: Path) -> None:
    need_root()
    saved.chmod(0o640)
    set_acl(saved.parent, "default")
    fastckpt.save(NEW, saved)
    with pytest.raises(OSError, match="No data available"):
        acl_of(saved)
    assert mode_of(saved) == 0o640


# Directories to which nobody may write


def test_a_directory_that_may_not_be_written(saved: Path) -> None:
    saved.parent.chmod(0o555)
    raised, began = refused_as_nobody(saved.parent, "model.pt")
    assert raised.is_a(PermissionError)
    assert raised.errno == errno.EACCES
    assert raised.filename == "model.pt"
    assert "Permission denied" in raised.words
    assert not began
    assert_old_is_there(saved)


def test_a_step_in_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    fastckpt.save_checkpoint(tmp_path, 1, OLD, OLD, {"step": 1})
    names = sorted(os.listdir(tmp_path))
    tmp_path.chmod(0o555)

    def save() -> list[str]:
        return [
            str(raised_by(partial(fastckpt.save_checkpoint, at, step, NEW, NEW, {"step": step})))
            for at in (".", "below/it")
            for step in (1, 2)
        ]

    outcome = as_nobody(tmp_path, save)
    assert outcome.ok, outcome
    assert all(words.startswith("PermissionError") for words in outcome.value), outcome.value
    assert sorted(os.listdir(tmp_path)) == names
    assert_same(fastckpt.load_checkpoint(tmp_path, 1, "cpu", load_optimizer=True)[1], OLD)


# What others may do with the directory: list the names in it, or nothing at all.
@pytest.mark.parametrize("mode", [0o744, 0o700])
def test_a_directory_that_may_not_be_entered(mode: int, tmp_path: Path) -> None:
    need_root()
    run = tmp_path / "run"
    fastckpt.save_checkpoint(run, 1, OLD, OLD, {"step": 1})
    names = sorted(os.listdir(run))
    tmp_path.chmod(0o755)
    run.chmod(mode)
    calls: list[Callable[[], object]] = [
        lambda: fastckpt.load("run/model_000001.pt"),
        lambda: fastckpt.save(NEW, "run/model_000001.pt"),
        lambda: fastckpt.load_checkpoint("run", 1, "cpu"),
        lambda: fastckpt.save_checkpoint("run", 1, NEW, NEW, {}),
        lambda: fastckpt.find_last_good_step("run"),
    ]

    def work() -> list[str]:
        reports = [fastckpt.verify("run"), fastckpt.verify("run/model_000001.pt")]
        assert [report.exit_code for report in reports] == [6, 6], reports
        return [str(raised_by(call)) for call in calls]

    outcome = as_nobody(tmp_path, work)
    assert outcome.ok, outcome
    for words in outcome.value:
        assert words.startswith("PermissionError"), outcome.value
    assert sorted(os.listdir(run)) == names
    assert_step_is(run, OLD, {"step": 1})


def test_a_file_in_a_sticky_directory_belongs_to_its_owner(saved: Path) -> None:
    """As in /tmp: others may make files there, but not replace this one."""
    need_root()
    saved.parent.chmod(0o1777)
    raised, _ = refused_as_nobody(saved.parent, "model.pt")
    assert raised.is_a(PermissionError)
    assert raised.errno == errno.EPERM
    assert_old_is_there(saved)


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    need_root()
    need_program("chattr")
    changed = subprocess.run(["chattr", "+i", path], capture_output=True, text=True, check=False)
    if changed.returncode != 0:
        # tmpfs before Linux 6.6.
        pytest.skip(f"no immutable files on this file system: {changed.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


@pytest.mark.parametrize("sync", [True, False])
def test_an_immutable_directory(sync: bool, saved: Path) -> None:
    with immutable(saved.parent):
        raised, began = refused_save(saved, sync=sync)
    assert raised.is_a(PermissionError)
    assert raised.errno == errno.EPERM
    assert raised.filename == str(saved)
    assert not began
    assert_old_is_there(saved)


@pytest.mark.parametrize("sync", [True, False])
def test_an_immutable_file(sync: bool, saved: Path) -> None:
    with immutable(saved):
        raised, _ = refused_save(saved, sync=sync)
        assert os.listdir(saved.parent) == ["model.pt"]
    assert raised.is_a(PermissionError)
    assert raised.errno == errno.EPERM
    assert raised.filename == str(saved)
    assert_old_is_there(saved)
    fastckpt.save(NEW, saved, sync=sync)
    assert_same(fastckpt.load(saved), NEW)


def assert_step_is(directory: Path, state: object, meta: object) -> None:
    model, optimizer, found_meta = fastckpt.load_checkpoint(
        directory, 1, "cpu", load_optimizer=True
    )
    assert_same(model, state)
    assert_same(optimizer, state)
    assert found_meta == meta


@pytest.mark.parametrize("name", ["model_000001.pt", "meta_000001.json", "optim_000001_rank0.pt"])
def test_a_step_of_which_one_file_is_immutable(name: str, tmp_path: Path) -> None:
    """The save fails in the middle of its renames; the step that was there loads all the same."""
    old, new = {"step": 1, "save": "old"}, {"step": 1, "save": "new"}
    fastckpt.save_checkpoint(tmp_path, 1, OLD, OLD, old)
    with immutable(tmp_path / name):
        raised = raised_by(lambda: fastckpt.save_checkpoint(tmp_path, 1, NEW, NEW, new))
        assert raised is not None
        assert raised.is_a(PermissionError)
        assert not any(left.endswith(".tmp") for left in os.listdir(tmp_path))
        assert_step_is(tmp_path, OLD, old)
    fastckpt.save_checkpoint(tmp_path, 1, NEW, NEW, new)
    assert_step_is(tmp_path, NEW, new)
    assert not any(left.startswith(".") for left in os.listdir(tmp_path))


@contextmanager
def read_only_view(directory: Path, at: Path) -> Iterator[None]:
    need_root()
    need_program("mount", "umount")
    at.mkdir()
    subprocess.run(["mount", "--bind", directory, at], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", at], check=True)
        yield
    finally:
        subprocess.run(["umount", at], check=True)


@pytest.mark.parametrize("sync", [True, False])
def test_a_read_only_mount(sync: bool, saved: Path, tmp_path: Path) -> None:
    view = tmp_path / "view"
    with read_only_view(saved.parent, view):
        raised, began = refused_save(view / saved.name, sync=sync)
        step = raised_by(lambda: fastckpt.save_checkpoint(view, 1, NEW, NEW, {}))
        deeper = raised_by(lambda: fastckpt.save_checkpoint(view / "run", 1, NEW, NEW, {}))
        assert_same(fastckpt.load(view / saved.name), OLD)
        assert_same(fastckpt.load(view / saved.name, mmap=True), OLD)
        assert fastckpt.verify(view / saved.name).ok
    assert not began
    for one in (raised, step, deeper):
        assert one is not None
        assert one.errno == errno.EROFS
        assert str(view) in str(one.filename)
    assert_old_is_there(saved)


# What is not there, or something else


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("missing/model.pt", errno.ENOENT),
        ("checkpoints/model.pt/model.pt", errno.ENOTDIR),
        ("checkpoints", errno.EISDIR),
    ],
)
def test_a_directory_that_is_none(path: str, number: int, saved: Path) -> None:
    raised, began = refused_save(saved.parent.parent / path)
    assert raised.errno == number
    assert str(saved.parent.parent) in str(raised.filename)
    assert not began
    assert_old_is_there(saved)
