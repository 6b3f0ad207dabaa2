"""The settings of torch.save and torch.load that are followed here (``torch.utils.serialization``)."""

from __future__ import annotations

import functools
from typing import Any

# What torch.save aligns storages to by default.
DEFAULT_ALIGNMENT = 64


def configured_alignment() -> int:
    """Return what torch.save aligns storages to, in bytes; torch 2.6 has 64 and no setting."""
    config = _config()
    return DEFAULT_ALIGNMENT if config is None else int(config.save.storage_alignment)


def configured_mmap() -> bool:
    """Return whether torch.load maps files by default; False in torch 2.6."""
    config = _config()
    return False if config is None else bool(config.load.mmap)


@functools.cache
def _config() -> Any:
    """Return torch's settings, or None before torch 2.7.

    Remembered, since Python looks through the whole path again for a module that is not there.
    """
    try:
        from torch.utils.serialization import config
    except ImportError:
        return None
    return config
