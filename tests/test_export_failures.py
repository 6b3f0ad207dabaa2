"""What an export that fails in the middle, or is killed, leaves behind."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.exported_models import Tiny, checkpoint, make_model, refused

from fastckpt import CommitUnknownError, ModelExporter
from fastckpt.export import hub, publishing
from fastckpt.export.weights import Weights


@pytest.fixture
def model() -> Tiny:
    return make_model()


def limited_export(path: Path, output: Path, limit_nbytes: int, **options: int) -> str:
    """Export in a process that may not write files larger than this; return what it raised."""
    script = (
        "import resource, signal, sys, errno, fastckpt\n"
        "from fastckpt.export import publishing\n"
        "import fastckpt.export.hub, safetensors.torch\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_nbytes}, {limit_nbytes}))\n"
        "try:\n"
        f"    fastckpt.ModelExporter.export_safetensors({str(path)!r}, {str(output)!r}, **{options})\n"
        "except OSError as error:\n"
        "    print(errno.errorcode[error.errno])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_disk_that_takes_no_more_leaves_nothing(tmp_path: Path) -> None:
    state = {"small": torch.ones(10), "large": torch.ones(50_000)}
    torch.save(state, tmp_path / "c.pt")
    (tmp_path / "hub").mkdir()
    # The first shard fits, the second does not.
    found = limited_export(
        tmp_path / "c.pt", tmp_path / "hub", limit_nbytes=100_000, max_shard_nbytes=1000
    )
    assert found == "EFBIG"
    assert os.listdir(tmp_path / "hub") == []


def test_an_error_while_shards_become_visible_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.ones(10), "b": torch.ones(10)}, tmp_path / "c.pt")
    real = os.link

    def fail_at_the_index(source: str, target: str) -> None:
        if target.endswith(".json"):
            raise OSError(errno.EIO, "Input/output error", target)
        real(source, target)

    monkeypatch.setattr(os, "link", fail_at_the_index)
    with pytest.raises(OSError, match=r"Input/output error"):
        ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "hub", max_shard_nbytes=1)
    assert os.listdir(tmp_path / "hub") == []


def test_files_become_visible_in_order_each_after_it_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.ones(10), "b": torch.ones(10)}, tmp_path / "c.pt")
    events: list[str] = []
    fsync, link = os.fsync, os.link

    def note_fsync(fd: int) -> None:
        events.append(f"fsync {os.path.basename(os.readlink(f'/proc/self/fd/{fd}'))}")
        fsync(fd)

    def note_link(source: str, target: str) -> None:
        events.append(f"link {os.path.basename(target)}")
        link(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "link", note_link)
    ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "hub", max_shard_nbytes=1)
    names = [
        *(f"model-0000{i}-of-00002.safetensors" for i in (1, 2)),
        "model.safetensors.index.json",
    ]
    assert events == [*(f"fsync {n}" for n in names), *(f"link {n}" for n in names)]


def test_a_kill_leaves_nothing_that_looks_whole_and_the_next_export_clears_it(
    tmp_path: Path,
) -> None:
    torch.save({"a": torch.ones(10), "b": torch.ones(10)}, tmp_path / "c.pt")
    script = (
        "import os, signal, sys, fastckpt\n"
        "from fastckpt.export import hub\n"
        "def die(*_):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "hub.publish = die\n"
        "fastckpt.ModelExporter.export_safetensors(*sys.argv[1:], max_shard_nbytes=1)\n"
    )
    args = [sys.executable, "-c", script, str(tmp_path / "c.pt"), str(tmp_path / "hub")]
    assert subprocess.run(args, check=False).returncode == -signal.SIGKILL
    (left,) = os.listdir(tmp_path / "hub")
    assert left.startswith(".fastckpt-export-")
    assert len(os.listdir(tmp_path / "hub" / left)) == 3
    refused(tmp_path / "hub" / ".", FileNotFoundError, "has neither")
    ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "hub")
    assert os.listdir(tmp_path / "hub") == ["model.safetensors"]


def test_the_stage_of_an_export_that_runs_is_left_alone(tmp_path: Path) -> None:
    with publishing.staging(str(tmp_path)) as first, publishing.staging(str(tmp_path)) as second:
        assert first != second
        assert os.path.isdir(first)
    assert os.listdir(tmp_path) == []


def test_a_stage_of_another_machine_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / ".fastckpt-export-00000000-abcdefgh"
    other.mkdir()
    with publishing.staging(str(tmp_path)):
        pass
    assert os.listdir(tmp_path) == [other.name]


def test_a_directory_that_cannot_be_synced_leaves_none_of_several_and_the_only_one_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.ones(10), "b": torch.ones(10)}, tmp_path / "c.pt")
    (tmp_path / "hub").mkdir()

    def fail(_: object, directory: str) -> None:
        raise OSError(errno.EIO, "Input/output error", directory)

    monkeypatch.setattr(publishing, "Commit", type("Failing", (), {"sync_directory": fail}))
    with pytest.raises(OSError, match=r"Input/output error"):
        ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "hub", max_shard_nbytes=1)
    assert os.listdir(tmp_path / "hub") == []
    with pytest.raises(CommitUnknownError, match=r"in place, but its directory could not"):
        ModelExporter.export_safetensors(tmp_path / "c.pt", tmp_path / "hub")
    assert os.listdir(tmp_path / "hub") == ["model.safetensors"]


def test_a_full_disk_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Weights({"w": torch.empty(0)}, {}, "c.pt", 1)
    monkeypatch.setattr(hub, "sum", lambda _: 1 << 60, raising=False)
    with pytest.raises(OSError, match=r"[Nn]o space|free") as caught:
        hub.write_safetensors(weights, tmp_path / "m.safetensors", 100)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_what_is_not_installed_is_named_with_the_extra(
    model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint(tmp_path / "c.pt", model)
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    words = r"a .safetensors file needs safetensors: pip install 'fastckpt\[export\]'"
    with pytest.raises(ImportError, match=words):
        ModelExporter.export_safetensors(path, tmp_path / "m.safetensors")
    with pytest.raises(ImportError, match=words):
        ModelExporter.import_safetensors(path, tmp_path / "m.pt")


def test_the_memory_is_that_of_the_weights_not_of_the_checkpoint(tmp_path: Path) -> None:
    weights, rest = torch.ones(1 << 20), torch.ones(32 << 20)  # 4 MiB and 128 MiB
    torch.save({"model": {"w": weights}, "optimizer": rest}, tmp_path / "c.pt")
    script = (
        "import resource, sys, fastckpt, torch\n"
        "from fastckpt import ModelExporter\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "ModelExporter.export_inference_checkpoint(*sys.argv[1:])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "c.pt"), str(tmp_path / "i.pt")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 60_000  # KiB
