"""`best_model.pt`: a second name of the best checkpoint, given without writing its bytes again."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from contextlib import suppress
from typing import Any

from fastckpt._native import Commit
from fastckpt._steps.checkpoint_names import BEST_NAME, CheckpointName

from .config import CheckpointConfig
from .directory import CheckpointDirectory
from .log import logger
from .rotation import find_damage

# linux/fs.h: _IOW(0x94, 9, int)
_FICLONE = 0x40049409
# What answers where there are no reflinks: other file systems, other kernels.
_NO_REFLINKS = frozenset(
    {
        errno.EOPNOTSUPP,
        errno.ENOTSUP,
        errno.ENOTTY,
        errno.EINVAL,
        errno.ENOSYS,
        errno.EXDEV,
        errno.EPERM,
        errno.EBADF,
    }
)
_PIECE_NBYTES = 1 << 30


def settle_best(
    directory: CheckpointDirectory, config: CheckpointConfig, *, proven: CheckpointName | None
) -> bool:
    """Let `best_model.pt` be the best checkpoint, if it is not.

    Nothing takes its place that was not read back from the disk. Of the checkpoint just saved that is known;
    an older one becomes the best where the configuration names another metric, say. If it is damaged, that is
    warned of, and the next best is looked at.

    Args:
        directory: The checkpoints, the one just saved among them.
        config: `metric_name`, `metric_mode` and `verify_before_delete`.
        proven: The checkpoint that was read back when it was saved.

    Returns:
        Whether the best is another one than it seemed, since that was damaged.

    Raises:
        OSError: A file cannot be read, or the name not be given; `best_model.pt` is what it was.
    """
    proves = config.verify_before_delete and os.path.lexists(
        os.path.join(directory.path, BEST_NAME)
    )
    is_another = False
    while True:
        best, named = directory.best(config.metric_name, config.metric_mode), directory.best_model
        if best is None or (named is not None and named.is_same_save(best)):
            return is_another
        damage = find_damage(best.path) if proves and best.name != proven else None
        if damage is None:
            name_best(best.path)
            return is_another
        logger.warning(
            "Not the best any more, and left where it is: %s is damaged (%s)", best.path, damage
        )
        directory.pass_over(best)
        is_another = True


def name_best(checkpoint: str) -> None:
    """Make `best_model.pt` another name of a checkpoint beside it, atomically and durably.

    On return the name is on the disk. A crash before that leaves what `best_model.pt` was, and at
    most a hidden temporary name, which a later save removes. Where the file system has no hard
    links, the bytes are shared by a reflink, and where it has none either, copied by the kernel.

    Args:
        checkpoint: The file; it is durable already.

    Raises:
        OSError: It could not be done; `best_model.pt` is what it was, unless the last step, the
            fsync of the directory, has failed.
    """
    with Commit() as commit:
        if commit.link(checkpoint, BEST_NAME):
            return
    logger.info("%s is a copy: no hard links here", BEST_NAME)
    source = _call("opening the file", checkpoint, os.open, checkpoint, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _replace_by_copy(source, os.path.dirname(checkpoint))
    finally:
        # Nothing was written to it, so nothing is lost with what close may say.
        with suppress(OSError):
            os.close(source)


def _replace_by_copy(source: int, directory: str) -> None:
    best = os.path.join(directory, BEST_NAME)
    temporary = os.path.join(directory, f".fastckpt-{os.getpid()}-{secrets.randbits(64)}.tmp")
    mode = os.fstat(source).st_mode & 0o777
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    copy = _call("creating the copy", temporary, os.open, temporary, flags, mode)
    try:
        # A lock says that it belongs to somebody who lives; see `Commit`.
        with suppress(OSError):
            fcntl.flock(copy, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _copy(source, copy, temporary)
        _require_own(temporary, copy)
        _call("renaming the copy", best, os.rename, temporary, best)
    except BaseException:
        with suppress(OSError):
            if _leads_to(temporary, copy):
                os.unlink(temporary)
        raise
    finally:
        os.close(copy)
    with Commit() as commit:
        commit.sync_directory(directory)


def _require_own(temporary: str, copy: int) -> None:
    if not _leads_to(temporary, copy):
        raise FileNotFoundError(errno.ENOENT, "another process has removed the copy", temporary)


def _leads_to(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _copy(source: int, copy: int, path: str) -> None:
    """Share the bytes, or copy them where they cannot be shared; `path` is that of the copy, for messages."""
    try:
        fcntl.ioctl(copy, _FICLONE, source)
    except OSError as error:
        if error.errno not in _NO_REFLINKS:
            raise _described(error, "sharing the bytes", path) from None
        _call("copying the bytes", path, _copy_bytes, source, copy)
    _call("flushing the copy to disk (fsync)", path, os.fsync, copy)


def _copy_bytes(source: int, copy: int) -> None:
    # In the kernel, a gigabyte at a time.
    offset = 0
    while count := os.sendfile(copy, source, offset, _PIECE_NBYTES):
        offset += count


def _call(doing: str, path: str, function: Any, *args: Any) -> Any:
    try:
        return function(*args)
    except OSError as error:
        raise _described(error, doing, path) from None


def _described(error: OSError, doing: str, path: str) -> OSError:
    error.strerror = f"{error.strerror}, while {doing}"
    error.filename = path
    error.filename2 = None
    return error
