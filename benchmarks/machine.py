"""What a benchmark has to say about the machine, and control of its page cache."""

from __future__ import annotations

import ctypes
import importlib.metadata
import mmap
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Machine:
    """Where the figures were measured."""

    cpu: str
    cores: int
    memory_nbytes: int
    kernel: str
    filesystem: str
    versions: dict[str, str]

    def as_dict(self) -> dict[str, object]:
        """Return the fields for the JSON output."""
        return asdict(self)


def describe(directory: Path) -> Machine:
    """Describe this machine, and the file system of one directory."""
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_nbytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        filesystem=_filesystem(directory),
        versions={
            "python": platform.python_version(),
            **{name: _version(name) for name in ("fastckpt", "torch", "safetensors")},
            "fio": _fio_version(),
        },
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _filesystem(directory: Path) -> str:
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, fstype, *_ = line.split()
        is_above = str(directory).startswith(mount.rstrip("/") + "/") or mount == "/"
        # The last of several mounts on one point is the one that is seen.
        if is_above and len(mount) >= len(best):
            best, kind = mount, fstype
    return kind


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _fio_version() -> str:
    if shutil.which("fio") is None:
        return "absent"
    return subprocess.run(
        ["fio", "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()


def back_memory(nbytes: int) -> None:
    """Touch and free memory, so that what is measured next does not meet memory that is new.

    A virtual machine hands memory that is free for some seconds back to its host. To touch it again
    takes a fault in the host for each page, which here costs four times what filling the page
    costs, and hits whichever contender comes first.
    """
    with mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        zeros = bytes(4 << 20)
        for offset in range(0, nbytes - len(zeros), len(zeros)):
            memory[offset : offset + len(zeros)] = zeros


def warm(path: Path) -> None:
    """Read a file into the page cache."""
    with path.open("rb") as file:
        while file.read(8 << 20):
            pass


def cool(path: Path) -> float:
    """Drop a file from the page cache; return the share of it that is still there."""
    fd = os.open(path, os.O_RDONLY)
    try:
        # Dirty pages cannot be dropped.
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    share = resident_share(path)
    if share > 0 and os.access(DROP_CACHES, os.W_OK):
        os.sync()
        DROP_CACHES.write_text("1")
        share = resident_share(path)
    return share


def resident_share(path: Path) -> float:
    """Return which share of a file's pages is in the page cache, asked of the kernel."""
    nbytes = path.stat().st_size
    npages = -(-nbytes // mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_COPY) as view:
        address = ctypes.c_char.from_buffer(view)
        vector = (ctypes.c_ubyte * npages)()
        result = libc.mincore(
            ctypes.c_void_p(ctypes.addressof(address)), ctypes.c_size_t(nbytes), vector
        )
        del address  # the mapping cannot be closed while it is referred to
        if result != 0:
            raise OSError(ctypes.get_errno(), "mincore failed", str(path))
        return sum(page & 1 for page in vector) / npages
