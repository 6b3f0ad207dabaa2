"""`fastckpt average`: what is averaged with what, and how the result lies in memory."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import math
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from tests.average_runs import assert_same_numbers, both_ways, mean, write
from tests.elements import (
    bytes_of,
    laid_out,
)
from tests.specimens import fill

import fastckpt
from fastckpt._average.average import average_checkpoints, average_files

# Layouts


LAYOUTS = st.sampled_from(["plain", "transposed", "inside", "stepped"])
SHAPES = st.lists(st.integers(0, 7), max_size=3).map(tuple)


@hypothesis.settings(max_examples=40)
@hypothesis.given(data=st.data())
def test_layouts_do_not_change_the_mean(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("layouts")
    shapes = data.draw(st.lists(SHAPES, min_size=1, max_size=4))
    count = data.draw(st.integers(1, 4))
    weights = data.draw(
        st.none() | st.lists(st.floats(0.1, 10), min_size=count, max_size=count), label="weights"
    )
    same = data.draw(st.booleans(), label="same layouts")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    plain = [
        {f"t{n}": torch.randn(shape, generator=generator) for n, shape in enumerate(shapes)}
        for _ in range(count)
    ]
    chosen = [[data.draw(LAYOUTS) for _ in shapes] for _ in range(count)]
    states = [
        {
            name: laid_out(tensor, chosen[0 if same else number][position])
            for position, (name, tensor) in enumerate(state.items())
        }
        for number, state in enumerate(plain)
    ]
    paths = write(directory, states)
    for found in both_ways(paths, directory / "out.pt", weights=weights):
        assert list(found) == list(plain[0])
        for name, tensor in found.items():
            parts = [bytes_of(state[name]) for state in plain]
            assert tensor.shape == plain[0][name].shape
            expected = mean(parts, torch.float32, weights or [1.0] * count)
            assert bytes_of(tensor) == expected
            if same:
                assert tensor.stride() == states[0][name].stride()


def test_tensors_that_share_memory_everywhere_still_do(tmp_path: Path) -> None:
    states = []
    for number in range(2):
        w, flat = torch.full((3, 4), float(number)), torch.arange(10.0) + number
        untied = w if number == 0 else w.clone()
        states.append(
            {"w": w, "tied": w, "t": w.t(), "a": flat[:6], "b": flat[4:], "once": w, "x": untied}
        )
    for state in states:
        del state["once"]
    paths = write(tmp_path / "in", [{k: v for k, v in s.items() if k != "x"} for s in states])
    for found in both_ways(paths, tmp_path / "out.pt"):
        assert found["tied"].data_ptr() == found["w"].data_ptr() == found["t"].data_ptr()
        assert found["a"].untyped_storage().data_ptr() == found["b"].untyped_storage().data_ptr()
        assert torch.equal(found["a"], torch.arange(6.0) + 0.5)
        assert torch.equal(found["b"], torch.arange(4.0, 10.0) + 0.5)
        assert torch.equal(found["t"], torch.full((4, 3), 0.5))
    paths = write(tmp_path / "untied", states)
    for found in both_ways(paths, tmp_path / "out.pt"):
        # In the second checkpoint x has memory of its own.
        assert found["x"].data_ptr() != found["w"].data_ptr() == found["tied"].data_ptr()
        assert torch.equal(found["x"], torch.full((3, 4), 0.5))
        assert torch.equal(found["t"], torch.full((4, 3), 0.5))


def test_an_expanded_tensor_stays_small(tmp_path: Path) -> None:
    paths = write(tmp_path, [{"w": torch.tensor([float(n)]).expand(2**40)} for n in (1, 2)])
    to = tmp_path / "out.pt"
    average_files(paths, to)
    found = torch.load(to, weights_only=True)["w"]
    assert (found.shape, found.stride(), found[7].item()) == ((2**40,), (0,), 1.5)


def test_what_all_have_expanded_stays_expanded_where_the_rest_differs(tmp_path: Path) -> None:
    states = [{"w": torch.zeros(2, 3).expand(2**40, 2, 3)[:, :1]}]
    states.append({"w": torch.ones(5)[1:4].expand(2**40, 1, 3)})
    for found in both_ways(write(tmp_path, states), tmp_path / "out.pt"):
        assert (found["w"].shape, found["w"].untyped_storage().nbytes()) == ((2**40, 1, 3), 12)
        assert torch.equal(found["w"][-1], torch.full((1, 3), 0.5))
    # Tied in one of them only.
    one = torch.zeros(1)
    states = [
        {"a": one.expand(2**30), "b": one[0]},
        {"a": torch.ones(1).expand(2**30), "b": one[0]},
    ]
    for found in both_ways(write(tmp_path / "tied", states), tmp_path / "tied.pt"):
        assert found["a"].untyped_storage().nbytes() == 4
        assert (found["a"][7].item(), found["b"].item()) == (0.5, 0.0)
    assert (tmp_path / "tied.pt").stat().st_size < 2_000


def test_small_files_cannot_ask_for_a_large_one(tmp_path: Path) -> None:
    """Expanded in different ways, so each element would be written: as many as anybody claims."""
    rows, columns = (torch.zeros(2**14).as_strided((2**14,) * 2, s) for s in ((0, 1), (1, 0)))
    for states in (
        [{"w": rows}, {"w": columns}],
        # Each alone is no larger than the file.
        [{f"w{n}": step[n : n + 100, :10_000] for n in range(100)} for step in (rows, columns)],
    ):
        paths = write(tmp_path, states)
        for average in (average_checkpoints, lambda p: average_files(p, tmp_path / "out.pt")):
            with pytest.raises(
                ValueError, match=r"w\d* is expanded in one .* would take \d+ bytes"
            ):
                average(paths)
    assert sorted(os.listdir(tmp_path)) == ["0.pt", "1.pt"]
    # As long as it is not much, it is written.
    few = [{"w": step[:1000, :1000]} for step in (rows, columns)]
    assert average_checkpoints(write(tmp_path, few))["w"].is_contiguous()


def test_views_of_one_storage_are_read_with_it(tmp_path: Path) -> None:
    """The storage is read and checked once, not once for each of the tensors in it."""
    base = torch.arange(1.0 * 2**16).reshape(2**8, 2**8)
    states = [{f"w{n}": base[:, n] for n in range(2**8)} for base in (base, base + 1)]
    # Not alike, so they are averaged one by one.
    states[1]["w0"] = states[1]["w0"].clone()
    paths = write(tmp_path, states)
    before = read_nbytes()
    found = average_checkpoints(paths)
    assert read_nbytes() - before < 4 * sum(os.path.getsize(path) for path in paths)
    for n in range(2**8):
        assert torch.equal(found[f"w{n}"], base[:, n] + 0.5)


def read_nbytes() -> int:
    """Return how many bytes this process has asked the system for."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


