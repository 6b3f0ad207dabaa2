"""Plain values: the short way to them finds what the outline holds."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import io
import sys
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.specimens import quiet

from fastckpt._contents.opening import open_source
from fastckpt._contents.plain_values import PlainValues, read_plain_values
from fastckpt._inspect.files import read_source, read_source_values
from fastckpt.errors import CheckpointError, ChecksumError, FormatError, UncoveredFormatError

# The words on which it depends what is looked into.
KEYS = st.sampled_from(
    [
        "metrics",
        "state",
        "param_groups",
        "model",
        "w_extra_state",
        "val_loss",
        "step",
        "a.metrics",
        "history",
        "params",
    ]
)


def leaves() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.integers(-3, 3),
        st.floats(),
        st.none(),
        st.booleans(),
        st.text(max_size=2),
        st.binary(max_size=2),
        st.sampled_from(
            [
                torch.tensor(0.5),
                torch.ones(2),
                torch.nn.Parameter(torch.zeros(1)),
                torch.eye(2).to_sparse(),
                torch.bfloat16,
                np.float64(2.25),
                Counter({"x": 2}),
                (1, 2),
                (),
            ]
        ),
    )


def containers(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    # Of one element: such a tensor is a plain value wherever it is not in a state dict.
    tensors = st.dictionaries(KEYS, st.just(torch.tensor(0.5)), min_size=1, max_size=3)
    return st.one_of(
        tensors,
        tensors.map(OrderedDict),
        st.dictionaries(KEYS, parts, max_size=5),
        st.dictionaries(KEYS, parts, max_size=3).map(OrderedDict),
        st.dictionaries(st.one_of(KEYS, st.integers(0, 3), st.just((1, "a"))), parts, max_size=3),
        st.lists(parts, max_size=4),
        st.lists(parts, min_size=1, max_size=2).map(lambda items: items * 9),
        st.tuples(parts, parts),
        # One object in two places.
        st.tuples(parts, KEYS, KEYS).map(lambda made: {made[1]: made[0], made[2]: [made[0]]}),
        st.tuples(parts, parts).map(lambda made: {"state": made[0], "param_groups": made[1]}),
        parts.map(lambda part: {"metrics": part, "model": part}),
    )


def described(values: PlainValues) -> str:
    """Return everything in them, in its order; a NaN is itself."""
    tensors = {
        name: (repr(tensor), tensor.storage_offset, tensor.storage_nbytes, tensor.location)
        for name, tensor in values.scalar_tensors.items()
    }
    return repr((values.values, values.omitted, tensors))


def both_ways(file: Any) -> tuple[PlainValues, PlainValues]:
    """Read the values of all that a file holds, and by the short way."""
    with open_source(file) as source:
        whole = read_plain_values(read_source(source).root)
        return whole, read_source_values(source)[1]


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.recursive(leaves(), containers, max_leaves=12))
def test_the_short_way_finds_what_the_outline_holds(root: Any) -> None:
    file = io.BytesIO()
    with quiet():
        torch.save(root, file)
    file.seek(0)
    whole, short = both_ways(file)
    assert described(short) == described(whole)


def test_nothing_is_made_of_what_holds_no_plain_values(tmp_path: Path) -> None:
    # As torch.optim.AdamW has it.
    optimizer = {
        "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2)}},
        "param_groups": [{"lr": 0.1, "params": [0]}],
    }
    root = {
        "model": {"w": torch.ones(2)},
        "optimizer": optimizer,
        "metrics": {"loss": torch.tensor(0.5)},
        "metrics_history": [{"loss": 1.0}] * 17,
    }
    torch.save(root, tmp_path / "a.pt")
    with open_source(tmp_path / "a.pt") as source:
        reduced = source.archive().decode_plain_values(list_items_max=16).outline()
    assert (reduced["model"], reduced["optimizer"]["state"]) == ({}, {})
    assert reduced["optimizer"]["param_groups"][0]["params"] == [0]
    assert reduced["metrics"]["loss"].numel == 1
    assert reduced["metrics_history"] == [None] * 17
    whole, short = both_ways(tmp_path / "a.pt")
    assert described(short) == described(whole)


def error_of(read: Any, path: Path) -> CheckpointError:
    with open_source(path) as source, pytest.raises(CheckpointError) as caught:
        read(source)
    return caught.value


@pytest.mark.parametrize("kind", ["pickle", "zip", "opcode", "torchscript", "legacy"])
def test_the_short_way_refuses_what_the_outline_refuses(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    expected: type[CheckpointError] = UncoveredFormatError
    if kind == "torchscript":
        with quiet():
            torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path)
    else:
        protocol = 4 if kind == "opcode" else 2
        torch.save(
            {"step": 3, "w": torch.ones(2)},
            path,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=kind != "legacy",
        )
        data = bytearray(path.read_bytes())
        if kind == "pickle":
            data[data.index(b"step")] ^= 1
            expected = ChecksumError
        elif kind == "zip":
            # The number of records in the end record.
            data[-12] ^= 1
            expected = FormatError
        path.write_bytes(data)
    error = error_of(read_source, path)
    assert type(error) is expected
    short = error_of(read_source_values, path)
    assert (type(short), str(short)) == (type(error), str(error))


def test_a_state_dict_in_many_places_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched(dict[str, Any]):
        looks = 0

        def items(self) -> Any:
            Watched.looks += 1
            return super().items()

    module = sys.modules["fastckpt._contents.state_dicts"]
    monkeypatch.setattr(module, "is_tensor", lambda value: isinstance(value, torch.Tensor))
    weights = Watched(w=torch.ones(1))
    found = read_plain_values({**{str(number): weights for number in range(50)}, "step": 3})
    assert found.values == {"step": 3}
    # Once for its place in the root, whose other values are no tensors.
    assert Watched.looks == 1


def test_values_end_where_there_are_too_many() -> None:
    found = read_plain_values({str(number): {"a": number} for number in range(20_000)})
    assert len(found.values) == 10_000
    assert found.values["9999.a"] == 9999
