"""Write an object to a .pt file: the counterpart of torch.save."""

from __future__ import annotations

import errno
import io
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import torch

from fastckpt._native import Commit, Written, archive_nbytes, write_archive_to

from .configuration import configured_alignment
from .pickling import DEFAULT_PROTOCOL, Pickled, pickle_object
from .staging import StorageSaver, staged_positions

# The padding is the extra field of a zip header, whose length has 16 bits.
MAX_ALIGNMENT = 32768


def save(
    obj: object,
    f: str | os.PathLike[str] | IO[bytes],
    *,
    pickle_protocol: int = DEFAULT_PROTOCOL,
    sync: bool = True,
    alignment: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Save an object as a file, the same that torch.save writes.

    The file equals that of torch.save (torch 2.7 and later) byte for byte, except for the
    40-digit serialization id, which no loader reads; the same object always gives the same
    file. It always has CRCs: ``torch.serialization.set_crc32_options(False)`` has no effect, since
    taking them costs no time of its own here.

    With a path, the file is written under a temporary name in the same directory and renamed
    when it is whole. When save returns, the new file is in place and, with ``sync=True``, on the
    disk together with its directory entry: it survives a power cut. A crash, a kill or an error
    before that leaves whatever `f` was before, and at most a temporary file
    (``.fastckpt-*.tmp``), which a later save removes. With ``sync=False`` that holds against a
    kill but not against a power cut. The tensors that map the old file keep their values.

    With a file object, the bytes are written in sequence from its current position on, and flushed.
    Making them durable is up to the owner of the file.

    Inside ``torch.serialization.skip_data`` the call goes to torch.save unchanged.

    Args:
        obj: Whatever torch.save takes. Storages are read where they are: on the CPU without a
            copy, on accelerators through bounded host buffers. They must not change meanwhile: see the
            warning below.
        f: A path, or a binary file object that is open for writing.
        pickle_protocol: As for torch.save.
        sync: Whether to fsync the file and its directory.
        alignment: Storages begin at multiples of this many bytes in the file, 1 to 32768 [default:
            ``torch.utils.serialization.config.save.storage_alignment``, 64 in torch 2.6].
        threads: Number of threads that write [default: automatic].
        progress: Called with bytes done and bytes in all, in the calling thread. What it raises
            ends the save and is raised from here.

    Raises:
        OSError: The file could not be written; `errno` and `filename` say why and which.
        CommitUnknownError: The file is in place, but the directory could not be made durable.
        RuntimeError: Tensors view the same memory as different dtypes, or a storage was resized, moved or
            freed meanwhile.
        ValueError: An argument is out of its range.

    Everything is pickled before a file is touched: an object that cannot be pickled raises what
    torch.save raises, and leaves no trace.

    Warning:
        No other thread may resize, free or move a storage while it is saved. ``resize_`` and
        ``share_memory_`` do that, and so does FSDP, which frees and brings back the full parameters in each
        forward and backward pass: let no training step run before the save has returned, or save a copy.
        **Reading freed memory may end the process (SIGSEGV), or save somebody else's bytes.** fastckpt
        looks for changed storages while it writes, and once more at the end, and raises RuntimeError.
        That makes the window small; it cannot close it.

    Example:
        >>> import fastckpt, torch
        >>> fastckpt.save({"weight": torch.zeros(2, 3)}, "example.pt")
        >>> torch.load("example.pt")["weight"].shape
        torch.Size([2, 3])
    """
    _check_target(f)
    alignment_nbytes = _alignment(alignment)
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, or None to choose, not {threads}")
    if torch.serialization._serialization_tls.skip_data:
        torch.save(obj, f, pickle_protocol=pickle_protocol)
        return
    pickled = pickle_object(obj, pickle_protocol)
    if isinstance(f, (str, os.PathLike)):
        with Commit(sync=sync) as commit:
            commit.require_space(
                _directory_of(f), nbytes_of(f, pickled, alignment=alignment_nbytes)
            )
            write_into(
                commit, f, pickled, alignment=alignment_nbytes, threads=threads, progress=progress
            )
            commit.publish([f])
    else:
        _write_to_file(f, pickled, alignment_nbytes, threads, progress)


def write_into(
    commit: Commit,
    path: str | os.PathLike[str],
    pickled: Pickled,
    *,
    alignment: int | None = None,
    shards: int = 0,
    save_id: int = 0,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write an archive as one file of a commit, which makes it visible later.

    Args:
        commit: The open commit.
        path: What the file will be called.
        pickled: What it holds.
        alignment: As for `save`.
        shards: Number of optimizer shards in the step, for the serialization id.
        save_id: Fourteen digits that the files of one step share, for the serialization id.
        threads: As for `save`.
        progress: As for `save`.

    Returns:
        Size of the file and hash of its contents.
    """
    with _staging(pickled.storages) as saver:
        return commit.write_archive(
            path,
            pickled.data,
            pickled.storages,
            nbytes=pickled.nbytes,
            alignment=_alignment(alignment),
            shards=shards,
            save_id=save_id,
            stager=saver,
            threads=threads,
            progress=progress,
        )


def nbytes_of(
    path: str | os.PathLike[str], pickled: Pickled, *, alignment: int | None = None
) -> int:
    """Return how many bytes `write_into` would write with these arguments."""
    return archive_nbytes(path, len(pickled.data), pickled.nbytes, alignment=_alignment(alignment))


def _directory_of(path: str | os.PathLike[str]) -> str:
    """Return the directory that a save to this path writes to, symbolic links followed."""
    return os.path.dirname(os.path.realpath(path) if os.path.islink(path) else os.fspath(path))


def _write_to_file(
    file: IO[bytes],
    pickled: Pickled,
    alignment: int,
    threads: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    is_raw = isinstance(file, io.RawIOBase)

    def write(data: memoryview) -> None:
        while len(data) > 0:
            done: Any = file.write(data)
            if is_raw and not done:
                # Only a raw file says so: it would have had to wait.
                raise BlockingIOError(errno.EAGAIN, "the file object takes no more bytes now")
            if not isinstance(done, int) or done >= len(data):
                return  # Others return None, or a count of their own.
            if done <= 0:
                raise OSError(errno.EIO, "the file object takes no bytes", _name_of(file))
            data = data[done:]

    with _staging(pickled.storages) as saver:
        write_archive_to(
            write,
            pickled.data,
            pickled.storages,
            nbytes=pickled.nbytes,
            alignment=alignment,
            stager=saver,
            threads=threads,
            progress=progress,
        )
    flush = getattr(file, "flush", None)
    if flush is not None:
        flush()


def _name_of(file: IO[bytes]) -> str:
    return str(getattr(file, "name", f"<{type(file).__name__}>"))


@contextmanager
def _staging(storages: Sequence[torch.UntypedStorage]) -> Iterator[StorageSaver | None]:
    """Open host buffers for the storages that need them; None if all are on the CPU."""
    if not staged_positions(storages):
        yield None
        return
    with StorageSaver(storages) as saver:
        yield saver


def _check_target(f: Any) -> None:
    if not isinstance(f, (str, os.PathLike)) and not callable(getattr(f, "write", None)):
        raise AttributeError(  # noqa: TRY004 - what torch.save raises
            "expected 'f' to be string, path, or a file-like object with a 'write' attribute, "
            f"not {type(f).__name__}"
        )


def _alignment(alignment: int | None) -> int:
    if alignment is None:
        alignment = configured_alignment()
    alignment = operator.index(alignment)
    if not 1 <= alignment <= MAX_ALIGNMENT:
        raise ValueError(
            f"alignment must be 1 to {MAX_ALIGNMENT} bytes, not {alignment}: "
            "the padding must fit a zip header"
        )
    return alignment
