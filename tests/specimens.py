"""Objects that torch.save takes, and how two of them are compared bit for bit."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import collections
import functools
import importlib
import io
import math
import struct
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st


class Labelled(torch.Tensor):
    """A subclass that add_safe_globals has to name."""


@dataclass(frozen=True)
class Specimen:
    """One kind of object.

    Attributes:
        name: For pytest.
        make: Makes it, the same each time.
        is_safe: Whether weights_only=True takes it.
    """

    name: str
    make: Callable[[], Any]
    is_safe: bool = True


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch says of its own objects: deprecations, prototypes, O(nnz) scans."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


@contextmanager
def torch_taking_numbers() -> Iterator[None]:
    """Let torch's weights_only=True take what fastckpt takes by itself: numpy's numbers, and b"".

    The names are those that numpy writes, in its versions 1 and 2.
    """
    numbers = [np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32]
    numbers += [np.uint64, np.float16, np.float32, np.float64, np.complex64, np.complex128]
    module = importlib.import_module(np.ndarray.__reduce__(np.zeros(1))[0].__module__)
    functions = [
        (getattr(module, name), f"{path}.{name}")
        for name in ("_reconstruct", "scalar")
        for path in ("numpy.core.multiarray", "numpy._core.multiarray")
    ]
    classes: list[Any] = [
        bytes,
        np.ndarray,
        np.dtype,
        *(type(np.dtype(number)) for number in numbers),
    ]
    with torch.serialization.safe_globals([*functions, *classes]):
        yield


def dtypes() -> list[torch.dtype]:
    """Return every dtype of the installed torch."""
    return sorted({v for v in vars(torch).values() if isinstance(v, torch.dtype)}, key=str)


def fill(dtype: torch.dtype, numel: int, seed: int = 0) -> torch.Tensor:
    """Make a tensor whose bytes are random: NaN payloads, -0.0 and all."""
    generator = torch.Generator().manual_seed(seed)
    nbytes = numel * dtype.itemsize
    data = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)
    if dtype == torch.bool:
        data %= 2
    with quiet():  # complex32 is experimental
        return torch.empty(0, dtype=dtype).set_(data.untyped_storage(), 0, (numel,), (1,))


@functools.cache
def can_save(dtype: torch.dtype) -> bool:
    """Whether torch.save takes plain tensors of the dtype: not shells of sub-byte integers."""
    if str(dtype).startswith("torch.q"):
        return False  # quantized tensors need a scale
    try:
        torch.save(fill(dtype, 1), io.BytesIO())
    except Exception:
        return False
    return True


@functools.cache
def _can_print(dtype: torch.dtype) -> bool:
    """Whether hypothesis can show such a tensor: not bits and 4-bit floats, tested elsewhere."""
    try:
        repr(fill(dtype, 1).reshape(()))
    except Exception:
        return False
    return True


def _shared() -> Any:
    base = torch.arange(12.0).reshape(3, 4)
    return {"base": base, "row": base[1], "column": base[:, 2], "same": base, "t": base.t()}


def _with_attributes() -> torch.Tensor:
    tensor = torch.arange(3.0)
    tensor.note = "kept"  # type: ignore[attr-defined]
    return tensor


def _parameter_with_attributes() -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    parameter.is_expert = True  # type: ignore[attr-defined]
    return parameter


def _state_dict() -> Any:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    return model.state_dict()


def _optimizer_state() -> Any:
    parameters = [torch.nn.Parameter(fill(torch.float32, 6, i).nan_to_num()) for i in range(3)]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def _bare_storages() -> Any:
    tensor = torch.arange(5, dtype=torch.int16)
    return {"untyped": torch.arange(4.0).untyped_storage(), "typed": tensor.storage()}


def _csr() -> torch.Tensor:
    return torch.eye(3).to_sparse_csr()


def _per_tensor() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.arange(6.0), 0.5, 3, torch.qint8)


def _per_channel() -> torch.Tensor:
    scales, zeros = torch.tensor([0.1, 0.2]), torch.tensor([0, 1])
    return torch.quantize_per_channel(torch.ones(2, 3), scales, zeros, 0, torch.quint8)


def _nested() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(1, 3)])


def _jagged() -> torch.Tensor:
    parts = [torch.ones(2, 3), torch.zeros(1, 3)]
    return torch.nested.nested_tensor(parts, layout=torch.jagged)


def _containers() -> Any:
    return [
        {"a": 1, 2: "b", None: True, 1.5: (), ("t", 1): []},
        OrderedDict(z=1, a=2),
        (1, (2, (3,))),
        {1, 2},
        2**70,
        -(2**31),
        math.inf,
        -0.0,
        1 + 2j,
        "ü\n\u2028",
        b"\x00\xff",
        torch.Size([2, 3]),
        torch.float8_e4m3fn,
        torch.device("cuda:1"),
        torch.strided,
        collections.Counter("abca"),
    ]


SPECIMENS = [
    Specimen("zero_dim", lambda: torch.tensor(3.5)),
    Specimen("empty", lambda: [torch.empty(0), torch.empty(0, 3, dtype=torch.int8)]),
    Specimen("shared", _shared),
    Specimen("slice", lambda: torch.arange(100)[10:20:3]),
    Specimen("expanded", lambda: torch.ones(1).expand(3, 4)),
    Specimen("channels_last", lambda: torch.ones(1, 2, 3, 4).to(memory_format=torch.channels_last)),
    Specimen("conj", lambda: torch.tensor([1 + 2j]).conj()),
    Specimen("neg", lambda: torch.tensor([1 + 2j]).conj().imag),
    Specimen("requires_grad", lambda: torch.ones(2, requires_grad=True)),
    Specimen("meta", lambda: {"m": torch.empty(2, 3, device="meta")}),
    Specimen("attributes", _with_attributes),
    Specimen("parameter", lambda: torch.nn.Parameter(torch.ones(2, 2))),
    Specimen("frozen_parameter", lambda: torch.nn.Parameter(torch.ones(2), requires_grad=False)),
    Specimen("parameter_with_attributes", _parameter_with_attributes),
    Specimen("buffer", lambda: torch.nn.Buffer(torch.ones(2))),
    Specimen("state_dict", _state_dict),
    Specimen("optimizer", _optimizer_state),
    Specimen("storages", _bare_storages),
    Specimen("containers", _containers),
    Specimen("coo", lambda: torch.eye(3).to_sparse()),
    Specimen("csr", _csr),
    Specimen("bsr", lambda: torch.eye(4).to_sparse_bsr((2, 2))),
    Specimen("per_tensor", _per_tensor),
    Specimen("per_channel", _per_channel),
    Specimen("nested", _nested, is_safe=False),
    Specimen("jagged", _jagged, is_safe=False),
    Specimen("subclass", lambda: torch.ones(3).as_subclass(Labelled), is_safe=False),
    Specimen("module", torch.nn.ReLU, is_safe=False),
    Specimen("deque", lambda: collections.deque([torch.ones(2)]), is_safe=False),
    Specimen("numpy", lambda: torch.arange(3).numpy()),
    Specimen("numpy_objects", lambda: np.array([None, 1]), is_safe=False),
    Specimen("slice_object", lambda: [slice(1, 2), range(3)], is_safe=False),
]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Draw a tensor: any dtype that can be saved, whole or a view of something larger."""
    dtype = draw(st.sampled_from([d for d in dtypes() if can_save(d) and _can_print(d)]))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    tensor = fill(dtype, math.prod(shape), seed=draw(st.integers(0, 99))).reshape(shape)
    view = draw(st.sampled_from(["whole", "transposed", "strided", "expanded"]))
    if view == "transposed" and tensor.dim() > 1:
        return tensor.transpose(0, -1)
    if view == "strided" and tensor.dim() > 0:
        return tensor[::2]
    if view == "expanded":
        return tensor.unsqueeze(0).expand(2, *shape)
    return tensor


