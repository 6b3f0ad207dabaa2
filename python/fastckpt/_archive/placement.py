"""Where the storages of a file go: torch.load's `map_location`.

A file says where each storage lived ("cpu", "cuda:0"). torch.load reads a storage into host memory
and then moves it. To read straight to where it belongs, the device must be known before: `decide` works
it out from the locations alone, if that is possible.
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch.serialization import default_restore_location

# A function takes a storage on the CPU and its location, and returns a storage or None.
MapLocation: TypeAlias = Callable[[Any, str], Any] | torch.device | str | dict[str, str] | None
Restore: TypeAlias = Callable[[Any, str], Any]


def is_meta(map_location: MapLocation) -> bool:
    """Whether everything goes to the meta device, so that no payload is needed.

    A dict or a function may send single storages there; that is known only storage by storage.
    """
    if isinstance(map_location, torch.device):
        return map_location.type == "meta"
    return isinstance(map_location, str) and map_location == "meta"


def restore_location(map_location: MapLocation) -> Restore:
    """Return the function that moves a host storage, given the location that the file names.

    When called it raises, as torch.load does, if a device is unknown or not available.
    """
    if map_location is None:
        return default_restore_location
    if isinstance(map_location, dict):
        return partial(_restore_mapped, map_location)
    if isinstance(map_location, torch.device):
        return partial(_restore_at, str(map_location))
    if isinstance(map_location, (str, bytes)):
        return partial(_restore_at, map_location)
    return partial(_restore_called, map_location)


def decide(locations: Iterable[str], map_location: MapLocation) -> dict[str, torch.device] | None:
    """Work out the device for each location, without a storage at hand.

    Args:
        locations: The locations that the file names.
        map_location: torch.load's argument.

    Returns:
        Device of each location; None if a function of the user's has to see the storages
        themselves: a callable `map_location`, or a deserialiser that was registered with
        torch.serialization.register_package.

    Raises:
        RuntimeError: A device is unknown or not available, in torch.load's words.
    """
    if callable(map_location) or not _only_torch_packages():
        return None
    restore = restore_location(map_location)
    # torch's own deserialisers look at the location and move the storage: moving an empty one
    # tells where to, and checks that the device is there.
    return {
        location: restore(torch.UntypedStorage(0), location).device for location in set(locations)
    }


def _only_torch_packages() -> bool:
    """Whether every registered deserialiser is one of torch's own."""
    for _, _, deserialize in torch.serialization._package_registry:
        function = deserialize.func if isinstance(deserialize, partial) else deserialize
        if getattr(function, "__module__", None) != "torch.serialization":
            return False
    return True


def _restore_at(target: Any, storage: torch.UntypedStorage, location: str) -> Any:
    return default_restore_location(storage, target)


def _restore_mapped(mapping: dict[str, str], storage: torch.UntypedStorage, location: str) -> Any:
    return default_restore_location(storage, mapping.get(location, location))


def _restore_called(function: Restore, storage: torch.UntypedStorage, location: str) -> Any:
    result = function(storage, location)
    return default_restore_location(storage, location) if result is None else result
