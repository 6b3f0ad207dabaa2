"""Objects described by plain values, so that hypothesis can shrink and show any of them.

A recipe holds no tensor: `build` makes the object, the same each time. Tensors are views of a few
storages, and the same tensor or container may stand in several places, so that every kind of
sharing that a pickle can express comes up.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from tests.specimens import can_save, dtypes, fill

_MAX_NUMEL = 48
# Above 255 bytes Python writes LONG4, which torch's restricted unpickler does not know.
_INTEGERS = st.one_of(
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.sampled_from(
        [s * 2**p + d for p in (8, 16, 31, 32, 63, 64) for d in (-1, 0, 1) for s in (1, -1)]
    ),
)
# Lone surrogates are text for Python and for pickle, but not UTF-8.
_TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
_ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    _INTEGERS,
    st.floats(),
    st.sampled_from([float("nan"), float("inf"), float("-inf"), -0.0, 5e-324]),
    _TEXT,
    st.binary(max_size=8),
    st.complex_numbers(allow_nan=False),
    st.lists(st.integers(0, 2**40), max_size=4).map(torch.Size),
    st.sampled_from(dtypes()),
    st.sampled_from([torch.device("cpu"), torch.device("cuda:3"), torch.device("meta")]),
    st.sets(st.one_of(st.integers(-9, 9), st.text(max_size=2)), max_size=3),
)
_LEGACY_DTYPES = set(torch.storage._dtype_to_storage_type_map())
_KEYS = st.one_of(st.integers(-300, 70_000), _TEXT)


@dataclass(frozen=True)
class Storage:
    """Random bytes: NaN payloads, subnormals and -0.0 among them."""

    dtype: torch.dtype
    numel: int
    seed: int


@dataclass(frozen=True)
class View:
    """A tensor: storage number `storage`, seen with any geometry that lies inside it."""

    storage: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    kind: str


@dataclass(frozen=True)
class Ref:
    """The tensor with this number, the same object wherever it stands."""

    view: int


@dataclass(frozen=True)
class Shared:
    """A list that is the same object wherever a `Shared` with this number stands."""

    number: int


@dataclass(frozen=True)
class Node:
    """A container: `kind` of `children`, which are pairs where it is a mapping."""

    kind: str
    children: tuple[Any, ...]


@dataclass(frozen=True)
class Recipe:
    storages: tuple[Storage, ...]
    views: tuple[View, ...]
    tree: Any


@functools.cache
def savable_dtypes() -> list[torch.dtype]:
    return [dtype for dtype in dtypes() if can_save(dtype)]


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Draw a recipe."""
    storages = draw(st.lists(_storages(), min_size=1, max_size=4).map(tuple))
    views = draw(st.lists(_views(storages), min_size=1, max_size=6).map(tuple))
    shared = st.integers(0, 1).map(Shared)
    refs = st.integers(0, len(views) - 1).map(Ref)
    # As many tensors as all kinds of atoms together: one_of would weigh each kind alike.
    leaves = st.sampled_from([refs, _ATOMS, shared]).flatmap(lambda strategy: strategy)
    tree = draw(st.recursive(leaves, _containers, max_leaves=16))
    every_view = Node("list", tuple(Ref(number) for number in range(len(views))))
    return Recipe(storages, views, Node("tuple", (tree, every_view)))


def _storages() -> st.SearchStrategy[Storage]:
    return st.builds(
        Storage,
        dtype=st.sampled_from(savable_dtypes()),
        numel=st.integers(0, _MAX_NUMEL),
        seed=st.integers(0, 99),
    )