@st.composite
def objects(draw: st.DrawFn) -> Any:
    """Draw nested containers of plain values and tensors, some of which share storages."""
    pool = draw(st.lists(tensors(), max_size=4))
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**80), 2**80),
        st.floats(),
        st.text(max_size=8),
        *([st.integers(0, len(pool) - 1).map(pool.__getitem__)] if pool else []),
    )
    keys = st.one_of(st.integers(-300, 70000), st.text(max_size=8))
    return draw(
        st.recursive(
            leaves,
            lambda children: st.one_of(
                st.lists(children, max_size=4),
                st.lists(children, max_size=4).map(tuple),
                st.dictionaries(keys, children, max_size=4),
                st.dictionaries(keys, children, max_size=4).map(OrderedDict),
            ),
            max_leaves=12,
        )
    )


def assert_same(found: Any, expected: Any) -> None:
    """Assert that two objects are equal in every bit, in structure and in what they share."""
    comparison = _Comparison()
    comparison.compare(found, expected, "object")


def storage_bytes(storage: Any) -> bytes:
    untyped = storage.untyped() if isinstance(storage, torch.storage.TypedStorage) else storage
    view = torch.empty(0, dtype=torch.uint8).set_(untyped)
    return bytes(view.numpy().tobytes())


def have_same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two strided tensors have the same elements, NaN and its payload included."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    copies = [
        tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in (one, other)
    ]
    return storage_bytes(copies[0].untyped_storage()) == storage_bytes(copies[1].untyped_storage())


