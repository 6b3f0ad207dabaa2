"""Disks for tests: loop images, file systems in memory, and disks that fail when they are told to.

All of them are context managers, and leave neither a mount nor a device nor a process behind,
whatever state the test has brought its disk to.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.requirements import need_device, need_program, need_root

# The smallest that mkfs.xfs makes is 300 MB. Images are sparse, so what is not written costs nothing.
NBYTES = 320 << 20

_MAKE = {
    # Without the thread that goes on to initialise the tables once it is mounted: its errors and
    # its use of the disk are not those of the test. No blocks are kept back for root.
    "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    # Small blocks, of which a large file needs many more to say which are its own.
    "ext2": ["mkfs.ext2", "-q", "-F", "-m", "0", "-b", "1024"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
    "exfat": ["mkfs.exfat"],
}
# In user space; by `mount -t exfat` where the kernel has it.
_MOUNT = {"exfat": ["mount.exfat-fuse"]}

# How long a device may be busy with its last requests, or with somebody's look at it.
_BUSY_SECS = 60.0


def need_loop_disks(*file_systems: str) -> None:
    """Go on only where images of these can be made and mounted."""
    need_root()
    need_device("loop")
    need_program("mount", "umount", "losetup", *(_MAKE[kind][0] for kind in file_systems))
    if "exfat" in file_systems:
        need_device("fuse")
        need_program(*_MOUNT["exfat"])


def need_failing_disks(*file_systems: str) -> None:
    """Go on only where disks can be made to fail."""
    need_loop_disks(*file_systems)
    need_device("fuse")
    need_program("nbdkit", "nbdfuse", "fusermount3")


def need_memory_disks() -> None:
    """Go on only where tmpfs and ramfs can be mounted."""
    need_root()
    need_program("mount", "umount")


class Disk:
    """A block device with a file system, which can be unmounted and mounted again.

    Attributes:
        device: The block device.
        file_system: What is on it, e.g. "ext4".
        path: Where it is mounted.
    """

    def __init__(self, device: str, file_system: str, path: Path) -> None:
        self.device = device
        self.file_system = file_system
        self.path = path

    def mount(self) -> None:
        """Mount it; this replays the journal."""
        command = _MOUNT.get(self.file_system, ["mount", "-t", self.file_system])
        run(*command, self.device, self.path)

    def unmount(self) -> None:
        """Unmount it: what its cache holds is on the device then, or gone."""
        _retry(lambda: run("umount", self.path))

    def remount(self) -> None:
        """Drop all that is cached: what is read afterwards is what the device has."""
        self.unmount()
        self.mount()


class FailingDisk(Disk):
    """A disk whose reads or writes fail with EIO while it is told so."""

    def __init__(
        self, device: str, file_system: str, path: Path, switches: dict[str, Path]
    ) -> None:
        super().__init__(device, file_system, path)
        self._switches = switches

    def fail(self, kind: str) -> None:
        """Let each "read" or each "write" of the device fail from now on."""
        self._switches[kind].touch()

    def heal(self) -> None:
        """Let nothing fail any more."""
        for switch in self._switches.values():
            switch.unlink(missing_ok=True)

    @contextmanager
    def failing(self, kind: str) -> Iterator[None]:
        """Let each "read" or each "write" fail inside."""
        self.fail(kind)
        try:
            yield
        finally:
            self.heal()


@contextmanager
def loop_image(
    directory: Path, file_system: str, nbytes: int = NBYTES, sector: int = 512
) -> Iterator[Path]:
    """Mount a fresh image of `nbytes` bytes; gives the mount point."""
    with loop_disk(directory, file_system, nbytes, sector) as disk:
        yield disk.path


@contextmanager
def loop_disk(
    directory: Path, file_system: str, nbytes: int = NBYTES, sector: int = 512
) -> Iterator[Disk]:
    """Mount a fresh image whose device has sectors of `sector` bytes."""
    image = _new_directory(directory, file_system) / "image"
    with image.open("wb") as file:
        file.truncate(nbytes)
    with _loop_device(image, "--sector-size", str(sector)) as device:
        disk = Disk(device, file_system, image.with_name("mounted"))
        try:
            with _formatted(disk):
                yield disk
        finally:
            image.unlink()


@contextmanager
def failing_disk(directory: Path, file_system: str, nbytes: int = NBYTES) -> Iterator[FailingDisk]:
    """Mount a fresh file system on a disk that can be made to fail.

    The loop device has direct I/O, so that no cache lies between the file system and the errors.
    """
    base = _new_directory(directory, file_system)
    switches = {kind: base / f"fail-{kind}" for kind in ("read", "write")}
    with (
        _served_disk(base, nbytes, switches) as file,
        _loop_device(file, "--direct-io=on") as device,
    ):
        disk = FailingDisk(device, file_system, base / "mounted", switches)
        with _formatted(disk):
            try:
                yield disk
            finally:
                # Unmounting writes, and would be told that it cannot.
                disk.heal()


@contextmanager
def memory_disk(directory: Path, kind: str, options: str = "defaults") -> Iterator[Path]:
    """Mount a fresh "tmpfs" or "ramfs" with these mount options; gives the mount point."""
    path = _new_directory(directory, kind)
    run("mount", "-t", kind, "-o", options, kind, path)
    try:
        yield path
    finally:
        _unmount_whatever(path)


def run(*command: str | Path) -> str:
    """Run a program; returns what it printed, and raises what it complained about."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


