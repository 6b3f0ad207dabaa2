"""Compare two checkpoints: which tensors differ, and how far. Imports no torch.

The elements are compared by the core. Records with the same size and CRC-32 on both sides are not read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastckpt._archive.byte_order import refuse_foreign_byte_order
from fastckpt._arguments import checked_threads, one_path
from fastckpt._contents.outline import free_name, name_tensors, read_outline, walk
from fastckpt._contents.paths import dotted
from fastckpt._contents.safetensors_header import parse_safetensors_header
from fastckpt._contents.small_file import META_NBYTES_MAX, read_small_file
from fastckpt._contents.state_dicts import find_state_dict, is_state_dict
from fastckpt._contents.views import distinct_elements
from fastckpt._named_step import find_step
from fastckpt._native import (
    Archive,
    ArrayInfo,
    Comparison,
    Opaque,
    PlainFile,
    TensorInfo,
    arithmetic,
    compare_tensors,
)
from fastckpt._steps.survey import StepFiles, survey_steps
from fastckpt.errors import ContentsError, FormatError, IncompleteCheckpointError

from .report import DiffReport, FileDiff, TensorDiff, TensorLayout, ValueDiff

__all__ = [
    "DiffReport",
    "FileDiff",
    "TensorDiff",
    "TensorLayout",
    "ValueDiff",
    "diff",
    "diff_steps",
]

# Longer texts are told apart by their hash.
_WRITTEN_LENGTH_MAX = 1_000
_WRITTEN_BEGINNING = 60
_Path = str | os.PathLike[str]
_Progress = Callable[[int, int], None]
_Place = tuple[str, int, tuple[int, ...], tuple[int, ...]] | int
# dtype in A, dtype in B, elements, place in A, place in B.
_Pair = tuple[str, str, int, _Place, _Place]

# What elements are compared as that are known by their bytes alone.
_BYTES = "bits8"
# How many tensors a byte may be a part of, on the average; and how many elements small files may have.
_OVERLAPS_MAX = 8
_OVERLAPPING_MAX = 64 << 20
# The last steps of a directory that a message names.
_STEPS_NAMED = 8


def diff(
    a: _Path,
    b: _Path,
    *,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> DiffReport:
    """Compare two checkpoints: .pt files of any writer, safetensors files, or steps.

    Tensors are compared under the keys that lead to them. Where one file is a state dict alone and the
    other a whole checkpoint, the checkpoint's state dict is compared, and a note says so. Values other
    than tensors (steps, metrics, configurations) are compared as Python writes them.

    Two tensors are the same if all their bytes are. Where only the dtype changed, the numbers are compared
    if both dtypes have them; see `FileDiff.converted`. Records of a .pt file that are read whole are
    compared with their CRC-32; see `FileDiff.unchecked`.

    Args:
        a: The file that changes are counted from, or a step (``"runs/d12@100"``). Two steps with nanochat's
            names are compared as `diff_steps` does.
        b: The other.
        threads: Number of threads; None chooses.
        progress: Called with bytes done and bytes in all, in the calling thread. What it raises ends
            the comparison.

    Returns:
        The report, which is true if nothing differs: `.is_same`, `.files`.

    Raises:
        FileNotFoundError, OSError: A file cannot be read, or there is no such step.
        FormatError: A file is damaged, or in another format.
        ChecksumError: A record has changed since it was written.
        ValueError: A path is a directory.

    Example:
        >>> import fastckpt, torch
        >>> fastckpt.save({"w": torch.zeros(4), "step": 1}, "a.pt")
        >>> fastckpt.save({"w": torch.ones(4), "step": 2}, "b.pt")
        >>> report = diff("a.pt", "b.pt")
        >>> [(tensor.name, tensor.max_abs) for tensor in report.files[0].differing]
        [('w', 1.0)]
        >>> report.files[0].values
        (ValueDiff(name='step', a='1', b='2'),)
    """
    paths = one_path("a", a), one_path("b", b)
    threads = checked_threads(threads)
    steps = [find_step(path) for path in paths]
    named_a, named_b = steps
    if named_a is not None and named_b is not None and not (named_a.managed or named_b.managed):
        of_a, of_b = (named_a.directory, named_a.step), (named_b.directory, named_b.step)
        return diff_steps(*of_a, *of_b, threads=threads, progress=progress)
    files = [
        path if named is None else named.model_file()
        for path, named in zip(paths, steps, strict=True)
    ]
    for path in files:
        if os.path.isdir(path):
            raise ValueError(
                f"{path} is a directory: name two files, or two steps as {path}@100 and {path}@200"
            )
    return DiffReport(*paths, (_diff_files(files[0], files[1], threads, progress),))


def diff_steps(
    a: _Path,
    step_a: int,
    b: _Path,
    step_b: int,
    *,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> DiffReport:
    """Compare two steps with nanochat's names: model, meta and each rank's optimizer.

    Args:
        a: The checkpoint directory of the step that changes are counted from.
        step_a: That step.
        b: The directory of the other, which may be the same.
        step_b: The other step.
        threads: As for `diff`.
        progress: As for `diff`; it begins anew with each pair of files.

    Returns:
        The report; `.files` has each pair, `.only_a` and `.only_b` what has no counterpart.

    Raises:
        IncompleteCheckpointError: There is no such step; the message says which there are.
        OSError, FormatError, ChecksumError: As for `diff`.
    """
    a, b = one_path("a", a), one_path("b", b)
    files_a, files_b = _step_files(a, step_a), _step_files(b, step_b)
    compared = []
    for part in [part for part in files_a if part in files_b]:
        pair = files_a[part], files_b[part]
        compared.append(
            _diff_meta(*pair) if part == "meta" else _diff_files(*pair, threads, progress)
        )
    return DiffReport(
        f"step {step_a} of {a}",
        f"step {step_b} of {b}",
        tuple(compared),
        tuple(path for part, path in files_a.items() if part not in files_b),
        tuple(path for part, path in files_b.items() if part not in files_a),
    )


def _step_files(directory: str, step: int) -> dict[str, str]:
    """Return the paths of a step's files by the part that they are."""
    steps = survey_steps(directory)
    files = steps.get(step, StepFiles(step))
    if not files.names():
        there = sorted(number for number, files in steps.items() if files.names())
        named = ", ".join(map(str, there[-_STEPS_NAMED:])) or "none"
        words = "the last steps there are" if len(there) > _STEPS_NAMED else "the steps there are"
        raise IncompleteCheckpointError(
            f"there is no step {step} in {directory}; {words}: {named}", path=directory
        )
    parts = {"model": files.model, "meta": files.meta}
    parts |= {f"optimizer of rank {rank}": files.shards[rank] for rank in sorted(files.shards)}
    return {part: os.path.join(directory, name) for part, name in parts.items() if name is not None}


