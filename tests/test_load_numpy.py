"""numpy's arrays, scalars and dtypes of numbers: built as unpickling builds them, and never by unpickling."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import collections
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.archives import data_pkl, legacy_bytes, torch_bytes, with_records
from tests.loaded_files import load_bytes
from tests.specimens import quiet

from fastckpt import FormatError, UnsafePickleError

CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
DTYPES = [np.dtype(order + code) for code in CODES for order in "<>"]


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """Draw an array of any dtype and order of bytes, whole or a view; its bytes are random."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    size = int(np.prod(shape, dtype=np.int64))
    if dtype.kind == "b":
        array = generator.integers(0, 2, size).astype(dtype).reshape(shape)
    else:
        array = np.frombuffer(generator.bytes(size * dtype.itemsize), dtype).reshape(shape)
    views: list[Callable[[Any], Any]] = [np.asarray, np.asfortranarray, np.transpose, np.flip]
    return draw(st.sampled_from(views))(array)


def objects() -> st.SearchStrategy[Any]:
    """Draw containers of arrays, scalars and dtypes, beside what keeps torch's unpickler busy."""
    scalars = arrays().filter(lambda array: array.size > 0).map(lambda array: array.flat[0])
    leaves = st.one_of(arrays(), scalars, st.sampled_from(DTYPES), st.binary(max_size=3))
    beside = st.sampled_from([None, collections.Counter("aab"), torch.eye(2).to_sparse()])
    return st.tuples(st.lists(leaves, max_size=6).map(lambda found: [*found, *found]), beside)


def assert_same_objects(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert (found.dtype.str, found.shape) == (expected.dtype.str, expected.shape)
        # Where there are no elements, no two versions of numpy have the same strides.
        assert found.strides == expected.strides or expected.size == 0
        assert found.tobytes("A") == expected.tobytes("A")
        assert found.flags.writeable
        assert found.flags.aligned
        assert found.flags.owndata
    elif isinstance(expected, np.generic):
        assert found.dtype == expected.dtype
        assert found.tobytes() == expected.tobytes()
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found.to_dense(), expected.to_dense())
    elif isinstance(expected, (list, tuple)):
        for one, other in zip(found, expected, strict=True):
            assert_same_objects(one, other)
    else:
        assert found == expected


WAYS: dict[str, Callable[..., Any]] = {
    # The fast path, and torch's unpickler.
    "built": load_bytes,
    "by torch": lambda data: load_bytes(data, map_location=lambda storage, _: storage),
    "unrestricted": lambda data: load_bytes(data, weights_only=False),
}


@pytest.mark.filterwarnings("ignore::fastckpt.MissingChecksumWarning")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("write", [torch_bytes, legacy_bytes])
@settings(max_examples=30, deadline=None)
@given(obj=objects(), protocol=st.sampled_from([2, 3]))
def test_every_number_comes_back_as_from_unpickling(
    write: Any, way: str, obj: Any, protocol: int
) -> None:
    with quiet():
        data = write(obj, pickle_protocol=protocol)
        expected = torch.load(io.BytesIO(data), weights_only=False)
        found = WAYS[way](data)
    assert_same_objects(found, expected)
    # What was one object is one object.
    half = len(found[0]) // 2
    for one, other in zip(found[0][:half], found[0][half:], strict=True):
        # What stands beside has the unrestricted unpickler at work, which numpy does the same for.
        assert one is other or isinstance(one, (bytes, np.dtype, np.bool_))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("code", CODES)
def test_each_dtype_in_each_shape(code: str, order: str) -> None:
    dtype = np.dtype(order + code)
    whole = np.arange(24).astype(dtype)
    obj: list[Any] = [
        whole.reshape(shape)[..., :keep] if keep else whole.reshape(shape)
        for shape in ((24,), (4, 6), (2, 3, 4), (24, 1))
        for keep in (0, 1)
    ]
    obj += [array.T for array in obj]
    obj += [whole[7].copy(), whole[7], np.array(whole[7]), dtype]
    obj += [np.zeros(shape, dtype) for shape in ((0,), (0, 3), (3, 0, 2))]
    for name in ("numpy.core.multiarray", "numpy._core.multiarray"):
        data = torch_bytes(obj)
        named = data_pkl(data).replace(b"numpy._core.multiarray", name.encode())
        renamed = with_records(data, {"data.pkl": named})
        expected = torch.load(io.BytesIO(data), weights_only=False)
        for way in ("built", "by torch"):
            assert_same_objects(WAYS[way](renamed), expected)


