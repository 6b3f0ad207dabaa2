"""Open what the caller names, and recognise what it is before anything else is done with it."""

from __future__ import annotations

import enum
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fastckpt._native import Archive, LegacyFile
from fastckpt.errors import FormatError

# First bytes of a zip archive that has records (zip APPNOTE 4.3.7).
_ZIP_MAGIC = b"PK\x03\x04"
# torch's magic number 0x1950a86a20f9469cfc6c, pickled as LONG1, and by protocols 0 and 1.
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_TEXT = b"L119547037146038801333356L\n."
# POSIX tar: the magic of its first header and where it stands.
_TAR_MAGIC = b"ustar"
_TAR_MAGIC_OFFSET = 257
_TORCH_1_0_PREVIEW = b"PYTORCH1"
_HEAD_NBYTES = 512


class Kind(enum.Enum):
    """What the first bytes of a file say."""

    ZIP = "a zip archive"
    LEGACY = "a file of torch before 1.6"
    TAR = "a tar file of torch before 0.2"
    SAFETENSORS = "a safetensors file"


class Source:
    """What the caller named, open for reading.

    Attributes:
        name: The file in messages, e.g. "runs/d12/model_000100.pt" or "<_io.BytesIO>".
        kind: What its first bytes say.
    """

    def __init__(self, name: str, kind: Kind, *, fd: int | None, file: Any = None) -> None:
        self.name = name
        self.kind = kind
        self._fd = fd
        self._file = file
        self._position = 0 if file is None else file.tell()

    def archive(self) -> Archive:
        """Open the zip archive; what is wrong with it raises `FormatError`."""
        if self._fd is not None:
            return Archive.open_fd(self._fd, self.name)
        data, start = self._bytes()
        return Archive.open_bytes(data[start:] if start else data, self.name)

    def legacy(self) -> LegacyFile:
        """Open the file of torch before 1.6, and check all but its elements.

        A file object then stands behind the object that was saved, as torch.load leaves it:
        several may have been saved one behind the other.

        Raises:
            UnsafePickleError: ``weights_only=True`` does not allow what is in its pickles.
            FormatError: Its sizes do not agree, or it is damaged.
        """
        if self._fd is not None:
            legacy = LegacyFile.open_fd(self._fd, self.name, self._position)
            end = legacy.end
        else:
            data, start = self._bytes()
            legacy = LegacyFile.open_bytes(data, self.name, start)
            end = legacy.end - start + self._position
        if self._file is not None:
            self._file.seek(end)
        return legacy

    def _bytes(self) -> tuple[bytes, int]:
        """Return bytes that cannot change any more, and where among them the object begins."""
        if type(self._file) is io.BytesIO:
            # Shares the buffer until one of the two is changed.
            return self._file.getvalue(), self._position
        data = self._file.read()
        # torch.load may be given the file next, and begins where it stands.
        self._file.seek(self._position)
        return data, 0


def is_path(f: object) -> bool:
    """Whether torch.load takes it as a path; bytes are not a path."""
    return isinstance(f, (str, os.PathLike))


@contextmanager
def open_source(f: Any) -> Iterator[Source]:
    """Open a path or look at a file object, and recognise its format.

    Args:
        f: What torch.load takes: a path, or a binary file object that can seek. Of a file
            object, the archive begins at the current position.

    Raises:
        FormatError: Not a regular file, or not a checkpoint.
        OSError: The file cannot be opened or read.
        AttributeError, io.UnsupportedOperation: A file object that cannot seek.
    """
    if not is_path(f):
        yield _look_at_file(f)
        return
    path = os.fsdecode(f)
    name = _display_name(path)
    fd = _open(path)
    try:
        mode, head = _look_at(fd, path)
        _refuse_irregular(mode, name)
        kind = Kind.SAFETENSORS if path.endswith(".safetensors") else _recognise(head, name)
        yield Source(name, kind, fd=fd)
    finally:
        # Nothing was written to it, so nothing is lost with what close may say.
        with suppress(OSError):
            os.close(fd)


def _open(path: str) -> int:
    # Without O_NONBLOCK, opening a FIFO waits for a writer. Regular files do not mind.
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        error.strerror = f"{error.strerror}, while opening the file"
        raise


def _look_at_file(file: Any) -> Source:
    name = _display_name(str(getattr(file, "name", f"<{type(file).__name__}>")))
    try:
        file.seek(file.tell())
    except (AttributeError, OSError) as error:
        # Pipes say so in errno, objects without a position by io.UnsupportedOperation.
        kind = AttributeError if isinstance(error, AttributeError) else io.UnsupportedOperation
        raise kind(
            f"{error}. fastckpt.load takes a path, or a binary file object that can seek: "
            "read the data into an io.BytesIO first."
        ) from error
    position = file.tell()
    head = file.read(_HEAD_NBYTES)
    file.seek(position)
    if not isinstance(head, bytes):
        raise TypeError(f"{name} is open for text: fastckpt.load needs it opened with mode 'rb'")
    found = _recognise(head, name)
    if found is Kind.LEGACY and _is_plain_file(file):
        return Source(name, found, fd=file.fileno(), file=file)
    if position == 0 and found is Kind.ZIP and _is_plain_file(file):
        return Source(name, found, fd=file.fileno())
    return Source(name, found, fd=None, file=file)


def _is_plain_file(file: Any) -> bool:
    """Whether the object's bytes are those of its descriptor, so that we may read from there.

    Subclasses and wrappers (gzip) may have other bytes.
    """
    if type(file) in (io.BufferedReader, io.BufferedRandom):
        file.flush()
        file = file.raw
    return type(file) is io.FileIO and stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def _look_at(fd: int, path: str) -> tuple[int, bytes]:
    """Return the mode of an open file and its first bytes, if it is a regular file."""
    try:
        mode = os.fstat(fd).st_mode
        return mode, os.pread(fd, _HEAD_NBYTES, 0) if stat.S_ISREG(mode) else b""
    except OSError as error:
        error.filename = path
        error.strerror = f"{error.strerror}, while reading"
        raise


def _display_name(path: str) -> str:
    """Make a path printable: file names may hold bytes that are not UTF-8."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def _refuse_irregular(mode: int, name: str) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise FormatError(
            f"{name} is a directory, not a checkpoint file: name the .pt file in it, or use "
            "load_checkpoint for a step",
            path=name,
        )
    raise FormatError(
        f"{name} is not a regular file (FIFO, socket or device), and checkpoints are not read in "
        "order: copy the data to a file or an io.BytesIO first",
        path=name,
    )


def _recognise(head: bytes, name: str) -> Kind:
    if head.startswith(_ZIP_MAGIC):
        return Kind.ZIP
    pickled = head[:1] == b"\x80" and _LEGACY_MAGIC in head[:32]
    if pickled or head.startswith(_LEGACY_TEXT):
        return Kind.LEGACY
    if head[_TAR_MAGIC_OFFSET:].startswith(_TAR_MAGIC):
        return Kind.TAR
    raise FormatError(f"{name} is not a checkpoint: {_describe(head)}", path=name)


def _describe(head: bytes) -> str:
    """Say what a file is that torch.save has not written, from its first bytes."""
    if not head:
        return "it is empty, as if its process was killed while writing; load an older checkpoint"
    if head.startswith(_TORCH_1_0_PREVIEW):
        return "the preview of torch 1.0 wrote it, and no later torch reads it"
    if not head.strip(b"\0"):
        return "it starts with zeros: its data never reached the disk; load an older checkpoint"
    return f"it starts with {repr(head[:8])[1:]}, unlike any format of torch.save"