@st.composite
def _views(draw: st.DrawFn, storages: tuple[Storage, ...]) -> View:
    index = draw(st.integers(0, len(storages) - 1))
    numel, dtype = storages[index].numel, storages[index].dtype
    size = draw(st.lists(st.integers(0, 4), max_size=4).map(tuple))
    offset = draw(st.integers(0, numel))
    stride = draw(
        st.one_of(st.just(_contiguous(size)), st.tuples(*[st.integers(0, 6)] * len(size)))
    )
    if draw(st.booleans()):
        order = draw(st.permutations(range(len(size))))
        size, stride = tuple(size[i] for i in order), tuple(stride[i] for i in order)
    if offset + _reach(size, stride) > numel:
        size, stride = (numel - offset,), (1,)
    # Only these have gradients. Of the dtypes without a storage class of their own, torch.load
    # fails to read a tensor that requires one, though torch.save has written it.
    differentiable = dtype in _LEGACY_DTYPES and (dtype.is_floating_point or dtype.is_complex)
    kinds = [
        "plain",
        "frozen_parameter",
        *(["parameter", "requires_grad"] if differentiable else []),
    ]
    return View(index, size, stride, offset, draw(st.sampled_from(kinds)))


def _contiguous(size: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for length in reversed(size[1:]):
        strides.append(strides[-1] * max(length, 1))
    return tuple(reversed(strides)) if size else ()


def _reach(size: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """How many elements from its offset on a view spans."""
    if 0 in size:
        return 0
    return 1 + sum((length - 1) * step for length, step in zip(size, stride, strict=True))


def _containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Node]:
    items = st.lists(children, max_size=4).map(tuple)
    pairs = st.dictionaries(_KEYS, children, max_size=4).map(lambda d: tuple(d.items()))
    return st.one_of(
        st.builds(Node, st.sampled_from(["list", "tuple"]), items),
        st.builds(Node, st.sampled_from(["dict", "OrderedDict", "state_dict"]), pairs),
    )


def build(recipe: Recipe) -> Any:
    """Make the object that a recipe describes."""
    return _Builder(recipe).make(recipe.tree)


class _Builder:
    def __init__(self, recipe: Recipe) -> None:
        memory = [fill(s.dtype, s.numel, s.seed) for s in recipe.storages]
        self._tensors = [_view(memory[view.storage], view) for view in recipe.views]
        self._shared: list[list[Any]] = [[number, self._tensors[0]] for number in range(2)]

    def make(self, tree: Any) -> Any:
        if isinstance(tree, Ref):
            return self._tensors[tree.view]
        if isinstance(tree, Shared):
            return self._shared[tree.number]
        if not isinstance(tree, Node):
            return tree
        if tree.kind in ("list", "tuple"):
            return (list if tree.kind == "list" else tuple)(self.make(c) for c in tree.children)
        pairs = [(key, self.make(value)) for key, value in tree.children]
        if tree.kind == "dict":
            return dict(pairs)
        ordered: Any = OrderedDict(pairs)
        if tree.kind == "state_dict":
            # As Module.state_dict() leaves it.
            ordered._metadata = OrderedDict([("", {"version": 1}), ("layer", {})])
        return ordered


def _view(memory: torch.Tensor, view: View) -> torch.Tensor:
    tensor = torch.empty(0, dtype=memory.dtype).set_(
        memory.untyped_storage(), view.offset, view.size, view.stride
    )
    if "parameter" in view.kind:
        return torch.nn.Parameter(tensor, requires_grad=view.kind == "parameter")
    return tensor.requires_grad_() if view.kind == "requires_grad" else tensor


def identities(obj: Any) -> list[int]:
    """Number the tensors and containers of an object in the order in which they are met.

    Two objects with the same list have the same pairs of places that hold one and the same object.
    """
    numbers: dict[int, int] = {}
    found: list[int] = []
    _walk(obj, lambda part: found.append(numbers.setdefault(id(part), len(numbers))))
    return found


def _walk(obj: Any, meet: Callable[[Any], None]) -> None:
    # Python itself decides whether two equal atoms, or two empty tuples, are one object.
    if isinstance(obj, (torch.Tensor, list, dict, set)):
        meet(obj)
    if isinstance(obj, dict):
        for value in obj.values():
            _walk(value, meet)
    elif isinstance(obj, (list, tuple)):
        for value in obj:
            _walk(value, meet)