def _sparse_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]


class _Comparison:
    def __init__(self) -> None:
        self._numbers: tuple[dict[int, int], dict[int, int]] = ({}, {})

    def compare(self, found: Any, expected: Any, where: str) -> None:
        assert type(found) is type(expected), where
        if isinstance(expected, torch.Tensor):
            self._compare_tensors(found, expected, where)
        elif isinstance(expected, (torch.storage.TypedStorage, torch.UntypedStorage)):
            self._compare_storages(found, expected, where)
        elif isinstance(expected, dict):
            assert list(found) == list(expected), where
            for key in expected:
                self.compare(found[key], expected[key], f"{where}[{key!r}]")
            self._compare_attributes(found, expected, where)
        elif isinstance(expected, (list, tuple, collections.deque)):
            assert len(found) == len(expected), where
            for i, (one, other) in enumerate(zip(found, expected, strict=True)):
                self.compare(one, other, f"{where}[{i}]")
        elif isinstance(expected, float):
            assert struct.pack("<d", found) == struct.pack("<d", expected), where
        elif isinstance(expected, torch.nn.Module):
            assert repr(found) == repr(expected), where
        elif hasattr(expected, "tobytes"):
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape), where
            assert found.tobytes() == expected.tobytes(), where
        else:
            assert found == expected, where

    def _compare_tensors(self, found: torch.Tensor, expected: torch.Tensor, where: str) -> None:
        for name in ("dtype", "layout", "device", "requires_grad", "is_quantized", "is_nested"):
            assert getattr(found, name) == getattr(expected, name), f"{where}: {name}"
        if expected.is_nested:
            for one, other in zip(found.unbind(), expected.unbind(), strict=True):
                assert have_same_bits(one, other), where
            return
        assert found.shape == expected.shape, where
        assert found.is_conj() == expected.is_conj(), where
        assert found.is_neg() == expected.is_neg(), where
        self._compare_attributes(found, expected, where)
        if expected.layout is not torch.strided:
            for one, other in zip(_sparse_parts(found), _sparse_parts(expected), strict=True):
                assert have_same_bits(one, other), where
        else:
            assert found.stride() == expected.stride(), where
            assert found.storage_offset() == expected.storage_offset(), where
            if expected.is_quantized:
                assert repr(found) == repr(expected), where
            self._compare_storages(found.untyped_storage(), expected.untyped_storage(), where)

    def _compare_storages(self, found: Any, expected: Any, where: str) -> None:
        assert found.nbytes() == expected.nbytes(), where
        assert found.device == expected.device, where
        # Shared storages have the same number on both sides. Meta tensors lose what they share.
        if expected.nbytes() and expected.device.type != "meta":
            assert self._number(0, found) == self._number(1, expected), f"{where}: sharing"
        if expected.device.type == "cpu" and expected.nbytes():
            assert storage_bytes(found) == storage_bytes(expected), where

    def _number(self, side: int, storage: Any) -> int:
        untyped = storage.untyped() if hasattr(storage, "untyped") else storage
        numbers = self._numbers[side]
        return numbers.setdefault(untyped._cdata, len(numbers))

    def _compare_attributes(self, found: Any, expected: Any, where: str) -> None:
        if type(expected) in (dict, torch.Tensor) and not getattr(expected, "__dict__", None):
            return
        attributes = getattr(expected, "__dict__", {})
        assert getattr(found, "__dict__", {}) == attributes, f"{where}: attributes"