@pytest.mark.parametrize("way", ["built", "by torch"])
def test_a_loaded_array_is_nobody_elses(way: str) -> None:
    array = np.arange(3000.0)
    data = torch_bytes({"a": array, "b": array, "again": array.copy()})
    loaded = WAYS[way](data)
    assert loaded["a"] is loaded["b"]
    loaded["a"][:] = 7
    assert loaded["again"].tolist() == array.tolist()
    assert WAYS[way](data)["a"].tolist() == array.tolist()


def test_scalars_are_keys() -> None:
    obj = {np.int64(3): "a", (np.float32(0.5), np.bool_(True)): "b", np.uint8(200): "c"}
    found = load_bytes(torch_bytes(obj))
    assert found == {3: "a", (0.5, True): "b", 200: "c"}
    assert [type(key) for key in found] == [np.int64, tuple, np.uint8]


@pytest.mark.parametrize("code", CODES)
def test_scalars_hash_as_pythons_numbers(code: str) -> None:
    """The decoder counts on it where it looks for keys that were chosen to collide."""
    for value in np.frombuffer(np.random.default_rng(0).bytes(160 * 16), "<" + code)[:100]:
        if value == value:
            assert hash(value) == hash(value.item())


def test_empty_bytes_come_back() -> None:
    for protocol in (2, 3):
        with quiet():
            data = torch_bytes([b"", b"", {"a": b"\0\xff"}], pickle_protocol=protocol)
            for load in WAYS.values():
                assert load(data) == [b"", b"", {"a": b"\0\xff"}]


# What is refused


class Sneaky(np.ndarray):
    """A subclass, which may do anything with the state that it gets."""


def forged(wanted: bytes, forgery: bytes, obj: Any = None) -> bytes:
    """Return a file with an array whose pickle has other bytes in one place."""
    data = torch_bytes(np.arange(3.0) if obj is None else obj)
    pickled = data_pkl(data)
    assert pickled.count(wanted) == 1
    return with_records(data, {"data.pkl": pickled.replace(wanted, forgery)})


@pytest.mark.parametrize(
    ("obj", "name"),
    [
        (np.array([None, 1]), "_reconstruct"),
        (np.array(["a"]), "_reconstruct"),
        (np.array([b"a"]), "_reconstruct"),
        (np.array(["2026-01-01"], "M8[D]"), "_reconstruct"),
        (np.zeros(2, "f8,i4"), "_reconstruct"),
        (np.zeros(2, np.dtype("f8", metadata={"a": 1})), "_reconstruct"),
        (np.zeros(3).view(Sneaky), "_reconstruct"),
        (np.zeros((1, 1)).view(np.matrix), "_reconstruct"),
        (np.ma.masked_array([1, 2]), "_mareconstruct"),
        (np.longdouble(1), "scalar"),
        (np.str_("a"), "scalar"),
        (np.datetime64("2026-01-01"), "scalar"),
        (np.dtype("O"), "numpy.dtype"),
        (np.dtype([("a", "f8")]), "numpy.dtype"),
        (np.float64, "numpy.float64"),
        (np.ndarray, "numpy.ndarray"),
        ([np.arange(3), np.ndarray], "_reconstruct"),
        ([np.arange(3), np.array([None])], "_reconstruct"),
        (np.random.default_rng(0), "__generator_ctor"),
    ],
    ids=repr,
)
def test_the_rest_of_numpy_is_refused_by_name(obj: Any, name: str) -> None:
    data = torch_bytes(obj)
    for way in ("built", "by torch"):
        with pytest.raises(UnsafePickleError, match="Weights only load failed") as error:
            WAYS[way](data)
        assert name in str(error.value)
    assert "Of numpy, arrays, scalars and dtypes of numbers and bools are taken" in str(error.value)


