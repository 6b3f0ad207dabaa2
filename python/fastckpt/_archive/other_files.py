"""Files that are not archives of torch.save: older formats, TorchScript, safetensors.

They have no checksums that a load compares: `verify=True` warns about that, and "require" refuses them.
With `weights_only=True` torch.load never gets them. It would look at the file again, and might find
another format than the one that was seen here.
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch

from fastckpt._contents.opening import Kind, Source
from fastckpt.errors import ChecksumError, FormatError, MissingChecksumWarning, UnsafePickleError

from .load_job import LoadJob
from .placement import MapLocation
from .unpickling import refusal

_Verify = bool | Literal["require"]

_WHY_UNCHECKED = {
    Kind.LEGACY: "is a file of torch before 1.6, a format without checksums",
    Kind.TAR: "is a tar file of torch before 0.2, a format without checksums",
    Kind.SAFETENSORS: "is a safetensors file, a format without checksums",
    Kind.ZIP: "is a TorchScript archive, whose checksums torch.jit.load does not compare",
}
# torch.load's words.
_REFUSED = {
    Kind.TAR: "Cannot use ``weights_only=True`` with files saved in the legacy .tar format. ",
    Kind.ZIP: (
        "Cannot use ``weights_only=True`` with TorchScript archives passed to ``torch.load``. "
    ),
}


def load_legacy(
    source: Source,
    f: Any,
    map_location: MapLocation,
    *,
    weights_only: bool,
    mmap: bool,
    verify: _Verify,
    threads: int | None,
    progress: Callable[[int, int], None] | None,
) -> Any:
    """Load the object of a file of torch before 1.6; for arguments and errors see `load`."""
    _refuse_mmap(f, mmap=mmap)
    try:
        legacy = source.legacy()
    except UnsafePickleError as error:
        if weights_only:
            raise UnsafePickleError(refusal(source.name, str(error)), path=source.name) from error
        # Only executing it tells what it holds, and the caller allows that.
        legacy = None
    _say_unchecked(source, verify)
    if legacy is None:
        return torch.load(f, map_location, weights_only=False, mmap=False)
    job = LoadJob(
        legacy.archive,
        map_location,
        weights_only,
        mmap=False,
        verify=False,
        threads=threads,
        progress=progress,
        legacy=legacy.graph,
    )
    return job.run()


def load_by_torch(
    source: Source,
    f: Any,
    map_location: MapLocation,
    *,
    weights_only: bool,
    mmap: bool,
    verify: _Verify,
) -> Any:
    """Load a safetensors file, or with ``weights_only=False`` one of TorchScript or tar."""
    if source.kind is Kind.SAFETENSORS:
        _say_unchecked(source, verify)
        return _load_safetensors(f, map_location)
    if source.kind is Kind.TAR:
        _refuse_mmap(f, mmap=mmap)
    if weights_only:
        advice: str = getattr(torch.serialization, "UNSAFE_MESSAGE", "")
        raise RuntimeError(_REFUSED[source.kind] + advice)
    _say_unchecked(source, verify)
    return torch.load(f, map_location, weights_only=False, mmap=mmap)


def _load_safetensors(f: str | os.PathLike[str], map_location: MapLocation) -> Any:
    """Do what torch.load (2.15) does with such a name; older ones take the file for a pickle."""
    if isinstance(map_location, dict) or callable(map_location):
        what = "dict" if isinstance(map_location, dict) else "callable"
        raise RuntimeError(  # noqa: TRY004 - torch.load's class
            f"Loading safetensors file with {what} map_location is not supported. "
            "Use a device string or torch.device instead."
        )
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise RuntimeError(
            "Attempting to load a safetensors file but safetensors is not installed. "
            "Please install safetensors with: pip install safetensors"
        ) from error
    path = os.fspath(f)
    try:
        return load_file(path, device="cpu" if map_location is None else str(map_location))
    except SafetensorError as error:
        raise FormatError(
            f"{path} is not a safetensors file, or is damaged: {error}", path=path
        ) from error


def _refuse_mmap(f: Any, *, mmap: bool) -> None:
    """Raise torch.load's error: these files cannot be mapped, since their storages are not aligned."""
    if mmap:
        name = f"{f}, " if isinstance(f, str) else ""
        raise RuntimeError(
            f"mmap can only be used with files saved with `torch.save({name}"
            "_use_new_zipfile_serialization=True), please torch.save your checkpoint with this "
            "option in order to use mmap."
        )


def _say_unchecked(source: Source, verify: _Verify) -> None:
    if not verify:
        return
    message = f"{source.name} {_WHY_UNCHECKED[source.kind]}, so damage to it cannot be found"
    if verify == "require":
        raise ChecksumError(
            f"{message}. verify=True loads it all the same; saving it again with fastckpt.save "
            "adds checksums.",
            path=source.name,
        )
    warnings.warn(
        f"{message}. Save it again with fastckpt.save to add checksums.",
        MissingChecksumWarning,
        stacklevel=4,
    )
