"""Writers that leave out what makes a save durable or atomic: a harness has to find each of them."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tests.faults.power import copy_saves
from tests.faults.power.copy_plan import BEST, METRIC, Holding

import fastckpt
from fastckpt import _native
from fastckpt._copy import items
from fastckpt._prune import prune as prune_module
from fastckpt._steps.checkpoint_names import CheckpointName
from fastckpt.training import rotation


def in_place(obj: Any, path: Path, direct: bool) -> None:
    """Write over the old file, as torch.save does."""
    torch.save(obj, path)


def without_sync(obj: Any, path: Path, direct: bool) -> None:
    """Rename a file whose bytes may not be on the disk."""
    temporary = path.with_name(".fastckpt-0-0.tmp")
    torch.save(obj, temporary)
    os.replace(temporary, path)


def without_directory_sync(obj: Any, path: Path, direct: bool) -> None:
    """Return before the new name is on the disk."""
    temporary = path.with_name(".fastckpt-0-0.tmp")
    torch.save(obj, temporary)
    _sync(temporary)
    os.replace(temporary, path)


def without_file_sync(obj: Any, path: Path, direct: bool) -> None:
    """Make the name durable, but not the bytes behind it."""
    without_sync(obj, path, direct)
    _sync(path.parent)


def under_a_name_of_a_checkpoint(obj: Any, path: Path, direct: bool) -> None:
    """Write to a temporary name that somebody will take for a checkpoint."""
    temporary = path.with_name(f"temporary_{path.name}")
    fastckpt.save(obj, temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def each_file_for_itself(
    directory: Path, step: int, model: Any, optimizer: Any, meta: Any, rank: int
) -> None:
    """Save a step as files that know nothing of each other; each is durable and whole."""
    if rank == 0:
        fastckpt.save(model, directory / f"model_{step:06d}.pt")
        path = directory / f"meta_{step:06d}.json"
        with _native.Commit() as commit:
            commit.write_bytes(path, json.dumps(meta).encode())
            commit.publish([path])
    fastckpt.save(optimizer, directory / f"optim_{step:06d}_rank{rank}.pt")


# Managers. They rely on how the right one is made: a mistake is as small as it would be there.


class DeletesFirst(fastckpt.CheckpointManager):
    """Makes room for a checkpoint before it is there."""

    def _save_checkpoint(self, name: CheckpointName, *arguments: Any, **options: Any) -> bool:
        self._directory.refresh()
        expendable = self._expendable(name)
        if expendable:
            rotation.remove(self._directory, expendable, saved=name)
        return super()._save_checkpoint(name, *arguments, **options)


class UnlinksTheBest(fastckpt.CheckpointManager):
    """Takes the name from the old best one, durably, before the new one gets it."""

    def _tidy(self, newest: CheckpointName, *, proven: bool) -> None:
        best, named = self._best_entry(), self._directory.best_model
        if best is not None and named is not None and not named.is_same_save(best):
            os.unlink(named.path)
            _sync(Path(self._directory.path))
        super()._tidy(newest, proven=proven)


class DeletesUnsynced(fastckpt.CheckpointManager):
    """Deletes, and names the best, on account of a checkpoint that may not be on the disk."""

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> bool:
        unsynced = partial(_native.Commit, sync=False)
        with mock.patch.object(_native, "Commit", unsynced):
            return super()._save_checkpoint(*arguments, **options)


# Copies and prunes.


def copies_as_cp(source: Path, to: Path, steps: tuple[int, ...]) -> None:
    """Copy the files by name, and leave the rest to the system."""
    for name in _names_to_copy(source, to, steps):
        shutil.copy2(source / name, to / name)


def copies_the_model_first(source: Path, to: Path, steps: tuple[int, ...]) -> None:
    """Copy the files by name, each whole and durable: a model before what belongs to it."""
    for name in _names_to_copy(source, to, steps):
        with _native.Commit() as commit:
            commit.copy_file(to / name, source / name, verify=False)
            commit.publish([to / name])


def _names_to_copy(source: Path, to: Path, steps: tuple[int, ...]) -> list[str]:
    names = Holding(frozenset(steps), frozenset(steps)).names() or {*os.listdir(source)}
    return sorted(names - {*os.listdir(to)} | (names & {BEST}))


def prunes_the_model_last(directory: Path, keep: int) -> None:
    """Delete the same files as fastckpt, and what makes a step of them after all the others."""
    report = fastckpt.prune(directory, keep=keep, metric=METRIC, dry_run=True)
    for checkpoint in report.checkpoints:
        paths = [file.path for file in checkpoint.files]
        for path in paths[1:]:
            os.unlink(path)
        _sync(directory)
        for path in paths[:1]:
            os.unlink(path)


def copies_what_is_unsynced(source: Path, to: Path, steps: tuple[int, ...]) -> None:
    """Take for copied what is there, be it in memory only."""
    with mock.patch.object(items, "make_durable", list):
        copy_saves.copy(source, to, steps)


def prunes_for_what_is_unsynced(directory: Path, keep: int) -> None:
    """Delete on account of what can be read, be it in memory only."""
    with mock.patch.object(prune_module, "make_durable", list):
        copy_saves.prune(directory, keep)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
