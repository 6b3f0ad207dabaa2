"""Damaged bytes, repaired."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from tests import archives

import fastckpt
from fastckpt._repair.report import Outcome, RepairReport

SMALL_RECORDS = (".format_version", ".storage_alignment", "byteorder", "version")


def flipped(data: bytes, position: int, bit: int = 0) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


def repair_bytes(data: bytes, directory: Path) -> tuple[RepairReport, Any]:
    """Repair the bytes of a file; return the report, and what torch loads of the new file."""
    path, to = directory / "damaged.pt", directory / "new.pt"
    path.write_bytes(data)
    to.unlink(missing_ok=True)
    report = fastckpt.repair(path, to=to)
    assert path.read_bytes() == data
    assert (report.outcome is Outcome.NOTHING) == (not to.exists())
    with warnings.catch_warnings():
        # torch checks sparse tensors, and says that it does.
        warnings.simplefilter("ignore")
        return report, torch.load(to, weights_only=True) if to.exists() else None


def storages_of(data: bytes) -> list[str]:
    return [name for name in archives.records(data) if name.startswith("data/")]
