"""Verify TorchScript archives that have compressed records, which the core does not read.

torch.save compresses nothing, and what it never writes, the core refuses. torch.jit.save compresses
the code that it stores beside the tensors. These files are not damaged.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable

from .report import Damage

# The code of a model. More than this, inflated, is a bomb and no code.
_INFLATED_NBYTES_MAX = 64 << 20
_CHUNK_NBYTES = 1 << 20
# What zipfile raises for bytes that are not an archive; RuntimeError for the flag of encryption.
_NOT_READABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


def verify_torchscript(
    path: str, *, quick: bool, progress: Callable[[int], None]
) -> tuple[int, tuple[Damage, ...]] | None:
    """Check the CRC-32 of each record of a TorchScript archive.

    Args:
        path: The file.
        quick: Look at the directory only.
        progress: Called with the bytes done.

    Returns:
        Number of records and the damages; None if it is not a TorchScript archive, or cannot be opened.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            names = {_record_name(info) for info in records}
            if "constants.pkl" not in names or not any(n.startswith("code/") for n in names):
                return None
            if quick:
                return len(records), ()
            damages = []
            for info in records:
                detail = _read_through(archive, info, progress)
                if detail is not None:
                    damages.append(_damage(path, info, detail))
            return len(records), tuple(damages)
    except _NOT_READABLE:
        return None


def _read_through(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, progress: Callable[[int], None]
) -> str | None:
    """Read one record; return what is wrong with it."""
    if info.compress_type != zipfile.ZIP_STORED and info.file_size > _INFLATED_NBYTES_MAX:
        return f"compressed, and {info.file_size} bytes large when inflated"
    try:
        # zipfile stops at the size that the directory states, and compares the CRC there.
        with archive.open(info) as record:
            done = info.header_offset
            while chunk := record.read(_CHUNK_NBYTES):
                if info.compress_type == zipfile.ZIP_STORED:
                    done += len(chunk)
                progress(done)
    except _NOT_READABLE as error:
        is_crc = isinstance(error, zipfile.BadZipFile) and "CRC" in str(error)
        return "checksum mismatch" if is_crc else f"cannot be read: {error}"
    return None


def _record_name(info: zipfile.ZipInfo) -> str:
    return info.filename.partition("/")[2]


def _damage(path: str, info: zipfile.ZipInfo, detail: str) -> Damage:
    return Damage(
        path=path,
        record=_record_name(info),
        tensors=(),
        offset=info.header_offset,
        nbytes=info.compress_size,
        expected=info.CRC,
        found=None,
        detail=detail,
    )
