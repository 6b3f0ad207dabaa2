"""What a repair writes and leaves alone, and what the command says of it."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import errno
import io
import json
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import archives
from tests.command_line import run_json
from tests.faults.damage import file_of, small_weights
from tests.faults.salvaged_files import repaired
from tests.repaired_files import flipped

import fastckpt
from fastckpt._repair.report import Outcome
from fastckpt.cli.app import run

# What is written


def test_nothing_that_exists_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    fastckpt.save(small_weights(), path)
    good = path.read_bytes()
    other, link = tmp_path / "other.pt", tmp_path / "link.pt"
    other.write_bytes(b"mine")
    link.symlink_to(tmp_path / "nowhere")
    for to in (path, other, link, tmp_path):
        with pytest.raises(FileExistsError) as raised:
            fastckpt.repair(path, to=to)
        assert raised.value.filename == str(to)
    assert path.read_bytes() == good
    assert other.read_bytes() == b"mine"
    assert not (tmp_path / "nowhere").exists()
    assert sorted(os.listdir(tmp_path)) == ["link.pt", "model.pt", "other.pt"]


def test_a_file_that_appears_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, to = tmp_path / "model.pt", tmp_path / "new.pt"
    fastckpt.save(small_weights(), path)
    write = fastckpt._repair.repair.write_into

    def then_appear(*args: Any, **options: Any) -> Any:
        written = write(*args, **options)
        to.write_bytes(b"mine")
        return written

    monkeypatch.setattr("fastckpt._repair.repair.write_into", then_appear)
    with pytest.raises(FileExistsError):
        fastckpt.repair(path, to=to)
    assert to.read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["model.pt", "new.pt"]


def test_what_raises_in_progress_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    fastckpt.save(small_weights(), path)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fastckpt.repair(path, to=tmp_path / "new.pt", progress=stop)
    assert os.listdir(tmp_path) == ["model.pt"]


def test_progress_ends_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    fastckpt.save({"w": torch.zeros(3 << 20)}, path)
    calls: list[tuple[int, int]] = []
    fastckpt.repair(
        path, to=tmp_path / "new.pt", progress=lambda done, total: calls.append((done, total))
    )
    assert {total for _, total in calls} == {2 * path.stat().st_size}
    assert calls == sorted(calls)
    assert calls[-1][0] > path.stat().st_size


def test_a_large_file_with_damage_across_windows(tmp_path: Path) -> None:
    """Structures lie on both sides of, and across, the places where the search is cut into pieces."""
    step = 4 << 20
    rng = random.Random(3)
    sizes = [rng.randrange(1, 3 << 20) for _ in range(12)]
    obj = {f"w{i}": torch.randint(0, 255, (n,), dtype=torch.uint8) for i, n in enumerate(sizes)}
    file = io.BytesIO()
    fastckpt.save(obj, file)
    good = file.getvalue()
    start = good.index(b"PK\x01\x02", archives.record_range(good, archives.ID_RECORD).start)
    assert len(good) > 3 * step
    bad = archives.record_range(good, "data/4")
    data = flipped(good, bad.start + len(bad) // 2)
    assert good.index(b"PK\x03\x04") == 0
    for damaged in (data, data[:start]):
        report = repaired(damaged, obj, good, tmp_path)
        assert [tensor.name for tensor in report.tensors] == ["w4"]


@pytest.mark.parametrize("shift", range(-40, 60, 7))
def test_a_header_across_the_edge_of_a_window_is_found(shift: int, tmp_path: Path) -> None:
    step = 4 << 20
    first = file_of({"a": torch.zeros(8, dtype=torch.uint8)}, "fastckpt")
    overhead = archives.record_range(first, "data/0").start
    # The descriptor of the first storage and the header of the second lie around the edge.
    nbytes = step - overhead - 16 + shift
    obj = {"a": torch.ones(nbytes, dtype=torch.uint8), "b": torch.arange(50)}
    good = file_of(obj, "fastckpt")
    start = good.index(b"PK\x01\x02")
    report = repaired(good[:start], obj, good, tmp_path)
    assert report.outcome is Outcome.WHOLE


# The command


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, to = tmp_path / "model.pt", tmp_path / "new.pt"
    obj = {"transformer": {"wte": torch.ones(250)}, "moments": [torch.zeros(8)], "n": 1}
    fastckpt.save(obj, path)
    good = path.read_bytes()
    offset = good.index(b"model/data/0") - 30
    data = bytearray(good)
    for name in ("data/0", "data/1", "version"):
        data[archives.record_range(good, name).start] ^= 1
    path.write_bytes(data)
    assert run(["repair", str(path), "--to", str(to)]) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith(f"SALVAGED IN PART: {to}, ")
    assert lines[0].endswith(" kB, 2 tensors missing")
    assert lines[1:4] == [
        "  lost tensor  transformer.wte (data/0): left out",
        "  lost tensor  moments.0 (data/1): None instead",
        f"  lost record  data/0, 1.0 kB, at byte {offset}: checksum mismatch",
    ]
    assert "  lost record  version, 2 B" in lines[5]
    assert captured.err == (
        "hint: load_state_dict(..., strict=False) takes a state dict with missing keys\n"
    )
    assert torch.load(to) == {"transformer": {}, "moments": [None], "n": 1}

    assert run(["repair", str(path), "--to", str(to)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {to} exists already")


def test_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, to = tmp_path / "model.pt", tmp_path / "new.pt"
    fastckpt.save({"w": torch.ones(250), "v": torch.zeros(3)}, path)
    good = path.read_bytes()
    path.write_bytes(flipped(good, archives.record_range(good, "data/0").start))
    document = run_json(capsys, "repair", str(path), "--to", str(to), status="damaged", code=1)
    report = document["report"]
    assert (report["outcome"], report["to"]) == ("partial", str(to))
    assert report["nbytes"] == to.stat().st_size
    assert report["tensors"] == [{"name": "w", "record": "data/0", "left_out": True}]
    (lost,) = report["lost"]
    assert (lost["record"], lost["reason"]) == ("data/0", "checksum mismatch")
    assert "data/1" in report["records"]


@pytest.mark.parametrize("as_json", [False, True])
def test_exit_codes(as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--json"] if as_json else []
    good, junk = tmp_path / "good.pt", tmp_path / "junk.pt"
    fastckpt.save({"w": torch.ones(2)}, good)
    junk.write_bytes(b"junk")
    for path, to, code, status in (
        (good, tmp_path / "new.pt", 0, "good"),
        (good, good, 2, "usage"),
        (junk, tmp_path / "none.pt", 1, "damaged"),
        (tmp_path / "missing.pt", tmp_path / "none.pt", 4, "not_found"),
        (good, tmp_path / "no" / "such" / "directory.pt", 4, "not_found"),
        (tmp_path, tmp_path / "none.pt", 6, "io_error"),
    ):
        assert run(["repair", str(path), "--to", str(to), *options]) == code
        captured = capsys.readouterr()
        if as_json:
            assert json.loads(captured.out)["status"] == status
        assert "Traceback" not in captured.err
    assert run(["repair", str(good), *options]) == 2
    assert "--to" in capsys.readouterr().err
    assert not (tmp_path / "none.pt").exists()


def test_io_errors_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: str, **_: object) -> object:
        raise OSError(errno.EIO, "Input/output error", path)

    monkeypatch.setattr("fastckpt._native.salvage", fail)
    assert run(["repair", "model.pt", "--to", str(tmp_path / "new.pt")]) == 6
    assert "Input/output error" in capsys.readouterr().err


def test_torch_is_needed_and_said_to_be(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from fastckpt.cli.app import run\n"
        "sys.exit(run(['repair', 'a.pt', '--to', 'b.pt']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, text=True, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: repair needs torch\nhint: pip install torch\n"


def test_names_do_not_control_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pt"
    fastckpt.save({"w\x1b[2J": torch.ones(250), "v": torch.ones(1)}, path)
    good = path.read_bytes()
    path.write_bytes(flipped(good, archives.record_range(good, "data/0").start))
    with warnings.catch_warnings():
        assert run(["repair", str(path), "--to", str(tmp_path / "new.pt")]) == 1
    assert "\x1b" not in capsys.readouterr().out
