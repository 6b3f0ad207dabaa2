"""Read an object from a .pt file: the counterpart of torch.load."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import IO, Any, Literal

from fastckpt._contents.opening import Kind, is_path, open_source
from fastckpt._native import Archive
from fastckpt.errors import ChecksumError, FormatError, MissingChecksumWarning, TorchScriptError

from .configuration import configured_mmap
from .frames import is_faking
from .load_job import LoadJob
from .other_files import load_by_torch, load_legacy
from .placement import MapLocation, is_meta

_TRUE = ("1", "y", "yes", "true")


def load(
    f: str | os.PathLike[str] | IO[bytes],
    map_location: MapLocation = None,
    *,
    weights_only: bool | None = True,
    mmap: bool | None = None,
    verify: bool | Literal["require"] = True,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Load a file of torch.save or fastckpt.save, and check every byte of it.

    Returns what torch.load returns for the same arguments. By default it takes more kinds of data
    than torch.load, and runs none of it: also arrays, scalars and dtypes of numpy, of numbers and
    bools. Each record is read once, in parallel, into private memory. Its CRC-32 is compared with
    the one that was stored when it was saved; torch.load never does that. With ``mmap=True`` the
    tensors lie in a private (copy-on-write) mapping of the file instead: training on them changes
    neither the file nor other processes, but the file must not be truncated or written in place
    while they live. ``torch.serialization.set_default_mmap_options(MAP_SHARED)`` has no effect.

    Files of torch before 1.6 have no checksums. Their pickles are checked like any other, and their
    sizes are compared with the file. TorchScript archives and tar files (torch before 0.2) are
    refused; with ``weights_only=False`` torch.load gets them. ``.safetensors`` files are loaded by
    safetensors, as torch.load does. Under a FakeTensorMode and inside
    ``torch.serialization.skip_data`` no payload is read, and so none is checked.

    Args:
        f: A path, or a binary file object that can seek, where the archive begins at the current
            position. Its position afterwards is not defined.
        map_location: As for torch.load: None, device, string, dict or function. "meta" reads no
            payload. Storages on CUDA are read through pinned buffers, never as a whole copy in
            host memory, unless a function has to see them.
        weights_only: True, the default, builds tensors, plain containers, numbers of numpy and
            what ``torch.serialization.add_safe_globals`` allows. It refuses everything else, and
            the environment does not weaken it. False executes whatever the file asks for, unless
            TORCH_FORCE_WEIGHTS_ONLY_LOAD is set. None means that the caller has no opinion:
            True, unless TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set.
        mmap: Whether to map the file [default: ``torch.utils.serialization.config.load.mmap``].
        verify: Whether to check CRCs. If the file has none (its writer stored none, or its format
            has none), True warns with `MissingChecksumWarning`, and "require" raises.
            With False and ``mmap=True``, bytes are read when they are first used.
        threads: Number of threads that read [default: automatic].
        progress: Called with bytes done and bytes in all, in the calling thread. What it raises
            ends the load and is raised from here.

    Returns:
        The object; its storages are shared where they were shared when it was saved.

    Raises:
        FileNotFoundError, OSError: The file cannot be opened or read.
        ChecksumError: Bytes have changed since they were written; names the tensors.
        FormatError: The file is not a checkpoint, or is damaged.
        UnsafePickleError: ``weights_only=True`` does not allow what is in the file. The load is
            never tried again with False.
        ImportError: The file holds numbers of numpy, and numpy is not installed.
        RuntimeError: `map_location` names a device that is not available (in torch.load's words).
        ValueError: ``mmap=True`` with a file object, or an argument out of its range.

    The elements of a file of another byte order are swapped, as torch does. Storages whose dtype the
    file does not record (uint16, float8...) are refused; torch would return them in the wrong order.

    Example:
        >>> import fastckpt, torch
        >>> fastckpt.save({"weight": torch.zeros(2, 3)}, "example.pt")
        >>> fastckpt.load("example.pt", map_location="cpu")["weight"].shape
        torch.Size([2, 3])
    """
    weights_only = _weights_only(weights_only)
    mmap = configured_mmap() if mmap is None else mmap
    _check_arguments(verify, threads)
    with open_source(f) as source:
        if source.kind is Kind.LEGACY:
            return load_legacy(
                source,
                f,
                map_location,
                weights_only=weights_only,
                mmap=mmap,
                verify=verify,
                threads=threads,
                progress=progress,
            )
        try:
            archive = source.archive() if source.kind is Kind.ZIP else None
        except TorchScriptError:
            archive = None
    if archive is None or archive.kind == "torchscript":
        return load_by_torch(
            source, f, map_location, weights_only=weights_only, mmap=mmap, verify=verify
        )
    if mmap and not is_path(f):
        raise ValueError("f must be a file path in order to use the mmap argument")
    return load_archive(
        archive,
        map_location,
        weights_only=weights_only,
        mmap=mmap,
        verify=verify,
        threads=threads,
        progress=progress,
    )


def load_archive(
    archive: Archive,
    map_location: MapLocation = None,
    *,
    weights_only: bool = True,
    mmap: bool = False,
    verify: bool | Literal["require"] = True,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Load the object of an open archive; for arguments and errors see `load`."""
    if archive.kind == "other":
        raise FormatError(
            f"{archive.path} is a zip archive without a data.pkl, and not a file of torch.save. "
            "If it is a .pt2 or torch.package archive, load it with torch.export.load or "
            "torch.package.PackageImporter.",
            path=archive.path,
        )
    if not is_meta(map_location) and not is_faking():
        look_for_checksums(archive, verify)
    job = LoadJob(archive, map_location, weights_only, mmap, bool(verify), threads, progress)
    return job.run()


def look_for_checksums(archive: Archive, verify: bool | Literal["require"]) -> None:
    """Warn about a file without checksums, or refuse it."""
    if not verify or archive.checksums == "all":
        return
    message = (
        f"{archive.path} has no checksums for its tensors (its writer switched them off: "
        "set_crc32_options(False) or skip_data), so damage to them cannot be found"
    )
    if verify == "require":
        raise ChecksumError(
            f"{message}. verify=True loads it all the same; saving it again with fastckpt.save "
            "adds them.",
            path=archive.path,
        )
    warnings.warn(f"{message}. Save it again to add them.", MissingChecksumWarning, stacklevel=4)


def _weights_only(weights_only: bool | None) -> bool:
    """Settle `weights_only` with torch's two environment variables."""
    force = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0").lower() in _TRUE
    force_no = os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0").lower() in _TRUE
    if force and force_no:
        raise RuntimeError(
            "Only one of `TORCH_FORCE_WEIGHTS_ONLY_LOAD` or `TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD` "
            "should be set, but both were set."
        )
    if force:
        return True
    if weights_only is None:
        return not force_no
    return weights_only


def _check_arguments(verify: bool | Literal["require"], threads: int | None) -> None:
    if verify not in (True, False, "require"):
        raise ValueError(f"verify must be True, False or 'require', not {verify!r}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, or None to choose, not {threads}")
