"""Outlines: what a .pt file holds, without its tensors and without torch."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import gc
import io
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.specimens import can_save, dtypes, fill, quiet

from fastckpt._contents.outline import Outline, name_tensors, read_outline, walk
from fastckpt._native import Opaque, StorageInfo, TensorInfo
from fastckpt.errors import ChecksumError, UnsafePickleError


class Labelled(torch.Tensor):
    pass


def outline_of(saved: Any, path: Path) -> Outline:
    with quiet():
        torch.save(saved, path)
    return read_outline(path)


def write_pickle(path: Path, data: bytes) -> Path:
    """Write an archive around any pickle at all."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    return path


def assert_describes(info: Any, tensor: torch.Tensor) -> None:
    assert isinstance(info, TensorInfo)
    assert f"torch.{info.dtype}" == str(tensor.dtype)
    assert info.shape == tuple(tensor.shape)
    assert info.stride == tensor.stride()
    assert info.storage_offset == tensor.storage_offset()
    assert info.numel == tensor.numel()
    assert info.itemsize == tensor.element_size()
    assert info.nbytes == tensor.numel() * tensor.element_size()
    assert info.storage_nbytes == tensor.untyped_storage().nbytes()
    assert info.requires_grad == tensor.requires_grad
    assert info.is_parameter == isinstance(tensor, torch.nn.Parameter)
    assert info.location == "cpu"


# What torch.load says is what an outline says.


@pytest.mark.parametrize("dtype", [dtype for dtype in dtypes() if can_save(dtype)], ids=str)
def test_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    saved = {"flat": fill(dtype, 12), "square": fill(dtype, 12).view(3, 4)}
    named = outline_of(saved, tmp_path / "t.pt").named_tensors()
    loaded = torch.load(tmp_path / "t.pt", weights_only=True)
    assert list(named) == ["flat", "square"]
    for name, info in named.items():
        assert_describes(info, loaded[name])


