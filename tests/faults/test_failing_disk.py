"""A disk that refuses: the error has number, name and words, and the old file is still there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from tests.faults.children import NOBODY, raised_by, run_in_child
from tests.faults.requirements import need_root
from tests.faults.tracing import injecting, need_strace, traced
from tests.specimens import assert_same

import fastckpt

OLD = {"w": torch.arange(1000.0), "n": 1}
NEW = {"w": torch.full((1_000_000,), 2.0), "n": 2}


def assert_old_is_there(path: Path) -> None:
    assert os.listdir(path.parent) == [path.name]
    assert fastckpt.verify(path).ok
    assert_same(fastckpt.load(path), OLD)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    path = directory / "model.pt"
    fastckpt.save(OLD, path)
    return path


# strace makes calls fail that a healthy disk would grant.

FAILURES = [
    # Call, its error, whether the save is durable, words of the message.
    ("openat", "EACCES", True, "opening the directory"),
    ("openat", "EMFILE", False, "opening the directory"),
    ("fstatfs", "EIO", True, None),
    ("flock", "EIO", True, "creating the temporary file"),
    ("flock", "ENOLCK", True, None),
    ("pwrite64", "EIO", True, "writing"),
    ("pwrite64", "ENOSPC", False, "writing"),
    ("pwrite64", "EDQUOT", False, "writing"),
    ("pwrite64", "EFBIG", True, "writing"),
    ("fallocate", "EIO", True, "reserving disk space"),
    ("fallocate", "ENOSPC", True, "reserving disk space"),
    ("fallocate", "EOPNOTSUPP", True, None),
    ("ftruncate", "EIO", True, "setting the file size"),
    ("fsync", "EIO", True, "fsync"),
    ("fsync", "ENOSPC", True, "fsync"),
    ("fsync", "EDQUOT", True, "fsync"),
    ("/^rename", "EROFS", True, "renaming the temporary file"),
    ("/^rename", "EIO", False, "renaming the temporary file"),
    ("/^rename", "ENOSPC", True, "renaming the temporary file"),
]


@pytest.mark.parametrize(("call", "error", "sync", "words"), FAILURES)
def test_a_call_that_fails_during_a_save(
    call: str, error: str, sync: bool, words: str | None, saved: Path, tmp_path: Path
) -> None:
    """Where there are no words, the save has another way, or can do without."""
    need_strace()
    log = tmp_path / "strace.log"
    # Other things are opened too: of these calls, only that of the directory fails.
    options = injecting(call, error, saved.parent if call == "openat" else None)
    raised = traced(lambda: fastckpt.save(NEW, saved, sync=sync), options, log)
    assert "INJECTED" in log.read_text()
    if words is None:
        assert raised is None
        assert os.listdir(saved.parent) == [saved.name]
        assert_same(torch.load(saved), NEW)
        return
    assert raised is not None
    assert raised.is_a(OSError)
    number = getattr(errno, error)
    assert raised.errno == number
    assert (raised.filename or "").startswith(str(saved.parent))
    assert words in raised.words
    assert os.strerror(number) in raised.words
    assert_old_is_there(saved)


@pytest.mark.parametrize("error", ["EIO", "EUCLEAN", "ESTALE"])
@pytest.mark.parametrize("call", ["preadv2", "pread64"])
def test_a_call_that_fails_during_a_load(
    call: str, error: str, saved: Path, tmp_path: Path
) -> None:
    need_strace()
    log = tmp_path / "strace.log"
    raised = traced(lambda: fastckpt.load(saved), injecting(call, error, saved), log)
    assert "INJECTED" in log.read_text()
    assert raised is not None
    assert raised.is_a(OSError)
    assert raised.errno == getattr(errno, error)
    assert raised.filename == str(saved)
    assert_old_is_there(saved)


def test_a_file_that_may_not_be_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_root()
    saved.chmod(0o600)

    def load() -> dict[str, object]:
        raised = raised_by(lambda: fastckpt.load(saved.name))
        assert raised is not None
        return vars(raised)

    # By its name in the directory, the way to which may be shut for others too.
    monkeypatch.chdir(saved.parent)
    outcome = run_in_child(load, user=NOBODY)
    assert outcome.ok, outcome
    assert "PermissionError" in outcome.value["kinds"]
    assert outcome.value["filename"] == saved.name


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full", "/dev/zero"])
def test_a_device_is_not_replaced(device: str) -> None:
    mode = os.stat(device).st_mode
    with pytest.raises(OSError) as error:
        fastckpt.save(OLD, device)
    assert error.value.filename == device
    assert os.stat(device).st_mode == mode
