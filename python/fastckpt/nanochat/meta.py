"""The meta file of a step: JSON, byte for byte as nanochat writes it."""

import json
from typing import Any

from fastckpt.errors import FormatError


def encode_meta(meta_data: object) -> bytes:
    """Encode `meta_data` as nanochat's `json.dump(meta_data, f, indent=2)` does.

    Returns:
        ASCII bytes. An infinity is `Infinity`, a NaN `NaN`, which Python's json reads back.

    Raises:
        TypeError: JSON cannot express the object.
        ValueError: The object contains itself.
    """
    return json.dumps(meta_data, indent=2).encode("ascii")


def decode_meta(data: bytes, path: str) -> Any:
    """Decode the contents of a meta file as Python's json does, `Infinity` and `NaN` included.

    Raises:
        FormatError: The bytes are not JSON in UTF-8.
    """
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