def test_views_and_shared_storages(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    saved = {
        "base": base,
        "transposed": base.t(),
        "row": base[2],
        "column": base[:, 3],
        "expanded": torch.ones(1).expand(5, 7),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "frozen": torch.nn.Parameter(torch.ones(2), requires_grad=False),
    }
    named = outline_of(saved, tmp_path / "t.pt").named_tensors()
    loaded = torch.load(tmp_path / "t.pt", weights_only=True)
    assert list(named) == list(saved)
    for name, info in named.items():
        assert_describes(info, loaded[name])
    assert {named[name].key for name in ("base", "transposed", "row", "column")} == {"0"}
    assert named["expanded"].numel == 35
    assert named["expanded"].storage_nbytes == 4


def test_names_are_the_paths_of_keys(tmp_path: Path) -> None:
    one, two = torch.ones(1), torch.ones(2)
    saved = {
        "model": OrderedDict([("a.weight", one)]),
        "state": {0: {"exp_avg": two}},
        "list": [one, (two, {"deep": one})],
    }
    named = outline_of(saved, tmp_path / "t.pt").named_tensors()
    assert {name: info.shape for name, info in named.items()} == {
        "model.a.weight": (1,),
        "state.0.exp_avg": (2,),
        "list.0": (1,),
        "list.1.0": (2,),
        "list.1.1.deep": (1,),
    }
    assert outline_of(one, tmp_path / "t.pt").named_tensors().keys() == {"<root>"}


def test_paths_that_read_the_same_are_numbered(tmp_path: Path) -> None:
    saved = {1: torch.ones(1), "1": torch.ones(2), "a": {"b": torch.ones(3)}, "a.b": torch.ones(4)}
    named = outline_of(saved, tmp_path / "t.pt").named_tensors()
    assert {name: info.shape[0] for name, info in named.items()} == {
        "1": 1,
        "1#2": 2,
        "a.b": 3,
        "a.b#2": 4,
    }


def test_thousands_of_tensors_of_one_name_are_named_in_linear_time() -> None:
    info = outline_in_memory(torch.ones(1))

    def all_splits(length: int) -> dict[str, Any]:
        """Every way to reach "a.a.a..." through keys that have dots themselves."""
        return {
            ".".join("a" * own): info if own == length else all_splits(length - own)
            for own in range(1, length + 1)
        }

    # Quadratic, this would look up 130 million names.
    named = name_tensors(all_splits(15))
    assert len(named) == 2**14
    assert list(named)[:3] == [".".join("a" * 15) + end for end in ("", "#2", "#3")]


def outline_in_memory(saved: Any) -> Any:
    from fastckpt._native import Archive

    buffer = io.BytesIO()
    torch.save(saved, buffer)
    return Archive.open_bytes(buffer.getvalue(), "memory").decode().outline()


def test_plain_values_are_themselves(tmp_path: Path) -> None:
    saved = {
        "int": 3,
        "large": 2**80,
        "float": -0.0,
        "inf": float("inf"),
        "text": "é\ud800",
        "bytes": b"\0\xff",
        "none": None,
        "bool": True,
        "list": [1, [2]],
        "tuple": (0.9, (0.95,)),
        "set": {1, 2},
        "complex": 1 + 2j,
        "size": torch.Size([2, 3]),
        5: "key",
    }
    root = outline_of(saved, tmp_path / "t.pt").root
    assert root == saved
    assert list(root) == list(saved)
    assert str(root["float"]) == "-0.0"


def test_an_ordered_dict_keeps_its_metadata(tmp_path: Path) -> None:
    state = torch.nn.Linear(2, 2).state_dict()
    root = outline_of(state, tmp_path / "t.pt").root
    assert type(root) is OrderedDict
    assert root._metadata == state._metadata  # type: ignore[attr-defined]


def test_what_is_not_pythons_own_is_opaque(tmp_path: Path) -> None:
    saved = {"dtype": torch.bfloat16, "device": torch.device("cuda:1")}
    root = outline_of(saved, tmp_path / "t.pt").root
    assert {key: value.name for key, value in root.items()} == {
        "dtype": "torch.bfloat16",
        "device": "cuda:1",
    }


@pytest.mark.parametrize(
    ("make", "name", "storages"),
    [
        (lambda: torch.eye(3).to_sparse(), "torch._utils._rebuild_sparse_tensor", 2),
        (lambda: torch.eye(3).to_sparse_csr(), "torch._utils._rebuild_sparse_tensor", 3),
        (lambda: torch.ones(2).as_subclass(Labelled), "torch._tensor._rebuild_from_type_v2", 1),
        (lambda: torch.ones(2, dtype=torch.complex64).conj(), "torch._utils._rebuild_tensor_v2", 1),
        (
            lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
            "torch._utils._rebuild_qtensor",
            1,
        ),
        (
            lambda: torch.empty(3, device="meta"),
            "torch._utils._rebuild_meta_tensor_no_storage",
            0,
        ),
    ],
)
def test_tensors_that_only_torch_builds_are_calls_with_their_parts(
    make: Any, name: str, storages: int, tmp_path: Path
) -> None:
    with quiet():
        tensor = make()
    outline = outline_of({"t": tensor}, tmp_path / "t.pt")
    value = outline.root["t"]
    assert isinstance(value, Opaque)
    assert value.name == name
    leaves = [leaf for _, leaf in walk(value.parts) if isinstance(leaf, (TensorInfo, StorageInfo))]
    assert len({leaf.key for leaf in leaves}) == len(outline.graph.storages) == storages
    keys = [keys for keys, _ in walk(outline.root, is_leaf=lambda part: isinstance(part, Opaque))]
    assert keys == [("t",)]


def test_a_bare_storage_is_described(tmp_path: Path) -> None:
    root = outline_of({"s": torch.ones(3).untyped_storage()}, tmp_path / "t.pt").root
    storage = root["s"]
    assert isinstance(storage, StorageInfo)
    assert (storage.key, storage.nbytes, storage.location) == ("0", 12, "cpu")


def test_a_module_that_was_saved_whole(tmp_path: Path) -> None:
    outline = outline_of(torch.nn.Linear(2, 3), tmp_path / "t.pt")
    assert outline.root.name == "torch.nn.modules.linear.Linear"
    assert {name: info.shape for name, info in outline.named_tensors().items()} == {
        "_parameters.weight": (3, 2),
        "_parameters.bias": (3,),
    }


_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    # The empty one is a call of `bytes`, which weights_only=True refuses.
    st.binary(min_size=1, max_size=5),
    st.builds(torch.zeros, st.lists(st.integers(0, 3), max_size=3)),
)
_OBJECTS = st.recursive(
    _LEAVES,
    lambda parts: st.one_of(
        st.lists(parts, max_size=4),
        st.lists(parts, max_size=4).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=4), st.integers(0, 9)), parts, max_size=4),
    ),
    max_leaves=20,
)


