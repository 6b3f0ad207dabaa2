"""However it is written, the file is the one that torch.save writes."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.archives import (
    ID_RECORD,
    mask_serialization_id,
    records,
    torch_bytes,
    torch_writes_current_layout,
)
from tests.property.recipes import Recipe, build, recipes
from tests.specimens import fill, quiet

import fastckpt
from fastckpt._archive.pickling import pickle_object
from fastckpt._native import Commit

needs_current_layout = pytest.mark.skipif(
    not torch_writes_current_layout(),
    reason="torch before 2.7 lays its files out differently; ours are those of torch 2.7",
)
ALIGNMENTS = [2**power for power in range(16)]


def ours(obj: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    fastckpt.save(obj, file, **options)
    return file.getvalue()


def written(obj: Any, directory: str, *, sync: bool = False, **options: Any) -> bytes:
    """Write through the core itself, which has settings that `save` keeps to itself."""
    pickled = pickle_object(obj, 2)
    # The root folder of a file object's archive is "archive" too.
    path = Path(directory, "archive.pt")
    with Commit(sync=sync) as commit:
        result = commit.write_archive(path, pickled.data, pickled.storages, **options)
        commit.publish([path])
    data = path.read_bytes()
    assert len(data) == result.nbytes
    return data


@needs_current_layout
@settings(derandomize=True)
@given(recipes(), st.sampled_from(ALIGNMENTS))
def test_the_file_is_that_of_torch(recipe: Recipe, alignment: int) -> None:
    from torch.utils.serialization import config

    with quiet():
        obj = build(recipe)
        before = config.save.storage_alignment
        config.save.storage_alignment = alignment
        try:
            expected = torch_bytes(obj)
        finally:
            config.save.storage_alignment = before
        found = ours(obj, alignment=alignment)
    assert mask_serialization_id(found) == mask_serialization_id(expected)
    assert records(found)[ID_RECORD][20:] == records(expected)[ID_RECORD][20:]


@settings(derandomize=True)
@given(
    recipes(),
    st.sampled_from(ALIGNMENTS),
    st.integers(1, 8),
    st.integers(1, 20_000),
    st.booleans(),
    st.booleans(),
)
def test_nothing_about_the_writing_shows_in_the_file(
    recipe: Recipe, alignment: int, threads: int, chunk_nbytes: int, direct: bool, sync: bool
) -> None:
    with quiet(), tempfile.TemporaryDirectory() as directory:
        obj = build(recipe)
        found = written(
            obj,
            directory,
            sync=sync,
            alignment=alignment,
            threads=threads,
            chunk_nbytes=chunk_nbytes,
            direct=direct,
        )
        assert found == ours(obj, alignment=alignment)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("chunk_nbytes", [4096, 65_536, 1 << 20, 3_000_000])
@pytest.mark.parametrize("alignment", [64, 4096])
def test_records_of_many_chunks(
    direct: bool, chunk_nbytes: int, alignment: int, tmp_path: Path
) -> None:
    sizes = [5_000_001, 0, 1, 4096, 1 << 20, 65_535, 700_000]
    obj = [fill(torch.uint8, numel, seed) for seed, numel in enumerate(sizes)]
    expected = ours(obj, alignment=alignment)
    for threads in (1, 2, 5, 8):
        found = written(
            obj,
            str(tmp_path),
            alignment=alignment,
            threads=threads,
            chunk_nbytes=chunk_nbytes,
            direct=direct,
        )
        assert found == expected


@pytest.mark.parametrize("direct", [False, True])
def test_every_file_size_modulo_a_page(direct: bool, tmp_path: Path) -> None:
    """The tail of a direct write is padded to a page and cut off again."""
    for numel in range(0, 8192, 37):
        obj = fill(torch.uint8, numel)
        found = written(obj, str(tmp_path), direct=direct, threads=2, chunk_nbytes=4096)
        assert found == ours(obj)
        assert torch.equal(torch.load(tmp_path / "archive.pt"), obj)
