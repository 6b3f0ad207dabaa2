"""The archives of a step, each with its mark: the save that wrote it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from fastckpt._contents.opening import Kind, open_source
from fastckpt._native import Archive
from fastckpt.errors import TorchScriptError

from .survey import own_name

#: The save id of archives that carry none.
NO_SAVE_ID = 0


@dataclass(frozen=True)
class Part:
    """One archive of a step.

    Attributes:
        path: Where it was when it was opened.
        archive: The open archive, so that what is read later is of the same save. None for a format without
            records (before torch 1.6, TorchScript), and if it was closed again.
        save_id: Which save wrote it; NO_SAVE_ID if it does not say.
        shards: Number of optimizer shards in its step; 0 if it does not say.
        nbytes: Its size in bytes.
        content_hash: Hash over the CRCs of its records; None if it carries no hash.
    """

    path: str
    archive: Archive | None
    save_id: int
    shards: int
    nbytes: int
    content_hash: str | None

    @property
    def own_name(self) -> str:
        """The name under which it was saved, even if it is kept under another one now."""
        return own_name(os.path.basename(self.path))

    def closed(self) -> Part:
        """Return the same without the open archive."""
        return replace(self, archive=None)


def open_part(path: str) -> Part:
    """Open an archive and read its mark.

    Raises:
        FormatError: It is damaged.
        OSError: It cannot be read.
    """
    with open_source(path) as source:
        if source.kind is not Kind.ZIP:
            return _part_without_records(path)
        try:
            archive = source.archive()
        except TorchScriptError:
            return _part_without_records(path)
    mark = archive.save_mark
    return Part(
        path=path,
        archive=archive,
        save_id=NO_SAVE_ID if mark is None else mark.save_id,
        shards=0 if mark is None else mark.shards,
        nbytes=archive.nbytes,
        content_hash=archive.content_hash,
    )


def _part_without_records(path: str) -> Part:
    return Part(path, None, NO_SAVE_ID, 0, os.stat(path).st_size, None)
