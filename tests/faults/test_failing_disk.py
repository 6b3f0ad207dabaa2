"""A disk that refuses: the error has number, name and words, and the old file is still there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.specimens import assert_same

import fastckpt

OLD = {"w": torch.arange(1000.0), "n": 1}

# Saves once in a process of its own, and says what came of it.
SAVE = textwrap.dedent(
    """
    import json, resource, signal, sys
    import torch, fastckpt
    path, sync, limit = sys.argv[1], sys.argv[2] == "sync", int(sys.argv[3])
    obj = {"w": torch.full((1_000_000,), 2.0), "n": 2}
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        fastckpt.save(obj, path, sync=sync)
        result = None
    except BaseException as error:
        result = {
            "kinds": [kind.__name__ for kind in type(error).__mro__],
            "errno": getattr(error, "errno", None),
            "filename": str(getattr(error, "filename", None)),
            "words": str(error),
        }
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    print(json.dumps(result))
    """
)


def save_in_child(
    path: Path, *, sync: bool = True, limit: int = 0, under: list[str] | None = None
) -> dict[str, Any] | None:
    """Save the new object; returns what was raised."""
    command = [sys.executable, "-c", SAVE, str(path), "sync" if sync else "", str(limit)]
    result = subprocess.run(
        [*(under or []), *command], capture_output=True, text=True, timeout=100, check=False
    )
    assert result.stdout, result.stderr
    found: dict[str, Any] | None = json.loads(result.stdout.splitlines()[-1])
    return found


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


# strace makes calls fail that a healthy disk would grant. Only calls under the directory count.

FAILURES = [
    # Call, its error, whether the save is durable, words of the message.
    ("openat", "EACCES", True, "Permission denied"),
    ("pwrite64", "EIO", True, "writing"),
    ("pwrite64", "ENOSPC", False, "writing"),
    ("pwrite64", "EDQUOT", False, "writing"),
    ("fallocate", "ENOSPC", True, "reserving disk space"),
    ("fsync", "EIO", True, "fsync"),
    ("fsync", "ENOSPC", True, "fsync"),
    ("/^rename", "EROFS", True, "renaming the temporary file"),
    ("/^rename", "EIO", False, "renaming the temporary file"),
]


def _can_trace() -> bool:
    strace = shutil.which("strace")
    if strace is None:
        return False
    tried = subprocess.run([strace, "-o", "/dev/null", "true"], capture_output=True, check=False)
    return tried.returncode == 0


needs_strace = pytest.mark.skipif(not _can_trace(), reason="strace is missing or may not trace")


def injecting(call: str, error: str, log: Path, only: Path | None = None) -> list[str]:
    """Return the command under which each such call fails, or only those on one path.

    The temporary file has a name that nobody knows before, so most cases let the calls of the
    whole process fail: Python has no need of them by then.
    """
    command = ["strace", "-f", "-qq", "-y", "--seccomp-bpf", "-o", str(log)]
    command += ["-e", f"trace={call}", "-e", f"inject={call}:error={error}"]
    return command if only is None else [*command, "-P", str(only)]


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize(("call", "error", "sync", "words"), FAILURES)
def test_an_injected_error(
    call: str, error: str, sync: bool, words: str, saved: Path, tmp_path: Path
) -> None:
    number = getattr(errno, error)
    log = tmp_path / "strace.log"
    # Python opens files too: of these calls, only that of the directory fails.
    command = injecting(call, error, log, saved.parent if call == "openat" else None)
    raised = save_in_child(saved, sync=sync, under=command)
    assert "INJECTED" in log.read_text()
    assert raised is not None
    assert "OSError" in raised["kinds"]
    assert raised["errno"] == number
    assert str(saved.parent) in raised["filename"]
    assert words in raised["words"]
    assert os.strerror(number) in raised["words"]
    assert_old_is_there(saved)


@needs_strace
@pytest.mark.slow
def test_a_failed_fsync_is_not_tried_again(saved: Path, tmp_path: Path) -> None:
    """The kernel reports a lost page once: a second fsync of the file would seem to succeed."""
    log = tmp_path / "strace.log"
    raised = save_in_child(saved, under=injecting("fsync,fdatasync", "EIO", log))
    assert raised is not None
    assert raised["errno"] == errno.EIO
    assert log.read_text().count(".fastckpt-") == 1
    assert_old_is_there(saved)


@needs_strace
@pytest.mark.slow
def test_a_directory_that_cannot_be_synced(saved: Path, tmp_path: Path) -> None:
    """The new file is in place; whether it survives a power cut is not known, and said so."""
    command = injecting("fsync", "EIO", tmp_path / "log", saved.parent)
    raised = save_in_child(saved, under=command)
    assert raised is not None
    assert raised["kinds"][0] == "CommitUnknownError"
    assert raised["errno"] == errno.EIO
    assert os.listdir(saved.parent) == ["model.pt"]
    assert fastckpt.load(saved)["n"] == 2


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize("call", ["preadv2", "pread64"])
def test_a_disk_that_cannot_read(call: str, saved: Path, tmp_path: Path) -> None:
    script = (
        "import sys, fastckpt, torch\n"
        "try:\n    fastckpt.load(sys.argv[1])\n    print('loaded')\n"
        "except OSError as e:\n    print(e.errno, e.filename, e)\n"
    )
    command = [*injecting(call, "EIO", tmp_path / "log", saved), sys.executable, "-c", script]
    result = subprocess.run(
        [*command, str(saved)], capture_output=True, text=True, timeout=100, check=False
    )
    if "INJECTED" not in (tmp_path / "log").read_text():
        pytest.skip(f"no {call} here: the kernel or the file system has another way")
    assert result.stdout.startswith(f"{errno.EIO} {saved}"), result.stdout + result.stderr


# Limits of the system


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_size_limit(sync: bool, saved: Path) -> None:
    raised = save_in_child(saved, sync=sync, limit=1 << 20)
    assert raised is not None
    assert raised["errno"] == errno.EFBIG
    assert str(saved.parent) in raised["filename"]
    assert_old_is_there(saved)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mounted)]
    if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("no mounting here, though root")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("nbytes", [5 << 19, 3 << 20, 4 << 20, 64 << 20])
def test_a_full_disk(nbytes: int, sync: bool, small_disk: Path) -> None:
    path = small_disk / "model.pt"
    old = {"w": torch.ones(500_000), "n": 1}
    fastckpt.save(old, path)
    free = shutil.disk_usage(small_disk).free
    with pytest.raises(OSError, match="No space left on device") as error:
        fastckpt.save({"w": torch.zeros(nbytes, dtype=torch.uint8)}, path, sync=sync)
    assert error.value.errno == errno.ENOSPC
    assert str(small_disk) in str(error.value.filename)
    assert os.listdir(small_disk) == ["model.pt"]
    assert shutil.disk_usage(small_disk).free == free
    assert_same(fastckpt.load(path), old)
    # With room again, the next save is good.
    path.unlink()
    fastckpt.save(old, path, sync=sync)
    assert fastckpt.verify(path).ok


def test_few_descriptors_and_threads_are_enough(saved: Path) -> None:
    """A container may allow little: what is left has to do."""
    script = textwrap.dedent(
        """
        import resource, sys, torch, fastckpt
        state = {str(i): torch.ones(1000) for i in range(300)}
        used = max(int(fd) for fd in __import__("os").listdir("/proc/self/fd")) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 5, used + 5))
        fastckpt.save(state, sys.argv[1])
        assert all(torch.equal(t, torch.ones(1000)) for t in fastckpt.load(sys.argv[1]).values())
        assert fastckpt.verify(sys.argv[1]).ok
        """
    )
    subprocess.run([sys.executable, "-c", script, str(saved)], check=True, timeout=100)


@pytest.mark.parametrize("mode", [0o000, 0o200])
def test_a_file_that_may_not_be_read(mode: int, saved: Path) -> None:
    saved.chmod(mode)
    if os.access(saved, os.R_OK):
        pytest.skip("this user may read everything (root)")
    with pytest.raises(PermissionError) as error:
        fastckpt.load(saved)
    assert error.value.filename == str(saved)


@pytest.mark.parametrize("target", ["/dev/null", "/dev/full", "fifo"])
def test_what_is_no_file_is_not_replaced(target: str, tmp_path: Path) -> None:
    if target == "fifo":
        target = str(tmp_path / "fifo")
        os.mkfifo(target)
    mode = os.stat(target).st_mode
    with pytest.raises(OSError) as error:
        fastckpt.save(OLD, target)
    assert str(target) in str(error.value.filename)
    assert os.stat(target).st_mode == mode


def test_links_in_a_circle(tmp_path: Path) -> None:
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    one.symlink_to(two)
    two.symlink_to(one)
    with pytest.raises(OSError) as error:
        fastckpt.load(one)
    assert error.value.errno == errno.ELOOP
    with pytest.raises(OSError) as error:
        fastckpt.save(OLD, one)
    assert error.value.errno == errno.ELOOP
    assert sorted(os.listdir(tmp_path)) == ["one.pt", "two.pt"]
