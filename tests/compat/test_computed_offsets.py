"""torch computes where records lie instead of reading it: our files must lie just so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.archives import record_range, torch_writes_current_layout
from tests.specimens import assert_same, fill

import fastckpt

pytestmark = pytest.mark.skipif(
    not torch_writes_current_layout(), reason="torch before 2.7 computes no offsets"
)
ALIGNMENTS = [1, 64, 512, 4096, 32768]


def storages() -> dict[str, torch.Tensor]:
    """Make storages of sizes around the alignments, empty ones among them."""
    sizes = [0, 1, 63, 64, 65, 0, 4095, 4096, 4097, 100_000, 3]
    return {f"layer.{i}": fill(torch.uint8, n, seed=i) for i, n in enumerate(sizes)} | {
        f"more.{i}": torch.full((), float(i)) for i in range(20)
    }


@pytest.fixture
def computing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let torch.load compute offsets, and compare each with the one that it would read."""
    from torch.utils.serialization import config

    monkeypatch.setenv("TORCH_SERIALIZATION_DEBUG", "1")
    before = config.load.calculate_storage_offsets
    config.load.calculate_storage_offsets = True
    yield
    config.load.calculate_storage_offsets = before


@pytest.mark.usefixtures("computing")
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_torch_computes_the_offsets_of_our_files(alignment: int, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    fastckpt.save(storages(), path, alignment=alignment)
    assert_same(torch.load(path, mmap=True), storages())
    assert_same(fastckpt.load(path, mmap=True), storages())


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_fake_tensors_say_where_their_storages_lie(alignment: int, tmp_path: Path) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    path = tmp_path / "model.pt"
    fastckpt.save(storages(), path, alignment=alignment)
    archive = path.read_bytes()
    for load in (torch.load, fastckpt.load):
        with FakeTensorMode():
            found: dict[str, Any] = load(path)
        for key, (name, tensor) in enumerate(found.items()):
            expected = record_range(archive, f"data/{key}").start
            assert tensor.untyped_storage()._checkpoint_offset == expected, name


def test_an_offset_is_where_the_bytes_are(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    fastckpt.save(storages(), path)
    archive = path.read_bytes()
    on_meta = fastckpt.load(path, map_location="meta")
    for name, tensor in storages().items():
        offset = on_meta[name].untyped_storage()._checkpoint_offset
        assert archive[offset:].startswith(bytes(tensor.view(-1).view(torch.uint8).tolist()))
