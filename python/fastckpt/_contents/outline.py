"""What a .pt file holds, read without its tensors and without torch.

An outline is the saved object itself, with a `TensorInfo` in the place of each tensor, a `StorageInfo` in
the place of each bare storage, an `ArrayInfo` in the place of each array of numpy, and an `Opaque` in the
place of whatever else is not Python's own. A scalar of numpy is the number that it is equal to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastckpt._native import Archive, Graph, Opaque, TensorInfo

from .paths import KEYS_MAX, dotted, key_text

_Path = str | os.PathLike[str]

# What is looked into; everything else is a leaf.
_CONTAINERS = (dict, list, tuple, set, Opaque)


@dataclass(frozen=True)
class Outline:
    """What a file holds.

    Attributes:
        archive: The open file; tensors can be read from it.
        graph: What data.pkl describes.
        root: The saved object.
    """

    archive: Archive
    graph: Graph
    root: Any

    def named_tensors(self) -> dict[str, TensorInfo]:
        """Return the tensors under the paths of keys that lead to them, e.g. "model.wte.weight".

        A tensor that stands in several places has several names. Where two paths read the same, the
        later one gets a number behind it, so that none is lost.
        """
        return name_tensors(self.root)


def read_outline(path: _Path, *, verify: bool = True) -> Outline:
    """Read what a .pt file holds; of its records only data.pkl and those of a few bytes.

    Raises:
        OSError: The file cannot be read.
        FormatError: It is damaged, or not a .pt file.
        ChecksumError: data.pkl has changed since it was written.
        UnsafePickleError: Its pickle has what the decoder does not know, or nests too deeply.
    """
    archive = Archive.open(path)
    graph = archive.decode(verify=verify)
    return Outline(archive, graph, graph.outline())


def name_tensors(root: Any) -> dict[str, TensorInfo]:
    """Return all tensors below an object of an outline; see `Outline.named_tensors`."""
    named: dict[str, TensorInfo] = {}
    numbers: dict[str, int] = {}
    for keys, leaf in walk(root):
        if isinstance(leaf, TensorInfo):
            named[free_name(dotted(keys) or "<root>", named, numbers)] = leaf
    return named


def free_name(name: str, taken: Mapping[str, object], numbers: dict[str, int]) -> str:
    """Return the name, with a number where it is taken; `numbers` are the last ones given."""
    free = name
    while free in taken:
        # Each name goes on where it stopped: a file may have a million tensors of one name.
        numbers[name] = numbers.get(name, 1) + 1
        free = f"{name}#{numbers[name]}"
    return free


def walk(
    root: Any, *, is_leaf: Callable[[Any], bool] | None = None
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield everything that is not a container, with the keys that lead to it, in the order saved.

    Of very many keys the first are yielded: those that a name has room for. A container that stands in
    several places is looked into once: a file could nest them without end.

    Args:
        root: An object of an outline.
        is_leaf: What else is yielded as it is, and not looked into.
    """
    seen: set[int] = set()
    # What is left of each container on the way down, and how many keys lead to it: the paths of all
    # items at once could take far more memory than the file.
    ways: list[tuple[int, Iterator[tuple[tuple[str, ...], Any]]]] = [(0, iter([((), root)]))]
    keys: list[str] = []
    while ways:
        depth, parts = ways[-1]
        step = next(parts, None)
        if step is None:
            ways.pop()
            continue
        key, value = step
        keys[depth:] = key
        if not isinstance(value, _CONTAINERS) or (is_leaf is not None and is_leaf(value)):
            yield tuple(keys[:KEYS_MAX]), value
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Opaque):
            yield tuple(keys[:KEYS_MAX]), value
        ways.append((len(keys), _parts(value)))


def _parts(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield (key_text(key),), part
    elif isinstance(value, Opaque):
        # What a call is made with is known by the name of the result.
        for part in value.parts:
            yield (), part
    else:
        for position, part in enumerate(value):
            yield (str(position),), part
