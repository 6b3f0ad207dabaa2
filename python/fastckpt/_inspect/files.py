"""Look into a checkpoint without torch, and without reading its tensors."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastckpt._contents.opening import Kind, Source, open_source
from fastckpt._contents.outline import Outline, free_name, walk
from fastckpt._contents.paths import dotted, key_text
from fastckpt._contents.plain_values import (
    LIST_ITEMS_MAX,
    METRICS,
    PlainValues,
    read_plain_values,
)
from fastckpt._contents.safetensors_header import SafetensorsHeader, read_safetensors_header
from fastckpt._contents.scalar_tensors import read_scalar
from fastckpt._contents.small_file import META_NBYTES_MAX, read_small_file
from fastckpt._contents.state_dicts import find_state_dict, is_optimizer_state, is_tensor
from fastckpt._native import Archive, Opaque, StorageInfo, TensorInfo
from fastckpt._steps.survey import StepName
from fastckpt.errors import (
    CheckpointError,
    FormatError,
    TorchScriptError,
    UncoveredFormatError,
    UnsafePickleError,
)

from .names import name_of_file
from .parts import Parts, PartsReader
from .report import FileContents, Group, TensorRow

_Path = str | os.PathLike[str]

# What stands before the name of a kind of tensor in the name of the function that rebuilds it.
_REBUILD = "_rebuild_"
_KINDS = {
    "tensor_v2": "tensor",
    "tensor_v3": "tensor",
    "sparse_tensor": "sparse",
    "qtensor": "quantized",
    "nested_tensor": "nested",
    "meta_tensor_no_storage": "meta",
}
# A list of more blocks than these is one module in the totals.
_MODULES_MAX = 24
_EXECUTING_HINT = (
    "only if you trust who made it: torch.load(path, weights_only=False), and save it again"
)


def inspect_file(path: _Path) -> FileContents:
    """Say what one checkpoint file holds.

    Reads the directory of the file and data.pkl, or the header of a safetensors file, and no tensor.
    Nothing in the file is executed. For a model file with nanochat's name, the meta beside it is read too.

    Args:
        path: A .pt file of torch.save or fastckpt.save, or a .safetensors file.

    Returns:
        Tensors, totals, step, epoch, metrics and the other plain values.

    Raises:
        OSError: It cannot be read.
        FormatError: It is damaged, or not a checkpoint; `UncoveredFormatError` if it cannot be looked
            into: TorchScript, a file of torch before 1.6, or a pickle that torch.load refuses with
            weights_only=True for its opcodes.
        ChecksumError: data.pkl has changed since it was written.

    Example:
        >>> torch.save({"step": 3, "model": {"w": torch.ones(2, 3)}}, "a.pt")
        >>> contents = inspect_file("a.pt")
        >>> contents.step, contents.tensors[0].name, contents.tensors[0].shape
        (3, 'model.w', (2, 3))
    """
    path = os.fsdecode(path)
    with open_source(path) as source:
        if source.kind is Kind.SAFETENSORS:
            return _contents_of_safetensors(path, read_safetensors_header(path))
        outline = read_source(source)
    return contents_of_outline(path, outline)


def read_source(source: Source) -> Outline:
    """Read the outline of an open file; for the errors see `inspect_file`."""
    with _saying_what_cannot_be_read(source):
        archive = _open_archive(source)
        graph = archive.decode()
    return Outline(archive, graph, graph.outline())


def read_source_values(
    source: Source, progress: Callable[[int, int], None] | None = None
) -> tuple[Archive, PlainValues]:
    """Read the plain values of an open file; for the errors see `inspect_file`.

    The same values as those of its outline, without making an object of each tensor. What `progress`
    raises ends it.
    """
    with _saying_what_cannot_be_read(source):
        archive = _open_archive(source)
        graph = archive.decode_plain_values(list_items_max=LIST_ITEMS_MAX, progress=progress)
    return archive, read_plain_values(graph.outline())


def _open_archive(source: Source) -> Archive:
    name = source.name
    if source.kind in (Kind.LEGACY, Kind.TAR):
        raise UncoveredFormatError(
            f"{name} is a file of torch before 1.6, or of the old serialization: it has no directory",
            path=name,
            hint="fastckpt.load reads it; saved again with fastckpt.save, it can be inspected",
        )
    archive = source.archive()
    if archive.kind == "torchscript":
        raise _torchscript_error(name)
    return archive


@contextmanager
def _saying_what_cannot_be_read(source: Source) -> Iterator[None]:
    try:
        yield
    except TorchScriptError as error:
        raise _torchscript_error(source.name) from error
    except UnsafePickleError as error:
        raise UncoveredFormatError(str(error), path=source.name, hint=_EXECUTING_HINT) from error


def _torchscript_error(name: str) -> UncoveredFormatError:
    return UncoveredFormatError(
        f"{name} is a TorchScript archive: a program with its tensors, not a checkpoint",
        path=name,
        hint="torch.jit.load(path).state_dict() has its tensors",
    )


def contents_of_outline(path: str, outline: Outline) -> FileContents:
    """Return what an outline holds; `path` is where it was read."""
    storages = {storage.key: storage.nbytes for storage in outline.graph.storages}
    plain = read_plain_values(outline.root)
    named = name_of_file(path)
    meta: str | None = None
    problem: str | None = None
    if named is not None and named.role == "model" and not plain.values:
        meta = os.path.join(os.path.dirname(path), str(StepName("meta", named.step)))
        try:
            plain = read_meta_values(meta)
        except FileNotFoundError:
            meta = None
        except (OSError, FormatError) as error:
            # What the model holds can be said all the same.
            problem = str(error)
    problem = problem or _read_metrics(plain, outline.archive)
    step, epoch = plain.step, plain.epoch
    return FileContents(
        path=path,
        format="torch",
        nbytes=outline.archive.nbytes,
        tensors=tuple(_tensor_rows(outline, path)),
        storage_nbytes=storages,
        step=step if step is not None or named is None else named.step,
        epoch=epoch if epoch is not None or named is None else named.epoch,
        metrics=plain.metrics(),
        values=plain.values,
        omitted=plain.omitted,
        meta=meta,
        problem=problem,
    )


def _read_metrics(plain: PlainValues, archive: Archive) -> str | None:
    """Add the metrics that are tensors of one element; return what went wrong."""
    prefix = METRICS + "."
    for name, tensor in plain.scalar_tensors.items():
        if not name.startswith(prefix):
            continue
        try:
            number = read_scalar(archive, tensor)
        except (OSError, CheckpointError) as error:
            # Everything else that the file holds can be said all the same.
            return str(error)
        if number is not None:
            plain.values[name] = number
    return None


def read_meta_values(path: str) -> PlainValues:
    """Read the plain values of a meta file.

    Raises:
        OSError: It cannot be read.
        FormatError: It is not JSON.
    """
    return decode_meta_values(read_small_file(path, "a meta file", META_NBYTES_MAX), path)


def decode_meta_values(data: bytes, path: str) -> PlainValues:
    """Decode the contents of a meta file as Python's json does, `Infinity` and `NaN` included."""
    try:
        return read_plain_values(json.loads(data.decode("utf-8")))
    # RecursionError: brackets nested by the thousand.
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise FormatError(f"{path} is not a meta file: {reason}", path=path) from error


