"""`fastckpt.verify`: what it finds in files, steps and directories."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.faults.children import NOBODY, run_in_child, working_in

import fastckpt
from fastckpt import _native
from fastckpt._steps.survey import StepFiles, StepName, parse_name
from fastckpt._verify.report import FileReport, Status, StepReport, VerifyReport, worst


def write_step(directory: Path, step: int, ranks: Sequence[int] = ()) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    weights = {"wte": torch.arange(64.0), "head.weight": torch.ones(3, 5)}
    torch.save(weights, directory / f"model_{step:06d}.pt")
    (directory / f"meta_{step:06d}.json").write_text(json.dumps({"step": step}, indent=2))
    for rank in ranks:
        torch.save({"state": {0: {"exp_avg": torch.zeros(9)}}}, shard(directory, step, rank))


def shard(directory: Path, step: int, rank: int) -> Path:
    return directory / f"optim_{step:06d}_rank{rank}.pt"


def flip_bit(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def flip_payload(path: Path, payload: bytes) -> None:
    flip_bit(path, 8 * path.read_bytes().index(payload))


WTE_BYTES = struct.pack("<64f", *range(64))


# Files


def test_good_file(tmp_path: Path) -> None:
    path = tmp_path / "some.pt"
    torch.save({"w": torch.arange(10.0)}, path)

    report = fastckpt.verify(path)

    (file,) = report.files
    assert report.ok
    assert report.exit_code == 0
    assert (file.path, file.role, file.status) == (str(path), "other", Status.GOOD)
    assert file.nbytes == path.stat().st_size == report.nbytes
    assert (file.checksums, file.headers_covered, file.damages) == ("all", True, ())
    assert report.steps == ()


def test_damage_names_tensor_record_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model_000007.pt"
    write_step(tmp_path, 7)
    start = path.read_bytes().index(WTE_BYTES)
    flip_bit(path, 8 * (start + 100))

    (damage,) = fastckpt.verify(path).damages

    assert damage.path == str(path)
    assert damage.record == "data/0"
    assert damage.tensors == ("wte",)
    assert (damage.offset, damage.nbytes) == (start, len(WTE_BYTES))
    assert damage.expected is not None
    assert damage.expected != damage.found


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt"
    torch.save({"w": torch.tensor([1.5])}, path)
    good = path.read_bytes()
    missed = []
    for bit in range(8 * len(good)):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        # One thread: starting more takes longer than reading a kilobyte.
        if fastckpt.verify(path, threads=1).exit_code != 1:
            missed.append(bit)
    assert missed == []


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt"
    torch.save({"w": torch.tensor([1.5])}, path)
    good = path.read_bytes()
    for nbytes in range(len(good)):
        path.write_bytes(good[:nbytes])
        assert fastckpt.verify(path, threads=1).exit_code == 1, nbytes


def test_quick_finds_what_is_missing_but_reads_no_tensor(tmp_path: Path) -> None:
    write_step(tmp_path, 1)
    path = tmp_path / "model_000001.pt"
    flip_payload(path, WTE_BYTES)
    assert fastckpt.verify(path, quick=True).ok
    os.truncate(path, path.stat().st_size - 1)
    assert fastckpt.verify(path, quick=True).exit_code == 1


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"not a checkpoint", b"PK\3\4"])
def test_junk_is_damage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "junk.pt"
    path.write_bytes(content)
    report = fastckpt.verify(path)
    assert report.status is Status.DAMAGED
    assert len(report.damages) >= 1
    assert report.damages[0].detail


def write_legacy(path: Path) -> None:
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False)


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for name in ("storages", "tensors", "pickle"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())


@pytest.mark.parametrize("write", [write_legacy, write_tar])
def test_old_formats_have_no_checksums(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "old.pt"
    write(path)
    report = fastckpt.verify(path)
    (file,) = report.files
    assert report.status is Status.UNCHECKED
    assert "no checksums in this format" in str(file.message)
    assert report.ok
    assert report.status.exit_code(strict=True) == 5


def test_a_writer_that_switched_checksums_off(tmp_path: Path) -> None:
    path = tmp_path / "some.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    report = fastckpt.verify(path)
    assert (report.status, report.files[0].checksums) == (Status.UNCHECKED, "none")
    os.truncate(path, 900)
    assert fastckpt.verify(path).status is Status.DAMAGED


def write_torchscript(path: Path) -> None:
    class Scale(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(64.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * x

    with warnings.catch_warnings():
        # torch deprecates TorchScript; the files are there.
        warnings.simplefilter("ignore")
        module = torch.jit.trace(Scale(), torch.ones(64))  # type: ignore[no-untyped-call]
        module.save(str(path))


def test_torchscript_headers_are_not_covered(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    write_torchscript(path)
    (file,) = fastckpt.verify(path).files
    assert (file.status, file.nbytes) == (Status.GOOD, path.stat().st_size)
    assert file.records > 3
    assert not file.headers_covered
    assert "not covered" in str(file.message)
    assert fastckpt.verify(path, quick=True).ok


def test_torchscript_payloads_are_covered(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    write_torchscript(path)
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        contents = {info.filename: archive.read(info) for info in records}
    assert zipfile.ZIP_DEFLATED in {info.compress_type for info in records}
    for info in records:
        header = good[info.header_offset : info.header_offset + 30]
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        # Every byte would take half a minute; a stride that is no power of two meets all bits.
        for offset in range(start, start + info.compress_size, 7):
            flipped = bytearray(good)
            flipped[offset] ^= 1 << offset % 8
            path.write_bytes(flipped)
            damages = fastckpt.verify(path).damages
            if info.compress_type == zipfile.ZIP_DEFLATED and not damages:
                # The last byte of a deflated record has bits that nobody uses.
                with zipfile.ZipFile(path) as archive:
                    assert archive.read(info.filename) == contents[info.filename], offset
                continue
            (damage,) = damages
            assert damage.record == info.filename.partition("/")[2], offset


def test_a_bomb_in_torchscript_is_not_inflated(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/constants.pkl", b"")
        archive.writestr("bomb/code/bomb.py", bytes(65 << 20))
    (damage,) = fastckpt.verify(path).damages
    assert damage.detail == f"compressed, and {65 << 20} bytes large when inflated"


def test_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "model_000001.pt").mkdir()
    report = fastckpt.verify(tmp_path)
    details = {Path(damage.path).name: damage.detail for damage in report.damages}
    assert details == {
        "pipe.pt": "a named pipe, not a file",
        "model_000001.pt": "a directory, not a file",
    }


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    report = fastckpt.verify([tmp_path / "no.pt", tmp_path / "no" / "such"])
    assert [file.status for file in report.files] == [Status.NOT_FOUND] * 2
    assert (report.ok, report.exit_code) == (False, 4)


def test_an_empty_directory_holds_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    report = fastckpt.verify(tmp_path)
    assert report.exit_code == 4
    assert "no checkpoint in this directory" in str(report.files[0].message)


def test_a_failing_disk_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str, **_: object) -> object:
        raise OSError(errno.EIO, "Input/output error", path)

    write_step(tmp_path, 1)
    monkeypatch.setattr(_native, "verify_file", fail)
    report = fastckpt.verify(tmp_path)
    assert report.exit_code == 6
    assert [file.message for file in report.files] == ["Input/output error", None]
    assert report.steps[0].status is Status.IO_ERROR


def test_unreadable_directory(tmp_path: Path) -> None:
    write_step(tmp_path / "open", 1)
    (tmp_path / "shut").mkdir(mode=0)
    tmp_path.chmod(0o755)

    def work() -> list[int]:
        report = fastckpt.verify(".")
        return [report.exit_code, len(report.steps)]

    # Root may read everything, so somebody else looks.
    with working_in(tmp_path):
        outcome = run_in_child(work, user=NOBODY if os.geteuid() == 0 else None)
    assert outcome.ok, outcome
    assert outcome.value == [6, 1]


# Meta files


@pytest.mark.parametrize(
    "text",
    [
        '{"min_val_bpb": Infinity, "x": NaN, "y": -Infinity}',
        "{}",
        '{"é": [1, null]}',
        "[" * 50 + "]" * 50,
    ],
)
def test_meta_that_python_reads_is_good(tmp_path: Path, text: str) -> None:
    write_step(tmp_path, 1)
    (tmp_path / "meta_000001.json").write_text(text, encoding="utf-8")
    assert fastckpt.verify(tmp_path).ok


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"", "the file is empty"),
        (b'{"step": 1', "not JSON: "),
        (b'{"step": 1}\xff', "not JSON: "),
        (b"\0" * 100, "not JSON: "),
        (b"[" * 200_000, "not JSON that Python reads: nested too deeply"),
    ],
)
def test_meta_that_is_not_json_is_damage(tmp_path: Path, content: bytes, detail: str) -> None:
    write_step(tmp_path, 1)
    path = tmp_path / "meta_000001.json"
    path.write_bytes(content)
    report = fastckpt.verify(tmp_path)
    (damage,) = report.damages
    assert damage.path == str(path)
    assert damage.detail.startswith(detail)
    assert report.steps[0].status is Status.DAMAGED


def test_a_huge_meta_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "meta_000001.json"
    path.touch()
    os.truncate(path, 1 << 40)
    (damage,) = fastckpt.verify(path).damages
    assert "it has 1099511627776 bytes, more than 67108864" in damage.detail


# Steps


def test_complete_steps(tmp_path: Path) -> None:
    write_step(tmp_path, 100, ranks=(0, 1))
    write_step(tmp_path, 1_000_000)

    report = fastckpt.verify(tmp_path)

    first, second = report.steps
    assert report.ok
    assert (first.step, first.ranks, first.status) == (100, (0, 1), Status.GOOD)
    assert [Path(file.path).name for file in first.files] == [
        "model_000100.pt",
        "meta_000100.json",
        "optim_000100_rank0.pt",
        "optim_000100_rank1.pt",
    ]
    assert (second.step, second.ranks) == (1_000_000, ())
    assert report.newest_good_steps == {str(tmp_path): 1_000_000}


@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        ("meta_000100.json", "meta_000100.json"),
        ("model_000100.pt", "model_000100.pt"),
        ("optim_000100_rank0.pt", "optim_000100_rank0.pt"),
        ("optim_000100_rank1.pt", "optim_000100_rank1.pt"),
        # How many ranks there were, the names do not say.
        ("optim_000100_rank2.pt", None),
    ],
)
def test_incomplete_steps(tmp_path: Path, gone: str, missing: str | None) -> None:
    write_step(tmp_path, 100, ranks=(0, 1, 2))
    write_step(tmp_path, 50)
    (tmp_path / gone).unlink()
    report = fastckpt.verify(tmp_path)
    assert report.steps[1].missing == ((missing,) if missing else ())
    assert report.exit_code == (3 if missing else 0)
    assert report.newest_good_steps == {str(tmp_path): 50 if missing else 100}


def test_a_dangling_link_is_a_missing_file(tmp_path: Path) -> None:
    write_step(tmp_path, 100)
    (tmp_path / "model_000100.pt").unlink()
    (tmp_path / "model_000100.pt").symlink_to(tmp_path / "gone.pt")
    report = fastckpt.verify(tmp_path)
    assert report.exit_code == 3
    assert report.steps[0].missing == ("model_000100.pt",)


def test_a_rank_of_any_size_ends_soon(tmp_path: Path) -> None:
    write_step(tmp_path, 1)
    shard(tmp_path, 1, 10**17).write_bytes((tmp_path / "model_000001.pt").read_bytes())
    (step,) = fastckpt.verify(tmp_path, quick=True).steps
    assert len(step.missing) == 9
    assert step.missing[0] == "optim_000001_rank0.pt"
    assert step.missing[-1] == f"optim_000001_rank*.pt of {10**17 - 8} more ranks"


@given(
    model=st.booleans(),
    meta=st.booleans(),
    ranks=st.sets(st.integers(0, 6)),
    step=st.integers(0, 10**7),
)
def test_missing_files_are_those_of_a_naive_count(
    model: bool, meta: bool, ranks: set[int], step: int
) -> None:
    files = StepFiles(step)
    names = [f"model_{step:06d}.pt"] * model + [f"meta_{step:06d}.json"] * meta
    names += [f"optim_{step:06d}_rank{rank}.pt" for rank in ranks]
    for name in names:
        named = parse_name(name)
        assert named is not None
        assert named.step == step
        files.add(name, named)
    wanted = {f"model_{step:06d}.pt", f"meta_{step:06d}.json"}
    wanted |= {f"optim_{step:06d}_rank{rank}.pt" for rank in range(max(ranks, default=-1) + 1)}
    assert set(files.missing()) == wanted - set(names)
    assert set(files.names()) == set(names)


@pytest.mark.parametrize(
    "name",
    [
        "model_00100.pt",
        "model_0000100.pt",
        "model_000100.pt.bak",
        "tmp_model_000100.pt",
        "model_-00100.pt",
        "model_\u0660\u0660\u0660\u0661\u0660\u0660.pt",
        "optim_000100_rank01.pt",
        "optim_000100.pt",
        "meta_000100.pt",
        "model_000100.pt\n",
    ],
)
def test_names_that_no_loader_would_open(name: str) -> None:
    assert parse_name(name) is None


def test_names() -> None:
    assert parse_name("model_000100.pt") == StepName("model", 100)
    assert parse_name("meta_1234567.json") == StepName("meta", 1234567)
    assert parse_name("optim_000000_rank12.pt") == StepName("optimizer", 0, 12)


# Directories


def test_directory_of_model_tags(tmp_path: Path) -> None:
    write_step(tmp_path / "d12", 100)
    write_step(tmp_path / "d20", 200, ranks=(0,))
    (tmp_path / "d20" / "meta_000200.json").unlink()
    report = fastckpt.verify(tmp_path)
    assert [(Path(step.directory).name, step.step) for step in report.steps] == [
        ("d12", 100),
        ("d20", 200),
    ]
    assert report.newest_good_steps == {
        str(tmp_path / "d12"): 100,
        str(tmp_path / "d20"): None,
    }
    assert report.exit_code == 3


def test_any_directory_of_anyone(tmp_path: Path) -> None:
    deep = tmp_path / "version_0" / "checkpoints"
    deep.mkdir(parents=True)
    for name in ("epoch=0-step=10.ckpt", "best.pth", "weights.pt"):
        torch.save({"w": torch.arange(64.0)}, deep / name)
    (deep / "notes.txt").write_text("not a checkpoint")
    hidden = tmp_path / ".cache"
    hidden.mkdir()
    (hidden / "broken.pt").write_bytes(b"junk")
    flip_payload(deep / "best.pth", WTE_BYTES)

    report = fastckpt.verify(tmp_path)

    statuses = {Path(file.path).name: file.status for file in report.files}
    assert statuses == {
        "best.pth": Status.DAMAGED,
        "epoch=0-step=10.ckpt": Status.GOOD,
        "weights.pt": Status.GOOD,
    }


def test_links_to_directories_are_followed_once(tmp_path: Path) -> None:
    write_step(tmp_path / "disk" / "d12", 1)
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "d12").symlink_to(tmp_path / "disk" / "d12")
    (tmp_path / "disk" / "d12" / "loop").symlink_to(runs)
    report = fastckpt.verify([runs, tmp_path / "disk"])
    assert len(report.steps) == 1
    assert report.ok


def test_temporary_files_are_left_alone(tmp_path: Path) -> None:
    write_step(tmp_path, 1)
    leftover = tmp_path / ".fastckpt-123-4.tmp"
    leftover.write_bytes(b"half a checkpoint")
    report = fastckpt.verify(tmp_path)
    assert report.ok
    assert report.leftovers == (str(leftover),)
    assert str(leftover) not in [file.path for file in report.files]


def test_a_file_named_twice_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_step(tmp_path, 1)
    model = tmp_path / "model_000001.pt"
    read = []
    real = _native.verify_file

    def count(path: str, **options: object) -> object:
        read.append(path)
        return real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(_native, "verify_file", count)
    report = fastckpt.verify([model, tmp_path, model])
    assert read == [str(model)]
    assert len(report.files) == 2


# The report


@given(st.lists(st.sampled_from(Status), min_size=1))
def test_precedence(statuses: list[Status]) -> None:
    # By exit code: 1 wins over 3, then 6, 4, 5; good only where all is.
    codes = {status.exit_code(strict=True) for status in statuses}
    expected = next(code for code in (1, 3, 6, 4, 5, 0) if code in codes)
    assert worst(statuses).exit_code(strict=True) == expected


@given(st.lists(st.sampled_from(Status)), st.lists(st.lists(st.sampled_from(Status), max_size=3)))
def test_status_of_a_report(alone: list[Status], in_steps: list[list[Status]]) -> None:
    number = itertools.count()

    def file(status: Status) -> FileReport:
        return FileReport(f"{next(number)}.pt", "other", status)

    steps = [
        StepReport("d", step, worst(statuses), tuple(map(file, statuses)), (), ())
        for step, statuses in enumerate(in_steps)
    ]
    files = [file(status) for status in alone] + [one for step in steps for one in step.files]
    report = VerifyReport(tuple(files), tuple(steps), (), False, 0.0)
    assert report.status is worst([*alone, *itertools.chain(*in_steps)])
    assert report.ok == (report.status in {Status.GOOD, Status.UNCHECKED})
    good = [step.step for step in steps if step.status is Status.GOOD]
    assert report.newest_good_steps == ({"d": max(good, default=None)} if steps else {})


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    write_step(tmp_path, 1, ranks=(0, 1))
    calls: list[tuple[int, int]] = []
    report = fastckpt.verify(tmp_path, progress=lambda done, total: calls.append((done, total)))
    done = [one for one, _ in calls]
    assert done == sorted(done)
    assert {total for _, total in calls} == {report.nbytes}
    assert calls[-1] == (report.nbytes, report.nbytes)


def test_progress_that_raises_ends_the_job(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    write_step(tmp_path, 1)
    with pytest.raises(Stop):
        fastckpt.verify(tmp_path, progress=stop)


def test_threads(tmp_path: Path) -> None:
    write_step(tmp_path, 1)
    assert fastckpt.verify(tmp_path, threads=1).ok
    assert fastckpt.verify(tmp_path, threads=7).ok
    with pytest.raises(ValueError, match="threads must be at least 1, not 0"):
        fastckpt.verify(tmp_path, threads=0)


def test_verifying_imports_no_torch() -> None:
    with tempfile.TemporaryDirectory() as directory:
        write_step(Path(directory), 1)
        script = (
            "import sys, fastckpt\n"
            "assert fastckpt.verify(sys.argv[1]).ok\n"
            "heavy = {'torch', 'numpy', 'rich', 'typer'} & set(sys.modules)\n"
            "assert not heavy, heavy\n"
        )
        subprocess.run([sys.executable, "-c", script, directory], check=True, timeout=60)
