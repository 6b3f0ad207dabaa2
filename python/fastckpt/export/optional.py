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
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        # What the package itself fails to import is a fault of its own.
        if error.name not in (package, module):
            raise
        raise ImportError(
            f"{what} needs {package}: pip install 'fastckpt[{EXTRA}]'", name=package
        ) from None
