"""What is in a checkpoint: checked before it is saved, read back, and told from what others have written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fastckpt._archive.load import load
from fastckpt.errors import FormatError

from .parts import STATE_KEYS
from .plain import refuse_unloadable

# What every checkpoint of a manager has; the other keys may be missing.
_NEEDED = ("epoch", "global_step", "model_state_dict")
#: What other scripts may call by names of their own, and what it is called here.
KEYS = {
    **STATE_KEYS,
    "rng": "rng_states",
    **{
        key: key
        for key in (
            *("epoch", "global_step", "best_metric", "metrics", "metrics_history"),
            *("config", "model_config", "extra_state", "timestamp"),
        )
    },
}
_ALIASES = {
    "step": "global_step",
    "rng_states": "rng",
    **{key: what for what, key in STATE_KEYS.items()},
}


def check_contents(contents: dict[str, Any]) -> None:
    """Raise TypeError, naming the key, where plain torch.load would refuse what is to be saved."""
    for key, value in contents.items():
        refuse_unloadable(value, key)


def read_contents(path: str, key_map: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Read a checkpoint of a manager into host memory, every byte checked.

    Args:
        path: The file.
        key_map: Where another script's file has the parts: `{"model": "net", "optimizer": "opt"}`; a name
            with dots leads into dicts. What is not named is not taken.

    Raises:
        OSError: It cannot be read.
        CheckpointError: It is damaged, not a checkpoint of a manager, or lacks a key of `key_map`.
        UnsafePickleError: It holds what weights_only=True does not allow.
        ValueError: `key_map` has a name that is not known.
    """
    keys = None if key_map is None else checked_key_map(key_map)
    return as_managers(read_any(path), path, keys)


def read_any(path: str) -> Any:
    """Read what a file holds into host memory, every byte checked, whoever wrote it."""
    return load(path, map_location="cpu", weights_only=True)


def as_managers(contents: Any, path: str, keys: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return what a file holds under the keys of a manager's checkpoint.

    Args:
        contents: What the file holds.
        path: The file, for messages.
        keys: What `checked_key_map` returns; None where the file has the keys of a manager's.

    Raises:
        FormatError: It is not a checkpoint of a manager, or lacks a key. Nothing says that it is damaged.
    """
    if keys is not None:
        return _renamed(contents, keys, path)
    check_is_managers(contents, path)
    assert isinstance(contents, dict)
    return contents


def checked_key_map(key_map: Mapping[str, str]) -> dict[str, str]:
    """Return the names in the file by the keys that they stand for here."""
    if not isinstance(key_map, Mapping):
        raise TypeError(f"key_map must be a dict such as {{'model': 'net'}}, not {key_map!r}")
    keys: dict[str, str] = {}
    for what, name in key_map.items():
        known = _ALIASES.get(what, what)
        if known not in KEYS:
            raise ValueError(f"key_map has no part {what!r}: choose from {', '.join(KEYS)}")
        if not isinstance(name, str):
            raise TypeError(
                f"key_map[{what!r}] must be the name of a key in the file, not {name!r}"
            )
        keys[KEYS[known]] = name
    if STATE_KEYS["model"] not in keys:
        raise ValueError("key_map must say where the model is: key_map={'model': 'net'}")
    return keys


def check_is_managers(contents: Any, path: str | os.PathLike[str]) -> None:
    """Raise FormatError where an object is not what a manager saves."""
    path = os.fspath(path)
    if not isinstance(contents, dict):
        raise FormatError(
            f"{path} is not a checkpoint of a CheckpointManager: it holds a "
            f"{type(contents).__name__}, not a dict",
            path=path,
        )
    missing = [key for key in _NEEDED if key not in contents]
    if missing:
        raise FormatError(
            f"{path} is not a checkpoint of a CheckpointManager: it has no "
            f"{' and no '.join(map(repr, missing))}; it has {_listed(contents)}. Where another script "
            "wrote it, key_map says which of these are the model and the optimizer",
            path=path,
        )
    if type(contents["epoch"]) is not int or type(contents["global_step"]) is not int:
        raise FormatError(
            f"{path} is not a checkpoint of a CheckpointManager: its epoch is "
            f"{contents['epoch']!r} and its step {contents['global_step']!r}",
            path=path,
        )


def _renamed(contents: Any, keys: Mapping[str, str], path: str) -> dict[str, Any]:
    """Take what the map names, under the keys of a manager's checkpoint."""
    found: dict[str, Any] = {}
    for key, name in keys.items():
        value = contents
        for part in (
            [name] if isinstance(contents, Mapping) and name in contents else name.split(".")
        ):
            if not isinstance(value, Mapping) or part not in value:
                there = f"{_listed(value)}" if isinstance(value, Mapping) else type(value).__name__
                raise FormatError(
                    f"{path} has no key {name!r}, which key_map names; it has {there}", path=path
                )
            value = value[part]
        found[key] = value
    return found


def _listed(contents: Mapping[Any, Any]) -> str:
    return ", ".join(map(repr, list(contents)[:20])) or "nothing"
