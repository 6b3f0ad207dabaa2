"""What is averaged with what, and over which storages the results lie."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import math
import os
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastckpt._archive.load_job import check_dtypes
from fastckpt._arguments import several_paths
from fastckpt._native import Archive, TensorInfo, arithmetic

from .inputs import (
    checked_weights,
    extra_of,
    input_file,
    read_state,
    refuse_differences,
    refuse_opaque,
    tensors_of,
)

_Path = str | os.PathLike[str]
# (key of the storage, offset, shape, strides), as the core wants it.
_Place = tuple[str, int, tuple[int, ...], tuple[int, ...]]
# Tensors that the checkpoints view differently are written dense, which may be this much more than the
# files have.
_INFLATION_NBYTES_MAX = 64 << 20


@dataclass(frozen=True)
class _View:
    """A tensor of the result, in a storage of the result."""

    storage: int
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class AveragePlan:
    """What is averaged with what, and what becomes of it.

    A storage that looks the same in all the checkpoints is averaged as it is, and its tensors view the
    result as they did. All others are averaged tensor by tensor, into storages of their own.
    """

    def __init__(
        self,
        paths: list[str],
        weights: list[float],
        archives: list[Archive],
        states: list[dict[str, Any]],
    ) -> None:
        self.paths = paths
        self.weights = weights
        self.archives = archives
        refuse_differences(self.paths, states)
        self._extra = extra_of(states[-1], self.paths[-1])
        self.names = [name for name in states[0] if isinstance(states[0][name], TensorInfo)]
        self._order = list(states[0])
        self._states = states
        self._storages: list[tuple[str, int, list[_Place]]] = []
        self._views: dict[str, _View] = {}
        self._apart_nbytes = 0
        self._files_nbytes = sum(archive.nbytes for archive in self.archives)
        self.unchecked = tuple(
            path
            for path, archive in zip(self.paths, self.archives, strict=True)
            if archive.checksums != "all"
        )
        self._place_all()
        refuse_opaque(self._first(), self.paths[0])
        check_dtypes(self.paths[0], (info.dtype for info in self._first().values()))
        self.averaged = sum(arithmetic(info.dtype) == "floating" for info in self._first().values())

    @classmethod
    def read(cls, checkpoints: Sequence[_Path], weights: Sequence[float] | None) -> AveragePlan:
        """Read the outlines of the checkpoints; their tensors are read when they are averaged."""
        paths = [input_file(path) for path in several_paths("checkpoints", checkpoints)]
        if not paths:
            raise ValueError("there is nothing to average: name at least one checkpoint")
        checked = checked_weights(weights, paths)
        archives, states = [], []
        for path in paths:
            archive, state = read_state(path)
            archives.append(archive)
            states.append(state)
        return cls(paths, checked, archives, states)

    def tensors(self) -> list[tuple[str, list[_Place]]]:
        """Return what the core is to average: a dtype and a place in each checkpoint."""
        return [(dtype, places) for dtype, _, places in self._storages]

    def storage_nbytes(self) -> list[int]:
        """Return the sizes of the results in bytes."""
        return [nbytes for _, nbytes, _ in self._storages]

    def build(self, storages: Sequence[torch.UntypedStorage]) -> dict[str, torch.Tensor]:
        """Make the state dict over storages that hold the results."""
        state: dict[str, Any] = OrderedDict()
        # By the view itself: the hash of numbers from a file may be that of any others.
        tensors: dict[int, torch.Tensor] = {}
        for name in self._order:
            view = self._views.get(name)
            if view is None:
                state[name] = self._extra[name]
                continue
            if id(view) not in tensors:
                tensors[id(view)] = _tensor_over(storages[view.storage], view)
            state[name] = tensors[id(view)]
        return state

    def _first(self) -> dict[str, TensorInfo]:
        return tensors_of(self._states[0])

    def _place_all(self) -> None:
        groups: dict[tuple[str, ...], list[str]] = {}
        for name in self.names:
            groups.setdefault(tuple(state[name].key for state in self._states), []).append(name)
        keys_used = [Counter(column) for column in zip(*groups, strict=True)]
        for keys, names in groups.items():
            is_apart = all(keys_used[number][key] == 1 for number, key in enumerate(keys))
            if is_apart and self._is_same_storage(names):
                self._keep_storage(keys, names)
            else:
                self._take_apart(names)

    def _is_same_storage(self, names: Sequence[str]) -> bool:
        """Whether these tensors, all there are of a storage, view it alike in all the checkpoints."""
        first = self._states[0][names[0]]
        if first.storage_nbytes % first.itemsize:
            return False
        return all(
            _view_of(state[name]) == _view_of(self._states[0][name])
            and state[name].storage_nbytes == first.storage_nbytes
            and state[name].dtype == first.dtype
            for state in self._states
            for name in names
        )

    def _keep_storage(self, keys: Sequence[str], names: Sequence[str]) -> None:
        first = self._states[0][names[0]]
        numel = first.storage_nbytes // first.itemsize
        places: list[_Place] = [(key, 0, (numel,), (1,)) for key in keys]
        views: dict[str, _View] = {}
        for name in names:
            info = self._states[0][name]
            offset, shape, stride = _view_of(info)
            view = _View(len(self._storages), info.dtype, shape, stride, offset)
            # Names of one view have one tensor.
            self._views[name] = views.setdefault(repr(view), view)
        self._storages.append((first.dtype, first.storage_nbytes, places))

    def _take_apart(self, names: Sequence[str]) -> None:
        """Average tensor by tensor; those that are the same view in all the checkpoints stay one."""
        done: dict[str, _View] = {}
        for name in names:
            infos = [state[name] for state in self._states]
            # A text: the hash of numbers from a file may be that of any others.
            same = repr((infos[0].dtype, *map(_view_of, infos)))
            if same not in done:
                done[same] = self._take_out(name, infos)
            self._views[name] = done[same]

    def _take_out(self, name: str, infos: Sequence[TensorInfo]) -> _View:
        """Average one tensor into a storage of its own; what all have expanded stays expanded."""
        shape, dtype = infos[0].shape, infos[0].dtype
        steps = zip(*(info.stride for info in infos), strict=True)
        distinct = tuple(
            length if any(strides) else min(length, 1)
            for length, strides in zip(shape, steps, strict=True)
        )
        nbytes = math.prod(distinct) * infos[0].itemsize
        self._refuse_inflation(name, nbytes)
        stride = tuple(
            step if length == kept else 0
            for step, length, kept in zip(_contiguous(distinct), shape, distinct, strict=True)
        )
        places: list[_Place] = [
            (info.key, info.storage_offset, distinct, info.stride) for info in infos
        ]
        self._storages.append((dtype, nbytes, places))
        return _View(len(self._storages) - 1, dtype, shape, stride, 0)

    def _refuse_inflation(self, name: str, nbytes: int) -> None:
        """Refuse tensors that take far more bytes than the files have: a few could ask for any number."""
        self._apart_nbytes += nbytes
        if self._apart_nbytes > self._files_nbytes + _INFLATION_NBYTES_MAX:
            raise ValueError(
                f"the checkpoints do not go together: {name} is expanded in one of them, or overlaps "
                "itself or others in memory, and not in the same way in all; its mean would take "
                f"{nbytes} bytes, and the checkpoints have {self._files_nbytes}. Save clones of these "
                "tensors."
            )


def _view_of(info: TensorInfo) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return info.storage_offset, info.shape, info.stride


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    stride, strides = 1, []
    for length in reversed(shape):
        strides.append(stride)
        stride *= max(length, 1)
    return tuple(reversed(strides))


def _tensor_over(storage: torch.UntypedStorage, view: _View) -> torch.Tensor:
    empty = torch.empty(0, dtype=getattr(torch, view.dtype), device="cpu")
    return empty.set_(storage, view.offset, view.shape, view.stride)
