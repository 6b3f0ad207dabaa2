"""Loop devices and mounts by the system calls themselves: thousands a run, without two programs each."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# <linux/loop.h>
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_LO_FLAGS_AUTOCLEAR = 4
# struct loop_config: the descriptor; then, of struct loop_info64, only lo_flags is not zero.
_LOOP_CONFIG = struct.Struct("<I 4x 52x I 240x")

# <sys/mount.h>
_MNT_DETACH = 2
_BUSY_SECS = 60.0

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def loop_device(backing: int) -> Iterator[str]:
    """Make a block device of an open file. It is gone when nobody uses it any more."""
    control = os.open("/dev/loop-control", os.O_RDWR)
    try:
        path, device = _configure(control, backing)
    finally:
        os.close(control)
    try:
        yield path
    finally:
        os.close(device)


def _configure(control: int, backing: int) -> tuple[str, int]:
    config = _LOOP_CONFIG.pack(backing, _LO_FLAGS_AUTOCLEAR)
    while True:
        path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
        device = os.open(path, os.O_RDWR)
        try:
            fcntl.ioctl(device, _LOOP_CONFIGURE, config)
            return path, device
        except OSError as error:
            os.close(device)
            # Another process was faster.
            if error.errno != errno.EBUSY:
                raise


@contextmanager
def mounted(device: str, directory: Path, file_system: str) -> Iterator[Path]:
    """Mount a block device with default options; unmounted again whatever happens."""
    if _libc.mount(device.encode(), bytes(directory), file_system.encode(), 0, None) != 0:
        raise _last_error(str(directory))
    try:
        yield directory
    finally:
        unmount(directory)


def unmount(directory: Path) -> None:
    """Unmount, if something is mounted there; its last users may need a moment to let go of it."""
    ends = time.monotonic() + _BUSY_SECS
    while _libc.umount2(bytes(directory), 0) != 0:
        error = _last_error(str(directory))
        if error.errno == errno.EINVAL:
            return
        if error.errno != errno.EBUSY or time.monotonic() > ends:
            # Gone from sight now, and in fact when its last user lets go of it.
            _libc.umount2(bytes(directory), _MNT_DETACH)
            raise error
        time.sleep(0.01)


def _last_error(path: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)