def assert_same_outline(outlined: Any, loaded: Any) -> None:
    if isinstance(loaded, torch.Tensor):
        assert_describes(outlined, loaded)
        return
    assert type(outlined) is type(loaded)
    if isinstance(loaded, dict):
        assert list(outlined) == list(loaded)
        for key, part in loaded.items():
            assert_same_outline(outlined[key], part)
    elif isinstance(loaded, (list, tuple)):
        assert len(outlined) == len(loaded)
        for own, part in zip(outlined, loaded, strict=True):
            assert_same_outline(own, part)
    else:
        assert outlined == loaded


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(saved=_OBJECTS)
def test_an_outline_is_what_torch_loads_but_for_the_tensors(saved: Any, tmp_path: Path) -> None:
    outline = outline_of(saved, tmp_path / "t.pt")
    loaded = torch.load(tmp_path / "t.pt", weights_only=True)
    assert_same_outline(outline.root, loaded)


# Hostile files.


def test_a_list_that_contains_itself(tmp_path: Path) -> None:
    own: list[Any] = [torch.ones(2)]
    own.append(own)
    outline = outline_of({"loop": own}, tmp_path / "t.pt")
    assert outline.root["loop"][1] is outline.root["loop"]
    assert list(outline.named_tensors()) == ["loop.0"]
    del outline
    gc.collect()


def test_a_dag_of_doubling_lists_is_looked_into_once(tmp_path: Path) -> None:
    node: Any = [torch.ones(2)]
    for _ in range(200):
        node = [node, node]
    outline = outline_of(node, tmp_path / "t.pt")
    assert len(outline.named_tensors()) == 1


def test_nesting_has_a_limit(tmp_path: Path) -> None:
    # Protocol 2: 5,000 lists, each the item of the one before.
    path = write_pickle(tmp_path / "t.pt", b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".")
    with pytest.raises(UnsafePickleError, match="nest deeper than 1000 containers"):
        read_outline(path)


def test_nothing_is_imported_or_called(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "made"), "w"))

    path = write_pickle(tmp_path / "t.pt", pickle.dumps({"x": Evil()}, protocol=2))
    root = read_outline(path).root
    assert root["x"].name in {"io.open", "_io.open", "__builtin__.open", "builtins.open"}
    assert not (tmp_path / "made").exists()


def test_a_flipped_bit_in_the_pickle_is_found(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    torch.save({"name": torch.ones(2)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(b"name")] ^= 1
    path.write_bytes(data)
    with pytest.raises(ChecksumError, match=r"data\.pkl"):
        read_outline(path)
    assert list(read_outline(path, verify=False).root) == ["oame"]


def test_tensors_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    torch.save({"w": torch.arange(4000.0)}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert read_outline(path).root["w"].shape == (4000,)


def test_no_torch_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    torch.save({"w": torch.ones(2), "d": torch.float32}, path)
    script = (
        "import sys\n"
        "from fastckpt._contents.outline import read_outline\n"
        "print(list(read_outline(sys.argv[1]).named_tensors()))\n"
        "assert not {'torch', 'numpy', 'rich', 'typer'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True
    )
    assert done.stdout == "['w']\n"
