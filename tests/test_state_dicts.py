"""Finding the model's state dict in what a file holds, as an outline and as loaded objects."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from fastckpt._contents.outline import read_outline
from fastckpt._contents.state_dicts import MODEL_KEYS, find_state_dict
from fastckpt.errors import FormatError


def model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def both_forms(root: Any, tmp_path: Path) -> list[Any]:
    """Return the object as it is loaded, and its outline."""
    path = tmp_path / "saved.pt"
    torch.save(root, path)
    return [torch.load(path, weights_only=False), read_outline(path).root]


def test_the_root_itself(tmp_path: Path) -> None:
    state = model().state_dict()
    for root in both_forms(state, tmp_path):
        keys, found = find_state_dict(root)
        assert keys == ()
        assert found is root
        assert list(found) == list(state)


@pytest.mark.parametrize("key", MODEL_KEYS)
def test_under_each_key(key: str, tmp_path: Path) -> None:
    for root in both_forms({"step": 3, key: model().state_dict(), "x": torch.ones(1)}, tmp_path):
        keys, found = find_state_dict(root)
        assert keys == (key,)
        assert found is root[key]


def test_the_first_key_that_holds_tensors_wins(tmp_path: Path) -> None:
    tensors = {"w": torch.ones(2)}
    saved = {"model": tensors, "state_dict": tensors, "model_state": {}, "model_state_dict": None}
    for root in both_forms(saved, tmp_path):
        assert find_state_dict(root)[0] == ("state_dict",)


def test_tensors_of_rare_kinds_count(tmp_path: Path) -> None:
    saved = OrderedDict(
        sparse=torch.eye(3).to_sparse(),
        parameter=torch.nn.Parameter(torch.ones(2)),
        conjugate=torch.ones(2, dtype=torch.complex64).conj(),
        buffer=torch.nn.Buffer(torch.ones(2)),
    )
    for root in both_forms(saved, tmp_path):
        assert find_state_dict(root) == ((), root)


def test_extra_state_may_be_anything(tmp_path: Path) -> None:
    saved = {"model": {"fc.weight": torch.ones(2), "fc._extra_state": {"scale": 3}}}
    for root in both_forms(saved, tmp_path):
        assert find_state_dict(root)[0] == ("model",)


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({}, "it holds an empty dict"),
        ({"w": torch.ones(2), "step": 3}, "it holds a dict with the keys 'w', 'step'"),
        ({"model": {"_extra_state": 3}}, "a dict with the keys 'model'"),
        (dict.fromkeys(range(10), 0), "the keys 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"),
        ([torch.ones(2)], "it holds an object of type list"),
        (torch.ones(2), "it holds a tensor"),
        ({"state": {}, "param_groups": []}, "it holds the state of an optimizer"),
    ],
)
def test_what_has_no_state_dict(saved: Any, words: str, tmp_path: Path) -> None:
    for root in both_forms(saved, tmp_path):
        with pytest.raises(FormatError) as caught:
            find_state_dict(root, path="runs/a.pt")
        message = str(caught.value)
        assert message.startswith("no state dict of a model in runs/a.pt: it holds ")
        assert words in message
        assert message.endswith(f"under one of the keys {', '.join(MODEL_KEYS)}")
        assert caught.value.path == "runs/a.pt"


def test_a_module_that_was_saved_whole_is_named(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    root = read_outline(tmp_path / "module.pt").root
    with pytest.raises(
        FormatError, match=r"it holds an object of torch\.nn\.modules\.linear\.Linear"
    ):
        find_state_dict(root)


def test_no_torch_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"model": model().state_dict()}, path)
    script = (
        "import sys\n"
        "from fastckpt._contents.outline import read_outline\n"
        "from fastckpt._contents.state_dicts import find_state_dict\n"
        f"print(find_state_dict(read_outline({str(path)!r}).root)[0], 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout == "('model',) False\n"