def _new_directory(directory: Path, name: str) -> Path:
    for number in range(1000):
        path = directory / f"{name}-{number}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"{directory}/{name}-*")


@contextmanager
def _formatted(disk: Disk) -> Iterator[None]:
    run(*_MAKE[disk.file_system], disk.device)
    disk.path.mkdir()
    disk.mount()
    try:
        yield
    finally:
        _unmount_whatever(disk.path)


def _unmount_whatever(path: Path) -> None:
    """Unmount what may be unmounted already, or busy for reasons that another error tells."""
    try:
        _retry(lambda: run("umount", path))
    except RuntimeError as error:
        if "not mounted" in str(error):
            return
        # Gone from sight now, and in fact when its last user lets go of it.
        run("umount", "--lazy", path)
        raise


@contextmanager
def _loop_device(file: Path, *options: str) -> Iterator[str]:
    device = run("losetup", "--find", "--show", *options, file).strip()
    try:
        yield device
    finally:
        # Where somebody still looks at it, it goes when they are done.
        run("losetup", "--detach", device)


@contextmanager
def _served_disk(base: Path, nbytes: int, switches: dict[str, Path]) -> Iterator[Path]:
    """Serve a disk in memory as a file, whose errors are switched on by the files `switches`."""
    served = base / "served"
    served.mkdir()
    with (
        (base / "log").open("wb") as log,
        subprocess.Popen(
            ["nbdfuse", str(served), "[", *_server(nbytes, switches), "]"], stdout=log, stderr=log
        ) as server,
    ):
        file = served / "nbd"
        try:
            _wait_until(file.exists)
            yield file
        finally:
            # It ends by itself when what it has mounted is unmounted.
            _retry(lambda: run("fusermount3", "-u", served))
            server.wait(_BUSY_SECS)


def _server(nbytes: int, switches: dict[str, Path]) -> list[str]:
    command = ["nbdkit", "--exit-with-parent", "--filter=error", "memory", f"size={nbytes}"]
    # A zeroing or discarding of blocks is a write to the file system.
    calls = {"pread": "read", "pwrite": "write", "zero": "write", "trim": "write"}
    for call, kind in calls.items():
        command += [f"error-{call}=EIO", f"error-{call}-rate=100%"]
        command += [f"error-{call}-file={switches[kind]}"]
    return command


def _wait_until(ready: Callable[[], bool]) -> None:
    ends = time.monotonic() + _BUSY_SECS
    while not ready():
        if time.monotonic() > ends:
            raise TimeoutError(f"waited {_BUSY_SECS} s in vain")
        time.sleep(0.005)


def _retry(work: Callable[[], object]) -> None:
    """Do it as soon as what it works on is no longer busy."""
    ends = time.monotonic() + _BUSY_SECS
    while True:
        try:
            work()
        except RuntimeError as error:
            if "busy" not in str(error) or time.monotonic() > ends:
                raise
        else:
            return
        time.sleep(0.02)
