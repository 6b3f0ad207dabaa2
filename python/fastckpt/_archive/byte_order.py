"""Refuse the numbers of a machine of the other byte order where they are not swapped."""

from __future__ import annotations

import sys

from fastckpt._native import Archive
from fastckpt.errors import FormatError


def refuse_foreign_byte_order(archive: Archive, path: str) -> None:
    """Raise FormatError where a file was saved on a machine of another byte order."""
    if "byteorder" not in archive.names():
        # Before torch 2.1 there was no such record.
        return
    found = archive.read_record("byteorder").decode(errors="replace")
    if found != sys.byteorder:
        raise FormatError(
            f"{path} was saved on a machine of another byte order ({found}): save it here once, with "
            "fastckpt.save(fastckpt.load(path), new_path)",
            path=path,
        )
