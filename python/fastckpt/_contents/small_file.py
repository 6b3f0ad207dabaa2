"""Read a small file that an attacker may have put there: JSON beside the archives of a step."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import IO

from fastckpt.errors import FormatError

#: Most bytes of a meta file. nanochat's own are below 10 KB; parsing one of this size takes seconds
#: and gigabytes already.
META_NBYTES_MAX = 64 << 20
_PIECE_NBYTES = 1 << 16


def read_small_file(path: str, kind: str, nbytes_max: int) -> bytes:
    """Read a regular file of a limited size.

    Args:
        path: The file.
        kind: What it should be, for messages: "a meta file".
        nbytes_max: The limit in bytes; a file that grows beyond it while it is read is refused too.

    Raises:
        OSError: It cannot be read.
        FormatError: It is not a regular file, or too large.
    """
    # Non-blocking, so that opening a FIFO returns at once instead of waiting for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{path} is not {kind}: it is not a regular file", path=path)
        with open(fd, "rb", closefd=False) as file:
            data = b"" if status.st_size > nbytes_max else _read(file, nbytes_max + 1)
    except OSError as error:
        # A read does not know the name.
        error.filename = path
        raise
    finally:
        # Nothing was written to it, so nothing is lost with what close may say.
        with suppress(OSError):
            os.close(fd)
    nbytes = max(status.st_size, len(data))
    if nbytes > nbytes_max:
        raise FormatError(
            f"{path} is not {kind}: it has {nbytes} bytes, more than {nbytes_max}", path=path
        )
    return data


def _read(file: IO[bytes], nbytes_max: int) -> bytes:
    """Read to the end, or so much; in pieces, since a read makes room for all that it may find."""
    pieces: list[bytes] = []
    while nbytes_max > 0 and (piece := file.read(min(nbytes_max, _PIECE_NBYTES))):
        pieces.append(piece)
        nbytes_max -= len(piece)
    return b"".join(pieces)