@pytest.mark.parametrize("threads", [1, 3])
def test_many_pieces_give_the_same_whatever_the_threads(threads: int, tmp_path: Path) -> None:
    numel = 3_000_001
    parts = [fill(torch.bfloat16, numel, seed) for seed in range(2)]
    paths = write(tmp_path / "in", [{"a": part, "b": part[:5].clone()} for part in parts])
    for state in both_ways(paths, tmp_path / "out.pt", threads=threads):
        expected = mean([bytes_of(part) for part in parts], torch.bfloat16, [1.0, 1.0])
        assert_same_numbers(bytes_of(state["a"]), expected, torch.bfloat16)


# What is averaged


def test_the_state_dict_is_found_and_stands_alone_in_the_new_file(tmp_path: Path) -> None:
    states: list[dict[str, Any]] = []
    for number in range(2):
        torch.manual_seed(number)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        model(torch.randn(8, 3))
        states.append(
            {
                "epoch": number,
                "model_state_dict": model.state_dict(),
                "optimizer_state_dict": {"state": {0: torch.ones(9)}, "param_groups": []},
            }
        )
    paths = write(tmp_path / "in", states)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    found = average_checkpoints(paths, model)
    average_files(paths, tmp_path / "out.pt")
    saved = torch.load(tmp_path / "out.pt", weights_only=True)
    first, last = (state["model_state_dict"] for state in states)
    assert type(found) is OrderedDict
    assert list(found) == list(saved) == list(first)
    for name, tensor in model.state_dict().items():
        expected = last[name]
        if expected.is_floating_point():
            expected = ((first[name].double() + last[name].double()) / 2).to(expected.dtype)
        assert torch.equal(tensor, expected)
        assert torch.equal(found[name], expected)
        assert torch.equal(saved[name], expected)


def test_extra_state_is_the_last_ones(tmp_path: Path) -> None:
    states = [{"w": torch.ones(1), "_extra_state": {"n": number}} for number in range(2)]
    found = average_checkpoints(write(tmp_path, states))
    assert found["_extra_state"] == {"n": 1}


def test_what_does_not_go_together_is_named(tmp_path: Path) -> None:
    good = {f"w{n}": torch.ones(2, 3) for n in range(8)}
    others = {
        "7 keys missing (w1, w2, w3, w4, w5 and 2 more)": {"w0": torch.ones(2, 3)},
        "1 key too many (extra)": good | {"extra": torch.ones(1)},
        "1 tensor of another shape (w3: [2, 3] and [3, 2])": good | {"w3": torch.ones(3, 2)},
        "1 tensor of another dtype (w2: float32 and float16)": good
        | {"w2": torch.ones(2, 3).half()},
    }
    for words, other in others.items():
        paths = write(tmp_path, [good, other])
        with pytest.raises(ValueError, match="does not go with") as caught:
            average_files(paths, tmp_path / "out.pt")
        assert str(caught.value) == f"{paths[1]} does not go with {paths[0]}: {words}"
    assert not (tmp_path / "out.pt").exists()


def test_what_has_no_mean_is_refused(tmp_path: Path) -> None:
    for state, words in (
        ({"w": torch.ones(2, 2).to_sparse()}, "w is not a plain tensor"),
        ({"w": torch.ones(2), 3: torch.ones(2)}, "the state dict has the key 3"),
        ({"w": torch.empty(2, dtype=torch.bits8)}, "w is bits8"),
        ({"state": {}, "param_groups": []}, "no state dict"),
    ):
        paths = write(tmp_path, [state, state])
        with pytest.raises(fastckpt.FormatError, match=words):
            average_checkpoints(paths)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1.0], "2 checkpoints and 1 weights"),
        ([1.0, math.nan], "finite"),
        ([1.0, math.inf], "finite"),
        ([0.0, 0.0], "add up to 0"),
        ([1.0, -1.0], "add up to 0"),
        ([1e308, 1e308], "add up to inf"),
    ],
)
def test_weights_that_cannot_be_used(weights: list[float], words: str, tmp_path: Path) -> None:
    paths = write(tmp_path, [{"w": torch.ones(1)}] * 2)
    with pytest.raises(ValueError, match=words):
        average_checkpoints(paths, weights=weights)


def test_there_has_to_be_something(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to average"):
        average_checkpoints([])
    with pytest.raises(TypeError, match="not one path"):
        average_checkpoints("model.pt")
    with pytest.raises(FileNotFoundError):
        average_checkpoints([tmp_path / "missing.pt"])
