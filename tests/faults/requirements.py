"""What a fault test needs of the machine: it is skipped where that is missing, and fails in CI.

A guarantee that was not tested is none. So with FASTCKPT_TESTS_REQUIRED=1 a missing program is a
failure; only the loop and FUSE devices, which a container may not have, still lead to a skip.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import NoReturn

import pytest

REQUIRED = "FASTCKPT_TESTS_REQUIRED"
_DEVICES = {"loop": "/dev/loop-control", "fuse": "/dev/fuse"}


def need_program(*names: str) -> None:
    """Go on only where all these programs are installed."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        _miss(f"not installed: {', '.join(missing)}")


def need_root() -> None:
    """Go on only as root: mounting, and taking rights away from a child, need it."""
    if os.geteuid() != 0:
        _miss("only root may do this")


def need_device(*kinds: str) -> None:
    """Go on only where the kernel offers these devices: "loop", "fuse"."""
    for kind in kinds:
        if not os.access(_DEVICES[kind], os.R_OK | os.W_OK):
            pytest.skip(f"missing device: {_DEVICES[kind]}")


def on_each(file_systems: Sequence[str]) -> pytest.MarkDecorator:
    """Run a test on the first of the file systems in every test run, on the others among the slow tests."""
    first, *others = file_systems
    cases = [first, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]
    return pytest.mark.parametrize("file_system", cases)


def _miss(reason: str) -> NoReturn:
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{reason} ({REQUIRED}=1)")
    pytest.skip(reason)
