"""A real file system on a disk that is recorded, and what was done on it.

nbdkit is the disk, nbdfuse makes it a file, a loop device makes that a block device. The kernel's own
file system decides what is written, in which order, and when the disk is asked to flush.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.faults import children
from tests.faults.disks import run
from tests.faults.power import recorder
from tests.faults.power.mounting import loop_device, mounted, unmount
from tests.faults.requirements import need_device, need_program, need_root


@dataclass(frozen=True)
class FileSystem:
    """How one is made, and what it asks of its disk.

    Attributes:
        nbytes: As small as it will work with while the same few files are replaced again and again:
            every crash state is a copy.
        command: Makes it.
        whole: Offsets of blocks that the disk has to write whole or not at all.
    """

    nbytes: int
    command: tuple[str, ...]
    whole: frozenset[int] = frozenset()


_MAKE = {
    # With the blocks that larger ones have; the tables are there from the start, so that no thread
    # of the kernel writes them meanwhile.
    "ext4": FileSystem(
        128 << 20,
        ("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    ),
    "xfs": FileSystem(300 << 20, ("mkfs.xfs", "-q", "-f")),
    # It replaces its superblock of 4096 bytes in place, and cannot be mounted when that is torn,
    # whatever was saved on it.
    "btrfs": FileSystem(256 << 20, ("mkfs.btrfs", "-q", "-f"), frozenset({64 << 10, 64 << 20})),
}
FILE_SYSTEMS = tuple(_MAKE)

_START_SECS = 60.0
_STOP_SECS = 60.0
_WORK_SECS = 100.0


def need_recorded_disks(*file_systems: str) -> None:
    """Go on only where disks can be recorded, and file systems on them be mounted."""
    need_root()
    need_device("loop", "fuse")
    need_program("nbdkit", "nbdfuse", *(_MAKE[kind].command[0] for kind in file_systems))


@dataclass(frozen=True)
class Recording:
    """What was done on a fresh file system, and all that its disk was told meanwhile.

    Attributes:
        directory: Holds the log, and the disk as it was before.
        file_system: Its kind.
        begun: For each piece of work, the size of the log when it was begun.
        acknowledged: For each that was finished, the size of the log afterwards.
        parts: The size of the log at moments in between that are worth a look.
    """

    directory: Path
    file_system: str
    begun: list[int] = field(default_factory=list)
    acknowledged: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)

    @property
    def whole(self) -> frozenset[int]:
        """Offsets of blocks that the disk has to write whole."""
        return _MAKE[self.file_system].whole

    @property
    def fresh(self) -> Path:
        return self.directory / "fresh"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def mount_point(self) -> Path:
        return self.directory / "mounted"


class Clock:
    """Tells how far the disk had come when something was begun or acknowledged.

    The size of the log is the time: the entries below are older than the look at it.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self.times: dict[str, list[int]] = {"begun": [], "acknowledged": [], "parts": []}

    def begin(self) -> None:
        """Note that a piece of work begins."""
        self._note("begun")

    def acknowledge(self) -> None:
        """Note that it has been finished, and what it promises holds from now on."""
        self._note("acknowledged")

    def finish_part(self) -> None:
        """Note that a part of it has been finished."""
        self._note("parts")

    def _note(self, kind: str) -> None:
        self.times[kind].append(os.stat(self._log).st_size)


# Works in a directory of the file system; tells the clock of each piece of work, one after the other.
Work = Callable[[Path, Clock], None]


def make_fresh(image: Path, file_system: str) -> None:
    """Make an image file with an empty file system."""
    with image.open("wb") as file:
        file.truncate(_MAKE[file_system].nbytes)
    run(*_MAKE[file_system].command, image)


def record(directory: Path, file_system: str, work: Work) -> Recording:
    """Run `work` in a child, on a fresh file system whose disk is recorded.

    Raises:
        AssertionError: The work failed.
    """
    recording = Recording(directory, file_system)
    recording.mount_point.mkdir(parents=True)
    make_fresh(recording.fresh, file_system)
    # The disk is a copy: the replay needs the original.
    disk = directory / "disk"
    run("cp", "--sparse=always", recording.fresh, disk)
    with (
        recorded_disk(disk, recording.log) as device,
        mounted(device, recording.mount_point, file_system),
    ):
        times = _in_child(work, recording)
    disk.unlink()
    return replace(
        recording,
        begun=times["begun"],
        acknowledged=times["acknowledged"],
        parts=times["parts"],
    )


def _in_child(work: Work, recording: Recording) -> dict[str, list[int]]:
    def tell() -> dict[str, list[int]]:
        clock = Clock(recording.log)
        work(recording.mount_point, clock)
        return clock.times

    child = children.start(tell)
    try:
        outcome = child.outcome(_WORK_SECS)
    except BaseException:
        # Interrupted: what it has open would keep the file system mounted.
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child.number, signal.SIGKILL)
            os.waitpid(child.number, 0)
        raise
    assert outcome.ok, str(outcome)
    times: dict[str, list[int]] = outcome.value
    return times


@contextmanager
def recorded_disk(image: Path, log: Path) -> Iterator[str]:
    """Make a block device of an image; all that is written to it is written to the log too."""
    with _served(image, log) as file:
        descriptor = os.open(file, os.O_RDWR)
        try:
            with loop_device(descriptor) as device:
                yield device
        finally:
            os.close(descriptor)


@contextmanager
def _served(image: Path, log: Path) -> Iterator[Path]:
    served = image.with_name(f"{image.name}.served")
    served.mkdir()
    complaints = image.with_name(f"{image.name}.complaints")
    command = ["nbdfuse", str(served / "disk"), "--command", *_server(image, log)]
    with complaints.open("wb") as stderr:
        # Ctrl-C goes to the test alone, which takes everything down in order.
        server = subprocess.Popen(command, stderr=stderr, start_new_session=True)
    try:
        _wait_for(served / "disk", server, complaints)
        yield served / "disk"
    finally:
        _stop(server, served)
        served.rmdir()
        complaints.unlink()


def _stop(server: subprocess.Popen[bytes], served: Path) -> None:
    """Unmount: with its mount, nbdfuse ends, and with nbdfuse nbdkit. Or else both are killed."""
    try:
        unmount(served)
        server.wait(_STOP_SECS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _server(image: Path, log: Path) -> list[str]:
    plugin = os.path.abspath(recorder.__file__)
    files = [f"image={image.absolute()}", f"log={log.absolute()}"]
    return ["nbdkit", "-s", "--exit-with-parent", "python", plugin, *files]


def _wait_for(file: Path, server: subprocess.Popen[bytes], complaints: Path) -> None:
    ends = time.monotonic() + _START_SECS
    while not file.exists():
        ended = server.poll() is not None or time.monotonic() > ends
        assert not ended, f"no recorded disk: {complaints.read_text()}"
        time.sleep(0.005)
