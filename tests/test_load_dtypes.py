"""Files with dtypes that the installed torch may be too old for."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

import fastckpt
from fastckpt import ModelExporter, UnsafePickleError

NEW = "float8_e5m2fnuz"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a dtype of a later torch."""
    path = tmp_path / "new.pt"
    weight = torch.zeros(4, dtype=torch.uint8).view(getattr(torch, NEW))
    torch.save({"weight": weight, "bias": torch.ones(2)}, path)
    monkeypatch.delattr(torch, NEW)
    return path


def message(path: Path) -> str:
    return (
        f"{path} has torch.{NEW}, which the installed torch {torch.__version__} does not know; "
        "load it with a newer torch"
    )


@pytest.mark.parametrize("weights_only", [True, False])
def test_refused_with_the_error_that_torch_raises(path: Path, weights_only: bool) -> None:
    with pytest.raises(pickle.UnpicklingError) as error:
        fastckpt.load(path, weights_only=weights_only)
    assert isinstance(error.value, UnsafePickleError)
    assert error.value.path == str(path)
    assert str(error.value) == message(path)


def test_a_bare_dtype_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new.pt"
    torch.save({"dtype": getattr(torch, NEW), "weight": torch.ones(2)}, path)
    monkeypatch.delattr(torch, NEW)
    with pytest.raises(UnsafePickleError) as error:
        fastckpt.load(path)
    assert str(error.value) == message(path)


def test_looking_needs_no_such_torch(path: Path) -> None:
    assert fastckpt.verify(path).ok
    contents = fastckpt.inspect(path)
    assert isinstance(contents, fastckpt.FileContents)
    assert [(row.name, row.dtype) for row in contents.tensors] == [
        ("weight", NEW),
        ("bias", "float32"),
    ]


def test_an_average_writes_nothing(path: Path, tmp_path: Path) -> None:
    for work in (
        lambda: fastckpt.average_checkpoints([path, path]),
        lambda: fastckpt.average_files([path, path], tmp_path / "out.pt"),
    ):
        with pytest.raises(UnsafePickleError) as error:
            work()
        assert str(error.value) == message(path)
    assert not (tmp_path / "out.pt").exists()


def test_an_export_writes_nothing(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsafePickleError) as error:
        ModelExporter.export_inference_checkpoint(path, tmp_path / "out.pt")
    assert str(error.value) == message(path)
    assert not (tmp_path / "out.pt").exists()