def _tensor_rows(outline: Outline, path: str) -> Iterator[TensorRow]:
    groups = _Groups(outline.root)
    reader = PartsReader(path, outline.archive.record_nbytes("data.pkl"))
    taken: dict[str, None] = {}
    numbers: dict[str, int] = {}
    first_over: dict[str, str] = {}
    for keys, leaf in walk(outline.root, is_leaf=is_tensor):
        if not (is_tensor(leaf) or isinstance(leaf, StorageInfo)):
            continue
        name = free_name(dotted(keys) or "<root>", taken, numbers)
        taken[name] = None
        group = groups.group_of(keys)
        row = _row(name, group, groups.module_of(group, keys), leaf, reader)
        shares_with = next((first_over[key] for key in row.storages if key in first_over), None)
        for key in row.storages:
            first_over.setdefault(key, name)
        yield row if shares_with is None else _sharing(row, shares_with)


def _sharing(row: TensorRow, name: str) -> TensorRow:
    return TensorRow(**{**vars(row), "shares_with": name})


def _row(name: str, group: Group, module: str, leaf: Any, reader: PartsReader) -> TensorRow:
    if isinstance(leaf, TensorInfo):
        kind = "parameter" if leaf.is_parameter else "tensor"
        return TensorRow(
            name, group, module, kind, leaf.dtype, leaf.shape, leaf.nbytes, (leaf.key,)
        )
    if isinstance(leaf, StorageInfo):
        dtype = leaf.dtype or "uint8"
        return TensorRow(
            name, group, module, "storage", dtype, (leaf.numel,), leaf.nbytes, (leaf.key,)
        )
    return _row_of_opaque(name, group, module, leaf, reader.read(leaf))