def test_what_a_user_allows_is_still_taken() -> None:
    array = np.array([None, 1])
    data = torch_bytes({"objects": array, "numbers": np.arange(3)})
    reconstruct = array.__reduce__()[0]
    allowed: list[Any] = [
        reconstruct,
        np.ndarray,
        np.dtype,
        type(array.dtype),
        np.dtypes.Int64DType,
    ]
    with torch.serialization.safe_globals(allowed):
        loaded = load_bytes(data)
    assert loaded["objects"].tolist() == [None, 1]
    assert loaded["numbers"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize(
    ("wanted", "forgery", "problem"),
    [
        (b"K\x03\x85", b"K\x04\x85", "whose shape and dtype need 32 bytes, and 24 are there"),
        (b"K\x03\x85", b"K\x02\x85", "whose shape and dtype need 16 bytes, and 24 are there"),
        (b"K\x03\x85", b")", "whose shape and dtype need 8 bytes, and 24 are there"),
        (b"K\x03\x85", b"J\xff\xff\xff\xff\x85", "with a dimension of length -1"),
        (
            b"K\x03\x85",
            b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86",
            "of more bytes than 63 bits can count",
        ),
        (
            b"K\x03\x85",
            b"\x8a\x05\x00\x00\x00\x00\x01\x85",
            "whose shape and dtype need 34359738368 bytes, and 24 are there",
        ),
        (b"X\x02\0\0\0f8", b"X\x02\0\0\0f4", "whose shape and dtype need 12 bytes"),
    ],
)
def test_an_array_that_is_not_as_large_as_its_bytes_is_refused(
    wanted: bytes, forgery: bytes, problem: str, weights_only: bool
) -> None:
    data = forged(wanted, forgery)
    with pytest.raises(
        FormatError, match=r"^<BytesIO>: data\.pkl byte \d+: a numpy array "
    ) as error:
        load_bytes(data, weights_only=weights_only)
    assert problem in str(error.value)
    assert error.value.path == "<BytesIO>"
    with pytest.raises((ValueError, TypeError, MemoryError)):
        torch.load(io.BytesIO(data), weights_only=False)


STATE = b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"


@pytest.mark.parametrize(
    ("wanted", "forgery"),
    [
        # A dtype that says of itself that it has objects, parts, another size or version.
        (STATE, STATE[:-1] + b"\x3f"),
        (STATE, b"NX\x01\0\0\0a\x85}" + STATE[3:]),
        (STATE, b"NNNK\x10J\xff\xff\xff\xffK\x00"),
        (b"(K\x03X\x01\0\0\0<", b"(K\x04X\x01\0\0\0<"),
        (b"X\x01\0\0\0<", b"X\x01\0\0\0|"),
        (b"X\x02\0\0\0f8", b"X\x02\0\0\0O8"),
        # Arguments and states of other kinds.
        (b"\x89\x88\x87", b"\x88\x88\x87"),
        (b"(K\x01K\x03", b"(K\x02K\x03"),
        (b"cnumpy\nndarray\n", b"cnumpy\nmemmap\n"),
        (b"cnumpy\nndarray\n", b"cos\nsystem\n"),
    ],
)
def test_forged_calls_and_states_are_refused(wanted: bytes, forgery: bytes) -> None:
    data = forged(wanted, forgery)
    for way in ("built", "by torch"):
        with pytest.raises(UnsafePickleError):
            WAYS[way](data)


def test_a_large_claim_takes_no_memory() -> None:
    """10 GiB by a shape, in a file of some hundred bytes."""
    data = forged(b"K\x03\x85", b"J\x00\x00\x00\x50\x85")
    program = (
        "import io, resource, sys\n"
        "import fastckpt, numpy\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))\n"
        "try:\n"
        "    fastckpt.load(io.BytesIO(sys.stdin.buffer.read()))\n"
        "except fastckpt.FormatError as error:\n"
        "    print('refused', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=data, capture_output=True, check=False
    )
    assert done.stdout.startswith(b"refused <BytesIO>: data.pkl byte "), done.stderr.decode()


# Without numpy


def test_without_numpy_the_load_says_so(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "a": np.arange(3)}, tmp_path / "a.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "b.pt")
    program = (
        "import sys\n"
        "sys.modules['numpy'] = None\n"  # torch does without
        "import warnings; warnings.simplefilter('ignore')\n"
        "import fastckpt\n"
        "for options in {}, {'map_location': lambda storage, _: storage}:\n"
        "    assert fastckpt.load('b.pt', **options)['w'].tolist() == [1, 1]\n"
        "    try:\n"
        "        fastckpt.load('a.pt', **options)\n"
        "    except ImportError as error:\n"
        "        print(error)\n"
        "print(fastckpt.inspect('a.pt').omitted)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    expected = (
        "the checkpoint holds arrays or numbers of numpy, and numpy cannot be imported; install "
        "numpy to load it"
    )
    assert done.stdout.splitlines() == [expected, expected, "{'a': 3}"], done.stderr
