"""A disk that writes down all that happens to it, as a plugin for nbdkit.

    nbdkit python recorder.py image=DISK log=LOG

The image is kept up to date, so that a file system works on it; the log tells a replay in which
order the blocks were written, and where the disk was asked to flush its cache. An entry is in the
log when the request is answered, so the size of the log is a clock: what happened before somebody
looked at it lies below.

nbdkit runs this with the system's own Python: nothing of the project can be imported here.
"""

from __future__ import annotations

import os
import struct
from typing import Any

API_VERSION = 2

# Kind, offset on the disk, number of bytes. The bytes of a write follow.
HEADER = struct.Struct("<cQQ")
WRITE = b"W"
# Durable of itself once it is answered; says nothing of the writes before it.
WRITE_THROUGH = b"D"
# Trims count as zeros: what a disk gives back after one.
ZERO = b"Z"
FLUSH = b"F"

# <nbdkit-common.h>: NBDKIT_FLAG_FUA of a request, NBDKIT_FUA_NATIVE of a plugin.
_FLAG_FUA = 1 << 1
_FUA_NATIVE = 2

_paths: dict[str, str] = {}
_image = -1
_log = -1


def config(key: str, value: str) -> None:
    _paths[key] = value


def get_ready() -> None:
    global _image, _log
    _image = os.open(_paths["image"], os.O_RDWR)
    _log = os.open(_paths["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def open(readonly: bool) -> int:  # noqa: A001 - nbdkit's name
    return 1


def get_size(handle: Any) -> int:
    return os.fstat(_image).st_size


def can_fua(handle: Any) -> int:
    return _FUA_NATIVE


def pread(handle: Any, buffer: Any, offset: int, flags: int) -> None:
    if os.preadv(_image, [buffer], offset) != len(buffer):
        raise OSError("the image is shorter than it was")


def pwrite(handle: Any, buffer: Any, offset: int, flags: int) -> None:
    _put(buffer, offset)
    _note(WRITE_THROUGH if flags & _FLAG_FUA else WRITE, offset, len(buffer), buffer)


def trim(handle: Any, count: int, offset: int, flags: int) -> None:
    zero(handle, count, offset, flags)


def zero(handle: Any, count: int, offset: int, flags: int) -> None:
    zeros = bytes(count)
    _put(zeros, offset)
    if flags & _FLAG_FUA:
        _note(WRITE_THROUGH, offset, count, zeros)
    else:
        _note(ZERO, offset, count)


def flush(handle: Any, flags: int) -> None:
    _note(FLUSH, 0, 0)


def _put(data: Any, offset: int) -> None:
    if os.pwrite(_image, data, offset) != len(data):
        raise OSError("a short write to the image")


def _note(kind: bytes, offset: int, nbytes: int, data: Any = b"") -> None:
    header = HEADER.pack(kind, offset, nbytes)
    # One call, so that nobody who looks at the size sees half an entry.
    if os.writev(_log, [header, data]) != len(header) + len(data):
        raise OSError("a short write to the log")
