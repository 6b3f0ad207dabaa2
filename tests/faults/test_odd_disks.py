"""Disks on which something usual is missing: direct I/O, small sectors, second names for files."""

from __future__ import annotations

import errno
import functools
import io
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tests.archives import mask_serialization_id, torch_bytes
from tests.faults.disks import (
    loop_disk,
    loop_image,
    memory_disk,
    need_loop_disks,
    need_memory_disks,
)
from tests.property.test_same_bytes import needs_current_layout
from tests.specimens import assert_same, fill

import fastckpt
from fastckpt._archive.pickling import pickle_object
from fastckpt._native import Commit

# With storages where they come, the file grows by a byte with each byte of a tensor: its size takes
# on every remainder of a page and of a sector, twice.
ALIGNMENT = 1
TAILS = range(8194)
# Prime, so that the remainders are of all kinds.
STRIDE = 61
PAGE_NBYTES = 4096
SECTOR_NBYTES = 512
# Of an open file, an errno of its refusal to be written to directly; None where it is not refused.
Refusal = int | None


@functools.cache
def in_memory(numel: int) -> bytes:
    """Return the file of a tensor of this size, written to memory."""
    file = io.BytesIO()
    fastckpt.save(tensor(numel), file, alignment=ALIGNMENT)
    return file.getvalue()


def tensor(numel: int) -> torch.Tensor:
    return fill(torch.uint8, numel, seed=numel)


def written(directory: Path, numel: int, *, direct: bool, chunk_nbytes: int | None = None) -> bytes:
    """Write without fsync, which would take most of the time and changes no byte."""
    # The folder in the archive of a file in memory has this name too.
    path = directory / "archive.pt"
    pickled = pickle_object(tensor(numel), 2)
    with Commit(sync=False) as commit:
        commit.write_archive(
            path,
            pickled.data,
            pickled.storages,
            alignment=ALIGNMENT,
            direct=direct,
            chunk_nbytes=chunk_nbytes,
        )
        commit.publish([path])
    return path.read_bytes()


def direct_write(directory: Path, nbytes: int) -> Refusal:
    """Write so many bytes directly, from memory that is aligned to a page."""
    path = directory / "probe"
    with mmap.mmap(-1, PAGE_NBYTES) as memory, memoryview(memory) as view:
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
        except OSError as error:
            return error.errno
        try:
            os.write(file, view[:nbytes])
        except OSError as error:
            return error.errno
        finally:
            os.close(file)
    return None


@contextmanager
def odd_disk(kind: str, directory: Path) -> Iterator[Path]:
    if kind == "ramfs":
        need_memory_disks()
        with memory_disk(directory, "ramfs") as path:
            # No direct I/O at all.
            assert direct_write(path, PAGE_NBYTES) == errno.EINVAL
            yield path
    else:
        need_loop_disks(kind)
        with loop_image(directory, kind, sector=PAGE_NBYTES) as path:
            # Direct I/O, but not by the half kilobyte.
            assert direct_write(path, PAGE_NBYTES) is None
            assert direct_write(path, SECTOR_NBYTES) == errno.EINVAL
            yield path


@pytest.mark.slow
def test_the_sizes_are_of_all_kinds() -> None:
    sizes = [len(in_memory(numel)) for numel in TAILS]
    assert len({size % PAGE_NBYTES for size in sizes}) == PAGE_NBYTES
    assert len({size % SECTOR_NBYTES for size in sizes}) == SECTOR_NBYTES


@pytest.mark.slow
@needs_current_layout
def test_every_size_is_as_torch_writes_it() -> None:
    from torch.utils.serialization import config

    before = config.save.storage_alignment
    config.save.storage_alignment = ALIGNMENT
    try:
        for numel in TAILS:
            by_torch = torch_bytes(tensor(numel))
            assert mask_serialization_id(by_torch) == mask_serialization_id(in_memory(numel)), numel
    finally:
        config.save.storage_alignment = before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ramfs", "ext4"])
def test_every_size_is_written_as_anywhere(kind: str, tmp_path: Path) -> None:
    with odd_disk(kind, tmp_path) as disk:
        for numel in TAILS:
            assert written(disk, numel, direct=True) == in_memory(numel), numel


@pytest.mark.parametrize("kind", ["ramfs", "ext4", "xfs"])
def test_a_save_in_small_pieces_is_written_as_anywhere(kind: str, tmp_path: Path) -> None:
    with odd_disk(kind, tmp_path) as disk:
        for numel in TAILS[::STRIDE]:
            for direct in (False, True):
                found = written(disk, numel, direct=direct, chunk_nbytes=PAGE_NBYTES)
                assert found == in_memory(numel), (numel, direct)


@pytest.mark.parametrize("kind", ["ramfs", "ext4", "xfs"])
def test_a_durable_save_is_written_as_anywhere(kind: str, tmp_path: Path) -> None:
    with odd_disk(kind, tmp_path) as disk:
        path = disk / "archive.pt"
        for numel in TAILS[::STRIDE]:
            fastckpt.save(tensor(numel), path, alignment=ALIGNMENT)
            assert path.read_bytes() == in_memory(numel), numel
        save_a_step_again_and_again(disk / "run")


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_large_sectors_are_read_past_the_cache(kind: str, tmp_path: Path) -> None:
    need_loop_disks(kind)
    numels = TAILS[::STRIDE]
    with loop_disk(tmp_path, kind, sector=PAGE_NBYTES) as disk:
        for numel in numels:
            fastckpt.save(tensor(numel), disk.path / f"{numel}.pt", alignment=ALIGNMENT)
        disk.remount()
        for numel in numels:
            assert_same(fastckpt.load(disk.path / f"{numel}.pt"), tensor(numel))
        disk.remount()
        assert fastckpt.verify(disk.path).ok


def test_a_file_system_without_hard_links(tmp_path: Path) -> None:
    """What a save replaces cannot be kept under a second name: it is moved out of the way."""
    need_loop_disks("exfat")
    with loop_disk(tmp_path, "exfat", 64 << 20) as disk:
        (disk.path / "one").touch()
        with pytest.raises(PermissionError):
            os.link(disk.path / "one", disk.path / "two")
        save_a_step_again_and_again(disk.path / "run")
        disk.remount()
        assert fastckpt.find_last_good_step(disk.path / "run", verify="full") == 7


def save_a_step_again_and_again(directory: Path) -> None:
    for number in range(4):
        model, optimizer = {"w": torch.full((1000,), number)}, {"m": fill(torch.uint8, number)}
        fastckpt.save_checkpoint(directory, 7, model, optimizer, {"n": number})
        found = fastckpt.load_checkpoint(directory, 7, "cpu", load_optimizer=True)
        assert_same(list(found), [model, optimizer, {"n": number}])
        assert fastckpt.verify(directory).ok
        assert len(os.listdir(directory)) == 4
        assert not any(name.startswith(".") for name in os.listdir(directory))
