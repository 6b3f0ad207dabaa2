"""Average the models of several checkpoints, tensor by tensor, without holding one of them.

The elements are summed in float64 by the core and rounded once. What the inputs hold is known from
their outlines; only the records of the model's state dict are read.
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import errno
import math
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastckpt._archive.byte_order import refuse_foreign_byte_order
from fastckpt._archive.configuration import DEFAULT_ALIGNMENT
from fastckpt._archive.pickling import pickle_object
from fastckpt._archive.unpickling import host_storage
from fastckpt._contents.outline import read_outline, walk
from fastckpt._contents.state_dicts import find_state_dict
from fastckpt._native import (
    Archive,
    Commit,
    Opaque,
    TensorInfo,
    archive_nbytes,
    arithmetic,
    average,
)
from fastckpt.errors import FormatError, MissingChecksumWarning

_Path = str | os.PathLike[str]
_Progress = Callable[[int, int], None]
# (key of the storage, offset, shape, strides), as the core wants it.
_Place = tuple[str, int, tuple[int, ...], tuple[int, ...]]

# No file is larger.
_NBYTES_MAX = 2**63 - 1
# As many names as a message can hold.
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class AverageReport:
    """What `average_files` wrote.

    Attributes:
        path: The new file.
        checkpoints: The files that were averaged, in order.
        weights: Their shares, which add up to 1.
        tensors: Names in the new state dict.
        averaged: Those of them that are means; all others are from the last file.
        nbytes: Size of the new file in bytes.
        unchecked: Files whose writer stored no checksums: their bytes were taken as they are.
    """

    path: str
    checkpoints: tuple[str, ...]
    weights: tuple[float, ...]
    tensors: int
    averaged: int
    nbytes: int
    unchecked: tuple[str, ...]


def average_checkpoints(
    checkpoints: Sequence[_Path],
    model: torch.nn.Module | None = None,
    *,
    weights: Sequence[float] | None = None,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> dict[str, torch.Tensor]:
    """Average the models of several checkpoints in memory.

    Of each checkpoint the model's state dict is taken: the saved object itself where all its values
    are tensors, else what it holds under "model_state_dict", "model_state", "state_dict" or "model".

    Floating and complex tensors become the weighted mean of their elements: summed in float64 in the
    order of the checkpoints, divided by the sum of the weights, rounded once to their dtype. Integer
    and bool tensors, and extra state, are those of the last checkpoint. Memory is taken for the
    result, and for pieces of what it is made of.

    Args:
        checkpoints: The .pt files, one at least. They are only read; each record that is read is
            compared with its CRC-32.
        model: Where to load the result to, strictly, if given.
        weights: A finite number for each checkpoint, which need not add up to 1. None means all the
            same. A checkpoint of weight 0 has no part in the means.
        threads: Number of threads; None chooses.
        progress: Called with bytes done and bytes in all of the result, in the calling thread. What
            it raises ends the work.

    Returns:
        The state dict, in the order of the first checkpoint. Tensors are on the CPU, are no
        parameters, and share memory where they do in all the checkpoints.

    Raises:
        ValueError: The checkpoints have different keys, shapes or dtypes, which the message names, or
            the weights cannot be used.
        FormatError: A file is no checkpoint, holds no state dict, or tensors that have no mean
            (sparse, quantized).
        ChecksumError: A record is not what was written; the message names the tensor.
        OSError: A file cannot be read.

    Of a file whose writer stored no checksums, a `MissingChecksumWarning` says so.

    Example:
        >>> import fastckpt, torch
        >>> for step in (1, 2):
        ...     fastckpt.save({"w": torch.full((2,), float(step))}, f"/tmp/average_{step}.pt")
        >>> average_checkpoints(["/tmp/average_1.pt", "/tmp/average_2.pt"])["w"]
        tensor([1.5000, 1.5000])
    """
    plan = _Plan(checkpoints, weights)
    for path in plan.unchecked:
        message = f"{path} has no checksums: its bytes are averaged unchecked"
        warnings.warn(message, MissingChecksumWarning, stacklevel=2)
    spans = average(plan.archives, plan.weights, plan.tensors(), threads=threads, progress=progress)
    storages = [
        host_storage(span, nbytes)
        for span, nbytes in zip(spans, plan.storage_nbytes(), strict=True)
    ]
    state = plan.build(storages)
    if model is not None:
        model.load_state_dict(state)
    return state


def average_files(
    checkpoints: Sequence[_Path],
    to: _Path,
    *,
    weights: Sequence[float] | None = None,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> AverageReport:
    """Average the models of several checkpoints into a new file, a piece of one tensor at a time.

    The same as `average_checkpoints`, but the result is never in memory: its bytes are computed when
    they are written. The new file is a plain state dict that torch.load reads. It becomes visible
    when it is whole, durable, and everything that it was made of has been compared with its CRC-32;
    a crash, a kill or an error before that leaves at most a temporary file, which a later save
    removes.

    Args:
        checkpoints: As for `average_checkpoints`.
        to: The new file. There must be nothing there yet.
        weights: As for `average_checkpoints`.
        threads: Number of threads; None chooses. Each takes up to 18 MB of memory.
        progress: As for `average_checkpoints`.

    Returns:
        What was written.

    Raises:
        FileExistsError: There is something at `to`.
        ValueError, FormatError, ChecksumError, OSError: As for `average_checkpoints`; OSError also
            where the new file cannot be written.

    Example:
        >>> import fastckpt
        >>> report = average_files(["step_1.pt", "step_2.pt"], "mean.pt")  # doctest: +SKIP
    """
    target = os.fspath(to)
    _refuse_existing(target)
    plan = _Plan(checkpoints, weights)
    sizes = plan.storage_nbytes()
    with Commit() as commit:
        # Before memory is reserved for what a file merely claims.
        commit.require_space(os.path.dirname(target), min(sum(sizes), _NBYTES_MAX))
        # Never touched, so never in memory: only their sizes are pickled.
        placeholders = [torch.UntypedStorage(nbytes, device="cpu") for nbytes in sizes]
        pickled = pickle_object(plan.build(placeholders))
        order = _order(pickled.storages, placeholders)
        tensors = plan.tensors()
        nbytes = archive_nbytes(
            target,
            len(pickled.data),
            [sizes[number] for number in order],
            alignment=DEFAULT_ALIGNMENT,
        )
        commit.require_space(os.path.dirname(target), nbytes)
        written = commit.write_average(
            target,
            pickled.data,
            plan.archives,
            plan.weights,
            [tensors[number] for number in order],
            threads=threads,
            progress=progress,
        )
        # Somebody may have been faster.
        _refuse_existing(target)
        commit.publish([target])
    total = math.fsum(plan.weights)
    return AverageReport(
        path=target,
        checkpoints=tuple(plan.paths),
        weights=tuple(weight / total for weight in plan.weights),
        tensors=len(plan.names),
        averaged=plan.averaged,
        nbytes=written.nbytes,
        unchecked=plan.unchecked,
    )


@dataclass(frozen=True)
class _View:
    """A tensor of the result, in a storage of the result."""

    storage: int
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class _Plan:
    """What is averaged with what, and what becomes of it.

    A storage that looks the same in all the checkpoints is averaged as it is, and its tensors view the
    result as they did. All others are averaged tensor by tensor, into storages of their own.
    """

    def __init__(self, checkpoints: Sequence[_Path], weights: Sequence[float] | None) -> None:
        if isinstance(checkpoints, (str, os.PathLike)):
            raise TypeError("checkpoints must be a sequence of paths, not one path")
        self.paths = [os.fspath(path) for path in checkpoints]
        if not self.paths:
            raise ValueError("there is nothing to average: name one checkpoint at least")
        self.weights = _checked_weights(weights, self.paths)
        self.archives: list[Archive] = []
        states = []
        for path in self.paths:
            archive, state = _read_state(path)
            self.archives.append(archive)
            states.append(state)
        _refuse_differences(self.paths, states)
        self._extra = _extra_of(states[-1], self.paths[-1])
        self.names = [name for name in states[0] if isinstance(states[0][name], TensorInfo)]
        self._order = list(states[0])
        self._states = states
        self._storages: list[tuple[str, int, list[_Place]]] = []
        self._views: dict[str, _View] = {}
        self.unchecked = tuple(
            path
            for path, archive in zip(self.paths, self.archives, strict=True)
            if archive.checksums != "all"
        )
        self._place_all()
        _refuse_opaque(self._first(), self.paths[0])
        self.averaged = sum(arithmetic(info.dtype) == "floating" for info in self._first().values())

    def tensors(self) -> list[tuple[str, list[_Place]]]:
        """Return what the core is to average: a dtype and a place in each checkpoint."""
        return [(dtype, places) for dtype, _, places in self._storages]

    def storage_nbytes(self) -> list[int]:
        """Return the sizes of the results in bytes."""
        return [nbytes for _, nbytes, _ in self._storages]

    def build(self, storages: Sequence[torch.UntypedStorage]) -> dict[str, torch.Tensor]:
        """Make the state dict over storages that hold the results."""
        state: dict[str, Any] = OrderedDict()
        tensors: dict[_View, torch.Tensor] = {}
        for name in self._order:
            view = self._views.get(name)
            if view is None:
                state[name] = self._extra[name]
                continue
            if view not in tensors:
                tensors[view] = _tensor_over(storages[view.storage], view)
            state[name] = tensors[view]
        return state

    def _first(self) -> dict[str, TensorInfo]:
        return _tensors_of(self._states[0])

    def _place_all(self) -> None:
        groups: dict[tuple[str, ...], list[str]] = {}
        for name in self.names:
            groups.setdefault(tuple(state[name].key for state in self._states), []).append(name)
        keys_used = [
            {key: sum(keys[number] == key for keys in groups) for key in set(column)}
            for number, column in enumerate(zip(*groups, strict=True))
        ]
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
        for name in names:
            info = self._states[0][name]
            offset, shape, stride = _view_of(info)
            self._views[name] = _View(len(self._storages), info.dtype, shape, stride, offset)
        self._storages.append((first.dtype, first.storage_nbytes, places))

    def _take_apart(self, names: Sequence[str]) -> None:
        """Average tensor by tensor; those that are the same view in all the checkpoints stay one."""
        done: dict[tuple[Any, ...], _View] = {}
        for name in names:
            infos = [state[name] for state in self._states]
            same = (infos[0].dtype, *(_view_of(info) for info in infos))
            if same not in done:
                info = infos[0]
                places: list[_Place] = [(info.key, *_view_of(info)) for info in infos]
                done[same] = _View(
                    len(self._storages), info.dtype, info.shape, _contiguous(info.shape), 0
                )
                self._storages.append((info.dtype, info.nbytes, places))
            self._views[name] = done[same]


def _read_state(path: str) -> tuple[Archive, dict[str, Any]]:
    outline = read_outline(path)
    refuse_foreign_byte_order(outline.archive, path)
    _, state = find_state_dict(outline.root, path=path)
    for name, value in state.items():
        if not isinstance(name, str):
            raise FormatError(
                f"{path}: the state dict has the key {name!r}, and only strings are names",
                path=path,
            )
        if isinstance(value, Opaque) and not name.endswith("_extra_state"):
            raise FormatError(
                f"{path}: {name} is no plain tensor ({value.name}): sparse and quantized tensors "
                "and subclasses have no mean that could be streamed",
                path=path,
            )
    return outline.archive, state


def _tensors_of(state: dict[str, Any]) -> dict[str, TensorInfo]:
    return {name: value for name, value in state.items() if isinstance(value, TensorInfo)}


def _extra_of(state: dict[str, Any], path: str) -> dict[str, Any]:
    """Return what is no tensor, which has to be plain: it is written again."""
    extra = {name: value for name, value in state.items() if not isinstance(value, TensorInfo)}
    for name, value in extra.items():
        for _, leaf in walk(value):
            if isinstance(leaf, (Opaque, TensorInfo)):
                raise FormatError(
                    f"{path}: the extra state {name} is no plain value: it cannot be taken over",
                    path=path,
                )
    return extra


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


def _order(
    pickled: Iterable[torch.UntypedStorage], storages: Sequence[torch.UntypedStorage]
) -> list[int]:
    """Return which of our storages each pickled one is."""
    numbers = {storage._cdata: number for number, storage in enumerate(storages)}
    return [numbers[storage._cdata] for storage in pickled]


def _checked_weights(weights: Sequence[float] | None, paths: Sequence[str]) -> list[float]:
    if weights is None:
        return [1.0] * len(paths)
    checked = [float(weight) for weight in weights]
    if len(checked) != len(paths):
        raise ValueError(
            f"there are {len(paths)} checkpoints and {len(checked)} weights: one is needed for each"
        )
    if not all(map(math.isfinite, checked)):
        raise ValueError(f"weights must be finite numbers, not {checked}")
    total = 0.0
    for weight in checked:
        total += weight
    if total == 0.0 or not math.isfinite(total):
        raise ValueError(f"the weights {checked} add up to {total}: a mean cannot be divided by it")
    return checked


def _refuse_opaque(tensors: dict[str, TensorInfo], path: str) -> None:
    for name, info in tensors.items():
        if arithmetic(info.dtype) == "opaque":
            raise FormatError(
                f"{path}: {name} is {info.dtype}, of which there is no mean", path=path
            )


def _refuse_differences(paths: Sequence[str], states: Sequence[dict[str, Any]]) -> None:
    first = states[0]
    for path, state in zip(paths[1:], states[1:], strict=True):
        shared = [(name, first[name], state[name]) for name in first if name in state]
        pairs = [
            (name, a, b)
            for name, a, b in shared
            if isinstance(a, TensorInfo) and isinstance(b, TensorInfo)
        ]
        problems = (
            _named("{} missing", [name for name in first if name not in state], "key"),
            _named("{} too many", [name for name in state if name not in first], "key"),
            _named(
                "{} of another shape",
                [
                    f"{name}: {list(a.shape)} and {list(b.shape)}"
                    for name, a, b in pairs
                    if a.shape != b.shape
                ],
                "tensor",
            ),
            _named(
                "{} of another dtype",
                [f"{name}: {a.dtype} and {b.dtype}" for name, a, b in pairs if a.dtype != b.dtype],
                "tensor",
            ),
            _named(
                "{} no tensor in both",
                [
                    name
                    for name, a, b in shared
                    if isinstance(a, TensorInfo) is not isinstance(b, TensorInfo)
                ],
                "value",
            ),
        )
        found = [problem for problem in problems if problem]
        if found:
            raise ValueError(f"{path} does not go with {paths[0]}: {'; '.join(found)}")


def _named(words: str, names: Sequence[str], noun: str) -> str:
    """Say how many there are, and name the first."""
    if not names:
        return ""
    count = f"{len(names)} {noun}" + ("" if len(names) == 1 else "s")
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{words.format(count)} ({shown}" + (f" and {more} more)" if more > 0 else ")")


def _refuse_existing(path: str) -> None:
    if os.path.lexists(path):
        message = "there is a file already: averages are only written to new ones"
        raise FileExistsError(errno.EEXIST, message, path)
