"""Archives in memory, loaded."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import io
from typing import Any

import fastckpt


def load_bytes(archive: bytes, *arguments: Any, **options: Any) -> Any:
    return fastckpt.load(io.BytesIO(archive), *arguments, **options)
