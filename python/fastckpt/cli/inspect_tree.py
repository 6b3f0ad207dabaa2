"""The tensors of a file as a tree of modules, each with its total; blocks that are alike are shown once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastckpt._inspect.report import TensorRow
from fastckpt.cli.output import format_nbytes, printable
from fastckpt.cli.tables import fit_table, format_shape

_INDENT = "  "
# No model nests deeper; a hostile name of a thousand dots does.
_DEPTH_MAX = 24
# Nor has one so many blocks; Python refuses to convert numbers of thousands of digits.
_DIGITS_MAX = 18


@dataclass
class _Node:
    """A module, or a tensor where `row` is set."""

    row: TensorRow | None = None
    children: dict[str, _Node] = field(default_factory=dict)
    tensors: int = 0
    nbytes: int = 0


def tree_lines(rows: Sequence[TensorRow], *, by_size: bool) -> list[str]:
    """Return the lines of the tree, in the order of the rows, or the largest module first."""
    root = _Node()
    for row in rows:
        _add(root, row)
    cells = [("", "tensors", "size", "")]
    cells += [
        (_INDENT * depth + name, tensors, size, note)
        for depth, name, tensors, size, note in _walk(root, 0, by_size=by_size)
    ]
    return fit_table(cells, ("<", ">", ">", "<"))


def _add(root: _Node, row: TensorRow) -> None:
    node = root
    parts = row.name.split(".", _DEPTH_MAX)
    for part in parts:
        node.tensors += 1
        node.nbytes += row.nbytes
        node = node.children.setdefault(part, _Node())
    if node.row is not None or node.children:
        # "a" and "a.b" may both be tensors.
        node.tensors += 1
        node.nbytes += row.nbytes
        node = node.children.setdefault("", _Node())
    node.row = row
    node.tensors, node.nbytes = 1, row.nbytes


def _walk(node: _Node, depth: int, *, by_size: bool) -> Iterator[tuple[int, str, str, str, str]]:
    children = list(node.children.items())
    if by_size:
        children.sort(key=lambda item: -item[1].nbytes)
    for names, child in _alike(children):
        name, last = _chain(names[0], child)
        if len(names) > 1:
            name = _range(names) + name.removeprefix(names[0])
        alike = f"{len(names)} alike, {format_nbytes(child.nbytes)} each" if len(names) > 1 else ""
        described = _describe(last.row) if last.row is not None else ""
        yield (
            depth,
            printable(name),
            "" if last.row is not None and len(names) == 1 else f"{child.tensors * len(names):,}",
            format_nbytes(child.nbytes * len(names)),
            "  ".join(filter(None, (described, alike))),
        )
        yield from _walk(last, depth + 1, by_size=by_size)


def _range(names: list[str]) -> str:
    numbers = [int(name[:_DIGITS_MAX]) for name in names]
    is_gapless = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return f"{names[0]}-{names[-1]}" if is_gapless else f"{names[0]}...{names[-1]}"


def _chain(name: str, node: _Node) -> tuple[str, _Node]:
    """Follow a module as long as it has one child only: "attn.c_q.weight"."""
    while node.row is None and len(node.children) == 1:
        part, node = next(iter(node.children.items()))
        name = f"{name}.{part}"
    return name, node


def _alike(children: list[tuple[str, _Node]]) -> Iterator[tuple[list[str], _Node]]:
    """Join neighbours with numbers for names whose tensors have the same names, dtypes and shapes."""
    names: list[str] = []
    first: _Node | None = None
    signature: Any = None
    for name, node in children:
        own = _signature(node) if name.isdecimal() else None
        if first is not None and own is not None and own == signature:
            names.append(name)
            continue
        if first is not None:
            yield names, first
        names, first, signature = [name], node, own
    if first is not None:
        yield names, first


def _signature(node: _Node) -> Any:
    row = node.row
    own = None if row is None else (row.kind, row.dtype, row.shape)
    return own, tuple((name, _signature(child)) for name, child in node.children.items())


def _describe(row: TensorRow) -> str:
    kind = "" if row.kind in {"tensor", "parameter"} else f" {printable(row.kind)}"
    shared = "" if row.shares_with is None else f", shares memory with {printable(row.shares_with)}"
    return f"{row.dtype or '?'} {format_shape(row.shape)}{kind}{shared}"
