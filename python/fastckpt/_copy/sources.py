"""What there is to copy: steps, checkpoints of a CheckpointManager, single files. Imports no torch."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fastckpt._contents.small_file import META_NBYTES_MAX, read_small_file
from fastckpt._named_step import split_step
from fastckpt._steps.checkpoint_names import BEST_NAME
from fastckpt._steps.manager_files import ManagerFiles, survey_manager
from fastckpt._steps.manifest import decode_manifest
from fastckpt._steps.role import Role
from fastckpt._steps.saves import read_save
from fastckpt._steps.survey import Listing, own_name, parse_name, survey_step, survey_steps
from fastckpt.errors import CheckpointError, FormatError


@dataclass(frozen=True)
class Piece:
    """One file to be copied.

    Attributes:
        source: Where it is.
        name: What it will be called.
        role: What it is.
        nbytes: Its size in bytes.
        data: Its contents, for one that has been read already.
    """

    source: str
    name: str
    role: Role
    nbytes: int
    data: bytes | None = None


class Item(ABC):
    """Files that belong together; the last makes the others a checkpoint.

    Attributes:
        name: What it is called in messages.
        step: Its step, None for a single file.
        asked: Whether it was asked for by its step, and not with all that are whole.
    """

    def __init__(self, name: str, step: int | None, *, asked: bool) -> None:
        self.name = name
        self.step = step
        self.asked = asked

    @abstractmethod
    def pieces(self) -> list[Piece]:
        """Return its files as they are now, in the order in which they become visible.

        Raises:
            IncompleteCheckpointError: One is missing, or of another save.
            CheckpointError: One is damaged.
            OSError: One cannot be read.
        """

    def foreign_names(self, directory: str) -> list[str]:
        """Return names in a directory that would be taken for files of it."""
        return []


class StepItem(Item):
    """A step with nanochat's names."""

    def __init__(self, listing: Listing, directory: str, step: int, *, asked: bool) -> None:
        super().__init__(f"step {step}", step, asked=asked)
        self._listing = listing
        self._directory = directory
        self._step = step

    def pieces(self) -> list[Piece]:
        """Return shards, manifest, meta, model; under their own names, whatever they are kept under."""
        save = read_save(self._directory, self._step, optimizer=True, listing=self._listing)
        shards = [_archive(save.optimizer[rank], "optimizer") for rank in sorted(save.optimizer)]
        small = []
        if save.manifest is not None:
            data = read_small_file(save.manifest, "a manifest", META_NBYTES_MAX)
            decode_manifest(data, save.manifest)
            small.append(_small(save.manifest, "manifest", data))
        _require_json(save.meta, save.meta_bytes)
        small.append(_small(save.meta, "meta", save.meta_bytes))
        return [*shards, *small, _archive(save.model.path, "model")]

    def foreign_names(self, directory: str) -> list[str]:
        """Return all names of the step that are there."""
        files = survey_step(directory, self._step)
        return [*files.names(), *files.kept_names()]


class CheckpointItem(Item):
    """A checkpoint of a CheckpointManager."""

    def __init__(self, directory: str, files: ManagerFiles, *, asked: bool) -> None:
        super().__init__(f"epoch {files.epoch}, step {files.step}", files.step, asked=asked)
        self._directory = directory
        self._files = files

    @property
    def path(self) -> str:
        """The checkpoint."""
        return os.path.join(self._directory, self._files.name or "")

    def pieces(self) -> list[Piece]:
        """Return the files of the other ranks, then the checkpoint."""
        names = [*self._files.rank_names(), self._files.name or ""]
        return [_archive(os.path.join(self._directory, name), "other") for name in names]


class FileItem(Item):
    """A single .pt file; its copy is called `name`.

    Attributes:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        super().__init__(os.path.basename(path), None, asked=True)
        self.path = path

    def pieces(self) -> list[Piece]:
        """Return the file."""
        return [Piece(self.path, own_name(self.name), "other", os.stat(self.path).st_size)]


@dataclass(frozen=True)
class Selection:
    """What was asked for.

    Attributes:
        directory: Where it is.
        items: What to copy, in this order.
        best: Path of `best_model.pt`, where all of a CheckpointManager's directory is copied.
        missing: Steps that were asked for and are not there.
        others: Names of files in the directory that belong to no checkpoint.
    """

    directory: str
    items: list[Item]
    best: str | None = None
    missing: Sequence[int] = ()
    others: Sequence[str] = ()


def select(source: str, steps: Collection[int], *, newest: bool) -> Selection:
    """Find what a source names.

    Raises:
        ValueError: Steps were named of what has none, or together with `newest`.
        OSError: There is nothing, or it cannot be listed.
    """
    source, steps = _split(source, steps)
    if newest and steps:
        raise ValueError("name steps by number, or ask for the newest one, not both")
    if not os.path.isdir(source):
        os.stat(source)
        if steps or newest:
            raise ValueError(f"{source} is not a directory, and only a directory has steps")
        return Selection(os.path.dirname(source) or ".", [FileItem(source)])
    return _select_from(source, {*steps}, newest=newest)


def _split(source: str, steps: Collection[int]) -> tuple[str, Collection[int]]:
    parts = split_step(source)
    if parts is None:
        return source, steps
    directory, step = parts
    return directory, {*steps, step}


def _select_from(directory: str, steps: set[int], *, newest: bool) -> Selection:
    checkpoints, best = survey_manager(directory)
    asked = bool(steps) or newest
    listing = Listing(directory)
    items: list[Item] = [
        StepItem(listing, directory, step, asked=asked) for step in survey_steps(directory)
    ]
    items += [
        CheckpointItem(directory, files, asked=asked)
        for files in checkpoints
        if files.name is not None
    ]
    items.sort(key=lambda item: item.step or 0)
    if steps:
        there = {item.step for item in items}
        chosen = [item for item in items if item.step in steps]
        return Selection(directory, chosen, missing=sorted(steps - there))
    if newest:
        return Selection(directory, _newest_whole(items))
    best_path = None if best is None else os.path.join(directory, best)
    return Selection(directory, items, best=best_path, others=_others(directory))


def _newest_whole(items: list[Item]) -> list[Item]:
    for item in reversed(items):
        try:
            item.pieces()
        except (CheckpointError, FileNotFoundError):
            continue
        return [item]
    # Why the highest is not whole is what there is to say.
    return items[-1:]


def _others(directory: str) -> list[str]:
    checkpoints, _ = survey_manager(directory)
    known = {BEST_NAME, *(name for files in checkpoints if files.name for name in files.names())}
    names = [name for name in sorted(os.listdir(directory)) if not name.startswith(".")]
    return [name for name in names if name not in known and parse_name(name) is None]


def _archive(path: str, role: Role) -> Piece:
    return Piece(path, own_name(os.path.basename(path)), role, os.stat(path).st_size)


def _small(path: str, role: Role, data: bytes) -> Piece:
    return Piece(path, own_name(os.path.basename(path)), role, len(data), data)


def _require_json(path: str, data: bytes) -> None:
    try:
        json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}", path=path) from error
