"""`weights_only`: what is built, what is refused, and that nothing is executed."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.archives import records, torch_bytes, with_records
from tests.loaded_files import load_bytes
from tests.specimens import SPECIMENS, Labelled, Specimen, assert_same, quiet

import fastckpt
from fastckpt import FormatError, UnsafePickleError


class Planted:
    """Runs a command where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(2), "x": Planted(tmp_path / "ran")}, path)
    with pytest.raises(UnsafePickleError) as error:
        fastckpt.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "posix.mkdir" in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("specimen", [s for s in SPECIMENS if not s.is_safe], ids=lambda s: s.name)
def test_what_torch_refuses_is_refused(specimen: Specimen) -> None:
    with quiet():
        archive = torch_bytes(specimen.make())
        try:
            expected = torch.load(io.BytesIO(archive), weights_only=True)
        except pickle.UnpicklingError:
            # Both what torch raises and what we document.
            with pytest.raises(UnsafePickleError, match="Weights only load failed"):
                load_bytes(archive)
            with pytest.raises(pickle.UnpicklingError):
                load_bytes(archive)
        else:  # some versions of torch allow nested tensors
            assert_same(load_bytes(archive), expected)


def test_a_refusal_has_the_advice_of_torch() -> None:
    archive = torch_bytes(torch.ones(3).as_subclass(Labelled))
    with pytest.raises(UnsafePickleError, match=r"add_safe_globals\(\[.*Labelled\]\)"):
        load_bytes(archive)


def test_safe_globals_are_honoured() -> None:
    archive = torch_bytes({"t": torch.ones(3).as_subclass(Labelled)})
    with torch.serialization.safe_globals([Labelled]):
        loaded = load_bytes(archive)["t"]
    assert type(loaded) is Labelled
    assert torch.equal(loaded.as_subclass(torch.Tensor), torch.ones(3))


def test_false_is_pythons_own_pickle() -> None:
    class_free = [range(3), slice(1, 2), Planted]
    assert load_bytes(torch_bytes(class_free), weights_only=False) == class_free


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_false_takes_every_pickle_protocol(protocol: int) -> None:
    obj = {"w": torch.arange(3), "x": range(4)}
    assert_same(load_bytes(torch_bytes(obj, pickle_protocol=protocol), weights_only=False), obj)


@pytest.mark.parametrize(
    ("variables", "argument", "is_loaded"),
    [
        ({}, True, False),
        ({}, None, False),
        ({}, False, True),
        ({"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}, False, False),
        ({"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "yes"}, None, True),
        # What the caller says is stronger: the default is True, not silence.
        ({"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}, True, False),
    ],
)
def test_environment(
    variables: dict[str, str],
    argument: bool | None,
    is_loaded: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    archive = torch_bytes(range(3))
    if is_loaded:
        assert load_bytes(archive, weights_only=argument) == range(3)
    else:
        with pytest.raises(UnsafePickleError):
            load_bytes(archive, weights_only=argument)


def test_contradicting_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(RuntimeError, match="Only one of"):
        load_bytes(torch_bytes(1))


def test_bad_sparse_indices_are_found() -> None:
    with quiet():
        sparse = torch.sparse_coo_tensor(torch.tensor([[0, 1]]), torch.ones(2), (2,))
        bad = with_records(
            torch_bytes(sparse), {"data/0": (0).to_bytes(8, "little") + (9).to_bytes(8, "little")}
        )
        with pytest.raises(FormatError, match=r"BytesIO.*size is inconsistent with indices"):
            load_bytes(bad)
        # Nothing of it is left for the next load to stumble over.
        load_bytes(torch_bytes(sparse))


def test_an_object_that_cannot_be_built_names_the_file() -> None:
    with quiet():
        archive = torch_bytes(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
        broken = records(archive)["data.pkl"].replace(b"per_tensor_affine", b"per_channel_affine")
        with pytest.raises(FormatError, match=r"BytesIO.*cannot be built"):
            load_bytes(with_records(archive, {"data.pkl": broken}))


def test_default_device_does_not_matter_to_an_unpickler(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    # Not a sparse tensor: torch rebuilds those on the default device, and torch 2.6 then fails.
    obj = {"w": torch.arange(3.0), "empty": torch.empty(0), "unsafe": range(3)}
    torch.save(obj, path)
    with torch.device("meta"):
        loaded = fastckpt.load(path, weights_only=False)
    assert_same(loaded, obj)
