from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.archives import (
    ID_RECORD,
    current_bytes,
    mask_serialization_id,
    record_range,
    records,
    save_by_torch,
    torch_bytes,
    torch_writes_current_layout,
)
from tests.specimens import (
    SPECIMENS,
    Specimen,
    assert_same,
    can_save,
    dtypes,
    fill,
    objects,
    quiet,
)

import fastckpt


def saved_bytes(obj: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    fastckpt.save(obj, file, **options)
    return file.getvalue()


def assert_saves_as_torch(obj: Any) -> None:
    """Compare the whole file, both as a path and as a file object."""
    with quiet(), tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "model.pt")
        fastckpt.save(obj, path)
        ours = path.read_bytes()
        save_by_torch(obj, path)
        assert mask_serialization_id(ours) == mask_serialization_id(path.read_bytes())
        in_memory = saved_bytes(obj)
        assert mask_serialization_id(in_memory) == mask_serialization_id(current_bytes(obj))


# The file


@pytest.mark.parametrize("specimen", SPECIMENS, ids=lambda s: s.name)
def test_every_kind_of_object_gives_the_file_of_torch(specimen: Specimen) -> None:
    with quiet():
        assert_saves_as_torch(specimen.make())


@pytest.mark.parametrize("dtype", [d for d in dtypes() if can_save(d)], ids=str)
def test_every_dtype_gives_the_file_of_torch(dtype: torch.dtype) -> None:
    assert_saves_as_torch([fill(dtype, 5), fill(dtype, 0), fill(dtype, 1).reshape(())])


@given(objects())
def test_nested_objects_give_the_file_of_torch(obj: Any) -> None:
    assert_saves_as_torch(obj)


