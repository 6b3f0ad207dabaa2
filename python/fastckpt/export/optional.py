"""Dependencies that only exports need, imported on use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

EXTRA = "export"


def require(module: str, what: str) -> Any:
    """Import an optional dependency.

    Args:
        module: What to import, e.g. "safetensors.torch".
        what: The user of it, for the message: "a .safetensors file".

    Raises:
        ImportError: It is not installed; the message says how to install it.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        # A package that fails to import something else is broken, not missing.
        if error.name not in (package, module):
            raise
        raise ImportError(
            f"{what} needs {package}: pip install 'fastckpt[{EXTRA}]'", name=package
        ) from None
