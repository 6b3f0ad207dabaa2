"""What only exports need, imported when it is needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

EXTRA = "export"


def require(module: str, what: str) -> Any:
    """Import an optional dependency.

    Args:
        module: What to import, e.g. "safetensors.torch".
        what: What needs it, e.g. "a .safetensors file".

    Raises:
        ImportError: It is not installed; the message says how to.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ImportError(
            f"{what} needs {error.name}: pip install 'fastckpt[{EXTRA}]'", name=error.name
        ) from None
