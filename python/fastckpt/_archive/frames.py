"""Storages without their bytes: for the meta device, under a FakeTensorMode, in skip_data."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.dlpack import from_dlpack

from fastckpt._native import Archive

from .placement import MapLocation, is_meta, restore_location
from .unpickling import StorageRequest, missing_record

Fetch = Callable[[StorageRequest], Any]


def is_faking() -> bool:
    """Whether torch.load would make tensors without data in the mode that is active."""
    return _is_fake() or torch.serialization._serialization_tls.skip_data


def fetch_frames(
    archive: Archive, map_location: MapLocation, *, is_legacy: bool = False
) -> Fetch | None:
    """Return the function that makes storages without reading payloads; None if payloads are read.

    The storages are those of torch.load (`torch.serialization._load` and `_legacy_load`, torch 2.6
    to 2.15): those of a file of torch before 1.6 do not fake the device that they were on.
    """
    is_fake = _is_fake()
    if is_meta(map_location) or (is_fake and is_legacy):
        return lambda request: meta_storage(archive, request.key, request.nbytes)
    if is_fake:
        return lambda request: _fake_storage(archive, request)
    if torch.serialization._serialization_tls.skip_data:
        restore = restore_location(map_location)
        return lambda request: restore(_unfilled_storage(request.nbytes), request.location)
    return None


def meta_storage(archive: Archive, key: str, nbytes: int) -> torch.UntypedStorage:
    """Make a storage on the meta device that knows where its payload lies in the file."""
    storage = torch.UntypedStorage(nbytes, device="meta")
    name = f"data/{key}"
    try:
        # For those who read it on their own (torch 2.7).
        storage._checkpoint_offset = archive.record_offset(name)
    except KeyError as error:
        raise missing_record(archive.path, key) from error
    return storage


def _is_fake() -> bool:
    return torch._guards.detect_fake_mode(None) is not None


def _fake_storage(archive: Archive, request: StorageRequest) -> torch.UntypedStorage:
    storage = meta_storage(archive, request.key, request.nbytes)
    storage._fake_device = request.location  # type: ignore[assignment]
    return storage


def _unfilled_storage(nbytes: int) -> torch.UntypedStorage:
    """Make a storage for the caller to fill; a pickle cannot make it larger."""
    return from_dlpack(torch.empty(nbytes, dtype=torch.uint8, device="cpu")).untyped_storage()
