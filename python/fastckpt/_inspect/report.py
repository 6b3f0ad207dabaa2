"""What `fastckpt.inspect` finds in one file: its tensors, their totals, and the plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from fastckpt._contents.plain_values import Value

Group = Literal["model", "optimizer", "other"]
#: In the order in which they are shown.
GROUPS: tuple[Group, ...] = ("model", "optimizer", "other")


@dataclass(frozen=True)
class TensorRow:
    """One tensor of a file.

    Attributes:
        name: The keys that lead to it, e.g. "model_state_dict.transformer.wte.weight".
        group: What it is part of.
        module: Which part of the group: the first part of its name in a model, the name of the state
            ("exp_avg") in an optimizer, the first key elsewhere.
        kind: "tensor", or what else it is: "parameter", "sparse", "quantized", "storage", a class.
        dtype: Name in torch; None where the file does not say without being executed.
        shape: Its lengths; None likewise.
        nbytes: Size of its elements. Of an expanded tensor that is more than its storage has.
        storages: Keys of the storages under it.
        shares_with: Name of the first tensor over the same storage, None if it is that.
    """

    name: str
    group: Group
    module: str
    kind: str
    dtype: str | None
    shape: tuple[int, ...] | None
    nbytes: int
    storages: tuple[str, ...]
    shares_with: str | None = None

    @property
    def numel(self) -> int:
        """Number of elements; 0 where the shape is not known."""
        return 0 if self.shape is None else math.prod(self.shape)


@dataclass(frozen=True)
class Total:
    """The sum over some tensors.

    Attributes:
        name: Which, e.g. "model", or "transformer" within it.
        tensors: How many.
        numel: Their elements.
        nbytes: Bytes of their elements: what they take once each has memory of its own.
        storage_nbytes: Bytes of the storages under them, each counted once: what the file has for them.
    """

    name: str
    tensors: int
    numel: int
    nbytes: int
    storage_nbytes: int


@dataclass(frozen=True)
class FileContents:
    """What a checkpoint file holds.

    Attributes:
        path: The file.
        format: "torch" for what torch.save writes, or "safetensors".
        nbytes: Size of the file.
        tensors: In the order saved.
        storage_nbytes: Size in bytes of each storage, by key.
        step: The step that it says it is of, or its name does; None if neither.
        epoch: The same for the epoch.
        metrics: The numbers that were measured, by name.
        values: All plain values by the path of keys; lists of more than 16 items are left out.
        omitted: Lists and byte strings that were left out, with their lengths.
        meta: The meta file that step and values were taken from, for a model file with nanochat's name.
        problem: Why it could not be read.
    """

    path: str
    format: Literal["torch", "safetensors"]
    nbytes: int
    tensors: tuple[TensorRow, ...]
    storage_nbytes: Mapping[str, int]
    step: int | None
    epoch: int | None
    metrics: Mapping[str, int | float]
    values: Mapping[str, Value]
    omitted: Mapping[str, int]
    meta: str | None = None
    problem: str | None = None

    @property
    def total(self) -> Total:
        """The sum over all tensors."""
        return self._sum("total", self.tensors)

    def groups(self) -> list[Total]:
        """Return the sums over model, optimizer and the rest, as far as there are any."""
        sums = (self._sum(group, self._of(group)) for group in GROUPS)
        return [total for total in sums if total.tensors]

    def modules(self, group: Group) -> list[Total]:
        """Return the sums over the parts of a group, in the order saved."""
        parts: dict[str, list[TensorRow]] = {}
        for row in self._of(group):
            parts.setdefault(row.module, []).append(row)
        return [self._sum(name, rows) for name, rows in parts.items()]

    def sum_of(self, name: str, select: Callable[[TensorRow], bool]) -> Total:
        """Return the sum over the tensors for which `select` is true."""
        return self._sum(name, filter(select, self.tensors))

    def _of(self, group: Group) -> list[TensorRow]:
        return [row for row in self.tensors if row.group == group]

    def _sum(self, name: str, rows: Iterable[TensorRow]) -> Total:
        tensors = numel = nbytes = 0
        keys: set[str] = set()
        for row in rows:
            tensors += 1
            numel += row.numel
            nbytes += row.nbytes
            keys.update(row.storages)
        return Total(name, tensors, numel, nbytes, sum(self.storage_nbytes[key] for key in keys))