def _row_of_opaque(name: str, group: Group, module: str, tensor: Opaque, parts: Parts) -> TensorRow:
    """Describe a tensor that only torch can build, by what it would be built from."""
    tensors, storages, shape = parts.tensors, parts.storages, parts.shape
    dtype = None
    nbytes = sum(part.nbytes for part in tensors)
    if storages:
        dtype = storages[0].dtype
        itemsize = storages[0].nbytes // storages[0].numel if storages[0].numel else 0
        nbytes = storages[0].nbytes if shape is None else math.prod(shape) * itemsize
    elif tensors:
        # Of a sparse tensor, the values; its indices stand before them.
        dtype = tensors[-1].dtype
    elif _kind(tensor) == "meta":
        # Its first argument is the dtype.
        dtype = parts.others[0].removeprefix("torch.") if parts.others else None
    keys = dict.fromkeys([part.key for part in tensors] + [part.key for part in storages])
    return TensorRow(name, group, module, _kind(tensor), dtype, shape, nbytes, tuple(keys))


def _kind(tensor: Opaque) -> str:
    function = tensor.name.rpartition(".")[2].removeprefix(_REBUILD)
    if function == "from_type_v2":
        # Its second argument is the class.
        arguments = tensor.parts[0] if tensor.parts else ()
        if isinstance(arguments, tuple) and len(arguments) > 1 and isinstance(arguments[1], Opaque):
            return "tensor" if arguments[1].name == "torch.Tensor" else arguments[1].name
    return _KINDS.get(function, function)


class _Groups:
    """Which tensors are the model's, and which an optimizer's."""

    def __init__(self, root: Any) -> None:
        self._optimizers: set[str] = set()
        self._model: tuple[str, ...] | None = None
        self._depth = 0
        self._all: Group | None = None
        try:
            self._model, state = find_state_dict(root)
        except FormatError:
            if _is_optimizers(root):
                self._all = "optimizer"
        else:
            self._depth = _common_depth(list(state))
        if self._all is None and self._model != () and isinstance(root, dict):
            # Asked once of each: one large list may stand under many keys.
            parts = {id(value): value for value in root.values()}
            known = {number for number, value in parts.items() if _is_optimizers(value)}
            self._optimizers = {
                key_text(key)
                for key, value in root.items()
                if id(value) in known or "optim" in key_text(key).lower()
            }

    def group_of(self, keys: tuple[str, ...]) -> Group:
        """Return what a tensor is part of, by the keys that lead to it."""
        if self._all is not None:
            return self._all
        if self._model is not None and keys[: len(self._model)] == self._model:
            return "model"
        return "optimizer" if keys and keys[0] in self._optimizers else "other"

    def module_of(self, group: Group, keys: tuple[str, ...]) -> str:
        """Return which part of its group a tensor is in."""
        if group == "model" and self._model is not None:
            # The names in a state dict have dots themselves.
            parts = dotted(keys[len(self._model) :]).split(".")
            return ".".join(parts[: self._depth + 1])
        if group == "optimizer":
            return keys[-1] if keys else ""
        return keys[0] if keys else "<root>"


def _is_optimizers(value: Any) -> bool:
    """Whether this is the state of an optimizer, or of several."""
    if isinstance(value, dict):
        parts = list(value.values())
        return is_optimizer_state(value) or (bool(parts) and all(map(is_optimizer_state, parts)))
    return isinstance(value, (list, tuple)) and bool(value) and all(map(is_optimizer_state, value))


def _common_depth(names: list[Any]) -> int:
    """Return how many parts all names begin with, such as the "module." of DistributedDataParallel."""
    split = [str(name).split(".") for name in names]
    # Of the name of a tensor, the last part is never left out.
    most = min((len(parts) - 1 for parts in split), default=0)
    depth = 0
    while len(split) > 1 and depth < most and len({parts[depth] for parts in split}) == 1:
        if len({parts[depth + 1] for parts in split}) > _MODULES_MAX:
            break
        depth += 1
    return depth


def _contents_of_safetensors(path: str, header: SafetensorsHeader) -> FileContents:
    depth = _common_depth([tensor.name for tensor in header.tensors])
    rows = tuple(
        TensorRow(
            name=tensor.name,
            group="model",
            module=".".join(tensor.name.split(".")[: depth + 1]),
            kind="tensor",
            dtype=tensor.dtype,
            shape=tensor.shape,
            nbytes=tensor.nbytes,
            storages=(tensor.name,),
        )
        for tensor in header.tensors
    )
    named = name_of_file(path)
    return FileContents(
        path=path,
        format="safetensors",
        nbytes=header.nbytes,
        tensors=rows,
        storage_nbytes={tensor.name: tensor.nbytes for tensor in header.tensors},
        step=None if named is None else named.step,
        epoch=None if named is None else named.epoch,
        metrics={},
        values=dict(header.metadata),
        omitted={},
    )
