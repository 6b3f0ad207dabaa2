"""Which checkpoints go, and how: never the best, never before the newest is proven good."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing, suppress
from functools import partial

from fastckpt import _native
from fastckpt._prune.retention import expendable_steps
from fastckpt._steps.checkpoint_names import CheckpointName
from fastckpt._steps.held import HeldDirectory
from fastckpt._steps.manager_files import is_of_checkpoint, part_of_checkpoint
from fastckpt._steps.removal import Going, Removal
from fastckpt.errors import ChecksumError

from .config import CheckpointConfig
from .directory import CheckpointDirectory
from .log import logger

_NOT_DELETED = "An old checkpoint could not be deleted, and is tried again later: %s"


def expendable(
    names: Iterable[CheckpointName],
    config: CheckpointConfig,
    *,
    protected: Collection[CheckpointName],
) -> list[CheckpointName]:
    """Return the checkpoints that may go, oldest first.

    Args:
        names: All whole checkpoints there are, in any order.
        config: `save_total_limit`, `keep_every`, and `cycle_steps` with `cycle_mult`.
        protected: Checkpoints that stay whatever the rest says: the best one, the newest save. With
            each, all others of its step stay.
    """
    ordered = sorted(set(names))
    steps = {name.step for name in ordered}
    kept = {name.step for name in protected} | {step for step in steps if config.ends_cycle(step)}
    gone = expendable_steps(
        steps, keep=config.save_total_limit, keep_every=config.keep_every, protected=kept
    )
    expendables = set(gone)
    return [name for name in ordered if name.step in expendables]


def prove_good(commit: _native.Commit, path: str) -> None:
    """Read back a file that a commit has written and fsynced, and compare every byte.

    Args:
        commit: The open commit; the file is not visible yet.
        path: What it will be called.

    Raises:
        ChecksumError: The disk does not return what was written.
        OSError: It cannot be read.
    """
    damages = _read_back(commit.temporary_path(path), path)
    if not damages:
        return
    damage = damages[0]
    raise ChecksumError(
        f"{path} was not saved: read back from the disk, it is not what was written "
        f"({damage.detail}, at byte {damage.offset}; {len(damages)} in all). The checkpoints "
        "that were there before are untouched. Look at the disk (dmesg, smartctl), or save to another",
        path=path,
        record=damage.record,
        tensors=damage.tensors,
        offset=damage.offset,
        nbytes=damage.nbytes,
        expected=damage.expected,
        found=damage.found,
    )


def find_damage(path: str) -> str | None:
    """Read a checkpoint back from the disk; return what is wrong with it in words, None if it is good.

    Raises:
        OSError: It cannot be read.
    """
    damages = _read_back(path, path)
    return f"{damages[0].detail}, at byte {damages[0].offset}" if damages else None


def _read_back(file: str, path: str) -> Sequence[_native.Damage]:
    """Read a durable file from the disk and compare every byte; `path` is its name in messages."""
    try:
        _drop_from_page_cache(file)
        return _native.verify_file(file).damages
    except OSError as error:
        error.strerror = f"{error.strerror}, while reading back what was written"
        error.filename = path
        raise


def _drop_from_page_cache(path: str) -> None:
    """Let the kernel forget a file that is on the disk, so that the next read comes from there."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Where the kernel takes no advice (memory disks), there is nothing behind the cache.
        with suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        with suppress(OSError):
            os.close(fd)


def remove(
    directory: CheckpointDirectory, names: Sequence[CheckpointName], *, saved: CheckpointName
) -> None:
    """Delete checkpoints with the files of other ranks, and those that belong to no checkpoint any more.

    What cannot be deleted is warned of, and tried again by the next save; so is what is not the file any
    more that was looked at. A crash in between leaves files of ranks whose checkpoint is gone, which the
    next rotation removes.

    Args:
        directory: Where they are.
        names: The checkpoints.
        saved: The checkpoint that was just saved. Beyond it another rank may only be ahead, even where
            checkpoints of later steps are left from another run.
    """
    orphans = [
        name
        for name in sorted(directory.rank_files)
        if name not in names and name < saved and not os.path.lexists(directory.path_of(name))
    ]
    if not names and not orphans:
        return
    try:
        held = HeldDirectory.open(directory.path)
    except OSError as error:
        logger.warning(_NOT_DELETED, error)
        return
    with closing(held):
        for name in names:
            _remove(held, directory, name, first=[str(name)])
        for name in orphans:
            _remove(held, directory, name, first=[])


def _remove(
    held: HeldDirectory, directory: CheckpointDirectory, name: CheckpointName, *, first: list[str]
) -> None:
    """Delete a checkpoint, then the files of its ranks once that is durable."""
    ranks = directory.rank_files.get(name, [])
    judged = directory.judged(name)
    try:
        going = Going(
            directory=held,
            first=first,
            rest=ranks,
            judged={**held.look_at(ranks), **({} if judged is None else {str(name): judged})},
            part=part_of_checkpoint(name.step, name.epoch),
            belongs=partial(is_of_checkpoint, step=name.step, epoch=name.epoch),
        )
    except OSError as error:
        logger.warning(_NOT_DELETED, error)
        return
    # Where nothing else goes, a power cut that brings the checkpoint back brings back a whole one.
    kept = Removal().remove(going, sync=False)
    for file_name in [*first, *ranks]:
        path = os.path.join(directory.path, file_name)
        if path in kept:
            logger.warning(_NOT_DELETED, f"{path}: {kept[path]}")
        else:
            logger.info("Deleted %s", path)
