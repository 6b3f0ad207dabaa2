"""Refuse files of the other byte order for those who do not swap bytes."""

from __future__ import annotations

import sys

from fastckpt._native import Archive
from fastckpt.errors import FormatError


def refuse_foreign_byte_order(archive: Archive, path: str) -> None:
    """Raise FormatError if a file was saved on a machine of another byte order."""
    if "byteorder" not in archive.names():
        # Before torch 2.1 there was no such record.
        return
    found = archive.read_record("byteorder").decode(errors="replace")
    if found != sys.byteorder:
        raise FormatError(
            f"{path} was saved on a machine of another byte order ({found}). Convert it once: "
            "fastckpt.save(fastckpt.load(path), new_path)",
            path=path,
        )
