"""The meta file of a step: JSON, in exactly the bytes that nanochat writes."""

import json
import os
import stat
from typing import Any

from fastckpt.errors import FormatError

# nanochat's own metas are below 10 KB. The cap keeps a hostile file from filling the memory.
MAX_META_NBYTES = 64 << 20


def encode_meta(meta_data: object) -> bytes:
    """Encode `meta_data` as nanochat's `json.dump(meta_data, f, indent=2)` does.

    Returns:
        ASCII bytes. An infinity is `Infinity`, a NaN `NaN`, which Python's json reads back.

    Raises:
        TypeError: JSON cannot express the object.
        ValueError: it contains itself.
    """
    return json.dumps(meta_data, indent=2).encode("ascii")


def read_meta(path: str) -> Any:
    """Read a meta file as Python's json does, `Infinity` and `NaN` included.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: it is no regular file, larger than 64 MiB, or not JSON in UTF-8.
    """
    data = _read_regular_file(path)
    try:
        return json.loads(data.decode("utf-8"))
    # ValueError: not UTF-8, not JSON, or an integer of more digits than Python converts.
    # RecursionError: brackets nested by the thousand.
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{path} is not a meta file: {_reason(error)} (fastckpt.load reads the step's model by itself)",
            path=path,
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "its JSON is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"its JSON is broken at line {error.lineno}, column {error.colno} ({error.msg})"
    return str(error)


def _read_regular_file(path: str) -> bytes:
    # Non-blocking, so that opening a FIFO returns at once instead of waiting for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{path} is not a meta file: it is not a regular file", path=path)
        with open(descriptor, "rb", closefd=False) as file:
            # One byte more than the cap: the file may be growing, and is then refused too.
            data = file.read(MAX_META_NBYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_META_NBYTES:
        nbytes = max(status.st_size, len(data))
        raise FormatError(
            f"{path} is not a meta file: it has {nbytes} bytes, more than {MAX_META_NBYTES}",
            path=path,
        )
    return data