def _diff_meta(a: str, b: str) -> FileDiff:
    values = tuple(_diff_values(_values_of(_read_meta(a)), _values_of(_read_meta(b))))
    return FileDiff(a, b, values=values)


def _read_meta(path: str) -> Any:
    try:
        return json.loads(read_small_file(path, "a meta file", META_NBYTES_MAX).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not a meta file: {error}", path=path) from error


@dataclass(frozen=True)
class _Tensor:
    layout: TensorLayout
    place: _Place
    #: Size of the storage in bytes.
    storage_nbytes: int


@dataclass
class _Side:
    """One of the two files, as far as it can be known without its tensors' elements."""

    path: str
    file: Archive | PlainFile
    tensors: dict[str, _Tensor]
    values: dict[str, str] = field(default_factory=dict)
    #: The saved object; None for safetensors.
    root: Any = None
    note: str = ""

    @property
    def is_flat(self) -> bool:
        """Whether it is a state dict and nothing else."""
        return isinstance(self.file, PlainFile) or is_state_dict(self.root)

    def select_state_dict(self) -> None:
        """Leave nothing but the model's state dict, if there is one."""
        try:
            keys, state = find_state_dict(self.root)
        except FormatError:
            return
        self.tensors, self.values = _tensors_of(state), _values_of(state)
        self.note = f"only {'.'.join(keys)} of {self.path} was compared"


def _open(path: str) -> _Side:
    if path.endswith(".safetensors"):
        plain = PlainFile.open(path)
        # Its metadata are those of the format: a .pt file has none.
        header = parse_safetensors_header(plain.read, plain.nbytes, path)
        tensors = {
            info.name: _Tensor(TensorLayout(info.dtype, info.shape), info.offset, info.nbytes)
            for info in header.tensors
        }
        return _Side(path, plain, tensors)
    outline = read_outline(path)
    refuse_foreign_byte_order(outline.archive, path)
    root = outline.root
    return _Side(path, outline.archive, _tensors_of(root), _values_of(root), root)


def _tensors_of(root: Any) -> dict[str, _Tensor]:
    return {
        name: _Tensor(
            TensorLayout(info.dtype, info.shape),
            (info.key, info.storage_offset, info.shape, info.stride),
            info.storage_nbytes,
        )
        for name, info in name_tensors(root).items()
    }


def _values_of(root: Any) -> dict[str, str]:
    """Return values other than tensors as Python writes them, by the keys that lead to them."""
    values: dict[str, str] = {}
    numbers: dict[str, int] = {}
    # One long text may stand in many places.
    long: dict[int, str] = {}
    for keys, leaf in walk(root):
        if isinstance(leaf, TensorInfo):
            continue
        if isinstance(leaf, ArrayInfo):
            written = _written_array(leaf)
        elif isinstance(leaf, Opaque):
            written = f"<{leaf.name}>"
        elif isinstance(leaf, (str, bytes, bytearray)) and len(leaf) > _WRITTEN_LENGTH_MAX:
            if id(leaf) not in long:
                long[id(leaf)] = _digest(leaf)
            written = long[id(leaf)]
        else:
            written = _written(leaf)
        values[free_name(dotted(keys) or "<root>", values, numbers)] = written
    return values


def _written_array(array: ArrayInfo) -> str:
    """Return the kind of an array of numpy, and what tells its elements from others."""
    order = ", order F" if array.order == "F" else ""
    digest = hashlib.sha256(array.data).hexdigest()
    shape = list(array.shape)
    return f"<numpy array of {array.dtype}, shape {shape}{order} (SHA-256 {digest})>"


def _digest(value: str | bytes | bytearray) -> str:
    """Return the beginning of a long value, and what tells it from others."""
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    unit = "characters" if isinstance(value, str) else "bytes"
    begins = repr(value[:_WRITTEN_BEGINNING])
    return f"{begins}... ({len(value):,} {unit}, SHA-256 {hashlib.sha256(data).hexdigest()})"


def _written(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:
        # An integer of more digits than Python converts.
        return f"<{type(value).__name__} of {value.bit_length()} bits>"


def _diff_files(
    a_path: str, b_path: str, threads: int | None, progress: _Progress | None
) -> FileDiff:
    a, b = _open(a_path), _open(b_path)
    if a.is_flat != b.is_flat:
        (b if a.is_flat else a).select_state_dict()
    shared = [name for name in a.tensors if name in b.tensors]
    same_layout = [name for name in shared if a.tensors[name].layout == b.tensors[name].layout]
    converted = [name for name in shared if _is_converted(a.tensors[name], b.tensors[name])]
    compared = [*same_layout, *converted]
    pairs = {name: _pair_of(name, a, b) for name in compared}
    found = _compare(a, b, pairs, threads, progress)

    def tensor_diff(name: str) -> TensorDiff:
        return _tensor_diff(name, a.tensors[name], b.tensors[name], pairs[name][2], found[name])

    return FileDiff(
        a_path,
        b_path,
        added=tuple((n, t.layout) for n, t in b.tensors.items() if n not in a.tensors),
        removed=tuple((n, t.layout) for n, t in a.tensors.items() if n not in b.tensors),
        reshaped=tuple(
            (name, a.tensors[name].layout, b.tensors[name].layout)
            for name in shared
            if a.tensors[name].layout != b.tensors[name].layout
        ),
        tensors=tuple(same_layout),
        differing=tuple(tensor_diff(name) for name in same_layout if found[name].differing),
        converted=tuple(tensor_diff(name) for name in converted),
        unread=tuple(name for name in same_layout if not found[name].was_read),
        unchecked=tuple(name for name in compared if not all(found[name].was_checked)),
        values=tuple(_diff_values(a.values, b.values)),
        notes=tuple(side.note for side in (a, b) if side.note),
    )


def _is_converted(one: _Tensor, other: _Tensor) -> bool:
    """Whether only the dtype changed, from numbers to numbers."""
    dtypes = one.layout.dtype, other.layout.dtype
    if dtypes[0] == dtypes[1] or one.layout.shape != other.layout.shape:
        return False
    return all(_arithmetic(dtype) in {"floating", "integer"} for dtype in dtypes)


def _arithmetic(dtype: str) -> str | None:
    """Return what can be done with the elements; None for dtypes that torch does not have."""
    try:
        return arithmetic(dtype)
    except ValueError:
        return None


def _compare(
    a: _Side,
    b: _Side,
    wanted: dict[str, _Pair],
    threads: int | None,
    progress: _Progress | None,
) -> dict[str, Comparison]:
    """Compare the tensors of these names; those that share memory on both sides once."""
    # By a text: the hash of numbers from a file may be that of any others.
    pairs: dict[str, _Pair] = {}
    numbers: dict[str, int] = {}
    positions = {}
    numel = 0
    for name, pair in wanted.items():
        same = repr(pair)
        if same not in pairs:
            pairs[same] = pair
            numbers[same] = len(numbers)
            numel += pair[2]
            _refuse_overlaps(name, numel, a, b)
        positions[name] = numbers[same]
    results = compare_tensors(
        a.file, b.file, list(pairs.values()), threads=threads, progress=progress
    )
    return {name: results[position] for name, position in positions.items()}


def _refuse_overlaps(name: str, numel: int, a: _Side, b: _Side) -> None:
    """Refuse tensors that overlap so often that comparing them would be out of proportion to the files."""
    nbytes = max(a.file.nbytes, b.file.nbytes)
    if numel > _OVERLAPS_MAX * nbytes + _OVERLAPPING_MAX:
        raise ContentsError(
            f"the tensors of {a.path} and {b.path} overlap in memory: up to {name} there are {numel} "
            f"elements to compare, and the larger file has {nbytes} bytes. Save clones of them.",
            path=a.path,
        )


def _pair_of(name: str, a: _Side, b: _Side) -> _Pair:
    """Return what is compared of two tensors: what overlaps alike on both sides once.

    Otherwise a file of a few bytes could claim more elements than anybody can look at.
    """
    one, other = a.tensors[name], b.tensors[name]
    if _arithmetic(one.layout.dtype) is None:
        # Of safetensors alone: floats of 4 bits and 6, of which several share a byte.
        return _BYTES, _BYTES, one.storage_nbytes, one.place, other.place
    places: list[_Place] = [one.place, other.place]
    shape = one.layout.shape
    records = [place for place in places if not isinstance(place, int)]
    if len(records) == len(places):
        shape, strides = _distinct(shape, [stride for _, _, _, stride in records])
        places = [
            (key, offset, shape, stride)
            for (key, offset, _, _), stride in zip(records, strides, strict=True)
        ]
    numel = math.prod(shape)
    # In bytes: a little overlap does no harm.
    if numel > max(one.storage_nbytes, other.storage_nbytes):
        raise ContentsError(
            f"{name} has {numel} elements that overlap in memory, in {a.path} and in {b.path}: too many "
            "to be compared one by one; save a clone() of it",
            path=a.path,
        )
    return one.layout.dtype, other.layout.dtype, numel, places[0], places[1]


def _distinct(
    shape: tuple[int, ...], strides: list[tuple[int, ...]]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Return shape and strides of what two tensors are compared by: what both have often, once."""
    one, other = strides
    if one == other:
        shape, stride = distinct_elements(shape, one)
        return shape, [stride, stride]
    shape = tuple(
        length if any(steps) else min(length, 1)
        for length, steps in zip(shape, zip(one, other, strict=True), strict=True)
    )
    return shape, strides


def _tensor_diff(
    name: str, one: _Tensor, other: _Tensor, numel: int, found: Comparison
) -> TensorDiff:
    return TensorDiff(
        name=name,
        layout=one.layout,
        numel=numel,
        differing=found.differing,
        non_finite=found.non_finite,
        finite=found.finite,
        max_abs=found.max_abs,
        sum_abs=found.sum_abs,
        sum_squares=found.sum_squares,
        reference_squares=found.reference_squares,
        dtype_b=None if one.layout == other.layout else other.layout.dtype,
    )


def _diff_values(a: dict[str, str], b: dict[str, str]) -> list[ValueDiff]:
    names = [*a, *(name for name in b if name not in a)]
    return [
        ValueDiff(name, a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)
    ]