@pytest.mark.parametrize(
    "name",
    ["model.pt", "my.model.v1.pt", "with space.pt", "noextension", "größe.pt", "x" * 60 + ".bin"],
)
def test_the_root_folder_is_named_as_in_torch(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    obj = {"w": torch.arange(40.0)}
    fastckpt.save(obj, path)
    ours = path.read_bytes()
    save_by_torch(obj, path)
    assert mask_serialization_id(ours) == mask_serialization_id(path.read_bytes())


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_the_pickle_protocol_is_that_asked_for(protocol: int) -> None:
    obj = {"w": torch.ones(3)}
    ours = saved_bytes(obj, pickle_protocol=protocol)
    assert mask_serialization_id(ours) == mask_serialization_id(
        current_bytes(obj, pickle_protocol=protocol)
    )


@pytest.mark.skipif(
    not torch_writes_current_layout(), reason="torch 2.6 aligns to 64 bytes, always"
)
@given(objects(), st.sampled_from([1, 3, 8, 64, 100, 4096, 32768]))
def test_alignments_give_the_file_of_torch(obj: Any, alignment: int) -> None:
    from torch.utils.serialization import config

    before = config.save.storage_alignment
    config.save.storage_alignment = alignment
    try:
        expected = torch_bytes(obj)
        configured = saved_bytes(obj)
    finally:
        config.save.storage_alignment = before
    assert mask_serialization_id(configured) == mask_serialization_id(expected)
    assert saved_bytes(obj, alignment=alignment) == configured


@pytest.mark.parametrize("alignment", [1, 64, 512, 4096, 32768])
def test_storages_begin_at_multiples_of_the_alignment(alignment: int) -> None:
    archive = saved_bytes([torch.ones(3), torch.ones(5), torch.ones(7)], alignment=alignment)
    for key in range(3):
        assert record_range(archive, f"data/{key}").start % alignment == 0
    assert records(archive)[".storage_alignment"] == str(alignment).encode()


@given(objects())
def test_the_same_object_gives_the_same_bytes(obj: Any) -> None:
    assert saved_bytes(obj) == saved_bytes(obj)


def test_the_serialization_id_tells_that_we_wrote_it() -> None:
    digits = records(saved_bytes({"w": torch.ones(3)}))[ID_RECORD].decode()
    assert digits[:20] == "9" + "0" * 19
    assert len(digits) == 40
    assert digits.isdecimal()


@given(objects())
def test_the_second_half_of_the_serialization_id_is_that_of_torch(obj: Any) -> None:
    ours, torchs = records(saved_bytes(obj)), records(current_bytes(obj))
    assert ours[ID_RECORD][20:] == torchs[ID_RECORD][20:]


@given(objects())
def test_zip_tools_accept_the_file(obj: Any) -> None:
    with zipfile.ZipFile(io.BytesIO(saved_bytes(obj))) as archive:
        assert archive.testzip() is None


@pytest.mark.skipif(shutil.which("unzip") is None, reason="unzip is not installed")
def test_unzip_accepts_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    fastckpt.save({"w": torch.ones(1000), "e": torch.empty(0)}, path)
    result = subprocess.run(["unzip", "-t", path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("threads", [None, 1, 2, 7])
@pytest.mark.parametrize("sync", [True, False])
def test_threads_and_sync_do_not_change_the_file(
    threads: int | None, sync: bool, tmp_path: Path
) -> None:
    obj = [fill(torch.uint8, 3_000_001, seed=i) for i in range(3)]
    path = tmp_path / "archive.pt"
    fastckpt.save(obj, path, threads=threads, sync=sync)
    # Files without a name of their own have the root folder "archive" too.
    assert path.read_bytes() == saved_bytes(obj)


def test_checksums_are_written_although_torch_has_them_switched_off() -> None:
    expected = saved_bytes(torch.ones(3))
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        assert saved_bytes(torch.ones(3)) == expected
    finally:
        torch.serialization.set_crc32_options(before)


# Targets


def test_path_objects_and_strings_are_paths(tmp_path: Path) -> None:
    fastckpt.save(torch.ones(3), tmp_path / "a.pt")
    fastckpt.save(torch.ones(3), str(tmp_path / "b.pt"))
    assert torch.equal(torch.load(tmp_path / "a.pt"), torch.load(tmp_path / "b.pt"))


@pytest.mark.parametrize("target", [b"bytes.pt", 3, None])
def test_other_targets_raise_as_in_torch(target: Any) -> None:
    with pytest.raises(AttributeError, match="expected 'f' to be string, path, or a file-like"):
        fastckpt.save(torch.ones(3), target)


def test_file_objects_are_written_from_their_position_on_and_flushed(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    with path.open("wb") as file:
        file.write(b"head")
        fastckpt.save(torch.arange(9), file)
        assert path.stat().st_size > 4  # flushed
    assert path.read_bytes() == b"head" + saved_bytes(torch.arange(9))


def test_files_that_take_a_part_at_a_time_get_everything() -> None:
    class Slow(io.RawIOBase):
        data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            part = bytes(data)[:100]
            self.data += part
            return len(part)

    file = Slow()
    fastckpt.save(torch.arange(999), file)  # type: ignore[arg-type]
    assert file.data == saved_bytes(torch.arange(999))


def test_an_object_with_write_alone_is_enough() -> None:
    class Sink:
        def __init__(self) -> None:
            self.parts: list[bytes] = []

        def write(self, data: Any) -> None:
            self.parts.append(bytes(data))

    sink = Sink()
    fastckpt.save(torch.arange(9), sink)  # type: ignore[arg-type]
    assert b"".join(sink.parts) == saved_bytes(torch.arange(9))


def test_an_error_of_the_file_object_is_raised() -> None:
    class Full:
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as error:
        fastckpt.save(torch.arange(9), Full())  # type: ignore[arg-type]
    assert error.value.errno == errno.ENOSPC


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "model.pt"
    with pytest.raises(FileNotFoundError) as error:
        fastckpt.save(torch.ones(3), path)
    assert error.value.errno == errno.ENOENT
    assert "missing" in str(error.value.filename)
    assert os.listdir(tmp_path) == []


def test_a_directory_is_no_target(tmp_path: Path) -> None:
    target = tmp_path / "model.pt"
    target.mkdir()
    with pytest.raises(OSError, match=r"model\.pt"):
        fastckpt.save(torch.ones(3), target)
    assert os.listdir(tmp_path) == ["model.pt"]


@pytest.mark.parametrize("alignment", [0, -64, 32769, 65536])
def test_alignments_out_of_range_are_refused(alignment: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"alignment must be 1 to 32768 bytes, not {alignment}"):
        fastckpt.save(torch.ones(3), tmp_path / "model.pt", alignment=alignment)
    assert os.listdir(tmp_path) == []


def test_a_pool_without_threads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="threads must be at least 1"):
        fastckpt.save(torch.ones(3), tmp_path / "model.pt", threads=0)


# What was there before


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    fastckpt.save({"old": torch.ones(3)}, path)
    return path


def test_an_object_that_cannot_be_pickled_leaves_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        fastckpt.save({"new": torch.ones(3), "bad": lambda: None}, saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["model.pt"]


def test_an_error_in_progress_leaves_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()

    def stop(done: int, total: int) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        fastckpt.save(torch.ones(1_000_000), saved, progress=stop)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["model.pt"]


def test_tensors_that_map_the_old_file_keep_their_values(saved: Path) -> None:
    mapped = [torch.load(saved, mmap=True)["old"], fastckpt.load(saved, mmap=True)["old"]]
    fastckpt.save({"old": torch.zeros(3)}, saved)
    assert all(torch.equal(tensor, torch.ones(3)) for tensor in mapped)


def test_a_mapped_state_dict_can_be_saved_over_its_own_file(saved: Path) -> None:
    state = fastckpt.load(saved, mmap=True)
    fastckpt.save(state, saved)
    assert torch.equal(torch.load(saved)["old"], torch.ones(3))


def test_a_new_file_has_the_mode_of_a_plain_open(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        fastckpt.save(torch.ones(3), tmp_path / "model.pt")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "model.pt").stat().st_mode) == 0o640


def test_a_replaced_file_keeps_its_mode(saved: Path) -> None:
    saved.chmod(0o604)
    fastckpt.save(torch.ones(3), saved)
    assert stat.S_IMODE(saved.stat().st_mode) == 0o604


# Neighbours


def test_nothing_of_torchs_state_changes(tmp_path: Path) -> None:
    rng, threads = torch.get_rng_state(), torch.get_num_threads()
    fastckpt.save({"w": torch.ones(1000)}, tmp_path / "model.pt")
    fastckpt.load(tmp_path / "model.pt")
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.get_num_threads() == threads


def test_progress_counts_up_to_the_whole(tmp_path: Path) -> None:
    calls: list[tuple[int, int, int]] = []

    def note(done: int, total: int) -> None:
        calls.append((done, total, threading.get_ident()))

    fastckpt.save(torch.ones(4_000_000), tmp_path / "model.pt", progress=note)
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert done[-1] == calls[-1][1] >= 16_000_000
    assert len({call[1] for call in calls}) == 1
    assert {call[2] for call in calls} == {threading.get_ident()}


def test_skip_data_is_left_to_torch() -> None:
    with torch.serialization.skip_data():
        assert saved_bytes({"w": torch.ones(3)}) == torch_bytes({"w": torch.ones(3)})


def test_other_threads_run_meanwhile(tmp_path: Path) -> None:
    """While 400 MB are written, a thread that wants the GIL gets it again and again."""
    tensor = torch.zeros(100_000_000)
    turns = 0
    stop = threading.Event()

    def count() -> None:
        nonlocal turns
        while not stop.is_set():
            turns += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    before = turns
    fastckpt.save(tensor, tmp_path / "model.pt", sync=False)
    inside = turns - before
    stop.set()
    thread.join()
    # With the GIL held it would have one turn, before the writing or after it.
    assert inside > 5


def test_ctrl_c_ends_a_save_and_removes_its_temporary_file(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, time, torch, fastckpt
        tensor = torch.zeros(25_000_000)
        def note(done, total):
            if note.first:
                note.first = False
                print("started", flush=True)
        note.first = True
        try:
            while True:
                fastckpt.save(tensor, sys.argv[1], progress=note)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """
    )
    path = tmp_path / "model.pt"
    with subprocess.Popen(
        [sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "started\n"
            child.send_signal(signal.SIGINT)
            assert child.stdout.readline() == "interrupted\n"
            assert child.wait(timeout=200) == 0
        finally:
            child.kill()  # Popen would wait for it, for ever
    assert [name for name in os.listdir(tmp_path) if name != "model.pt"] == []


@pytest.mark.cuda
def test_cuda_storages_give_the_file_of_torch(tmp_path: Path) -> None:
    base = torch.arange(10_000_000, device="cuda")
    obj = {"view": base[3:], "base": base, "host": torch.ones(3), "half": base.half()}
    assert_saves_as_torch(obj)
    fastckpt.save(obj, tmp_path / "model.pt")
    assert_same(torch.load(tmp_path / "model.pt", map_location="cpu")["host"], torch.ones(3))


def test_raw_file_that_would_block_raises() -> None:
    class Full(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int | None:
            return None

    with pytest.raises(BlockingIOError):
        fastckpt.save({"a": torch.zeros(3)}, Full())  # type: ignore[arg-type]


def test_threads_do_not_change_what_a_file_object_gets() -> None:
    state = {"a": torch.arange(3_000_000)}
    written = []
    for threads in (1, 3, None):
        file = io.BytesIO()
        fastckpt.save(state, file, threads=threads)
        written.append(file.getvalue())
    assert written[0] == written[1] == written[2]
