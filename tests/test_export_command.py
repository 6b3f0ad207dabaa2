"""`fastckpt export`: exit codes, text, JSON, and which kind of export it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fastckpt import EMAModel
from fastckpt._export_kind import export_kind
from fastckpt.cli.app import run
from fastckpt.cli.export import _parse_size

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def source(tmp_path: Path) -> str:
    torch.manual_seed(0)
    model = torch.nn.Linear(40, 10)
    ema = EMAModel(model, 0.5)
    saved = {
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": torch.zeros(2000),
        "model_config": {"n": 40},
        "ema_state_dict": ema.state_dict(),
    }
    with torch.no_grad():
        model.weight.add_(1)
    torch.save(saved, tmp_path / "c.pt")
    return str(tmp_path / "c.pt")


def test_a_pt_file(source: str, tmp_path: Path, capsys: Captured) -> None:
    output = str(tmp_path / "i.pt")
    assert run(["export", source, "--to", output]) == 0
    out, err = capsys.readouterr()
    assert out == (
        f"EXPORTED: 2 tensors, {os.path.getsize(output) / 1000:.1f} kB of "
        f"{os.path.getsize(source) / 1000:.1f} kB, with configuration (model_config)\n  {output}\n"
    )
    assert err == ""
    saved = torch.load(output, weights_only=True)
    assert saved["model_config"] == {"n": 40}
    weight = torch.load(source)["model_state_dict"]["weight"]
    assert torch.equal(saved["model_state_dict"]["weight"], weight)


def test_averages_and_no_config(source: str, tmp_path: Path, capsys: Captured) -> None:
    output = str(tmp_path / "i.pt")
    assert run(["export", source, "--to", output, "--ema", "--no-config", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == "note: 2 of 2 tensors are moving averages\n"
    assert (document["command"], document["status"], document["exit_code"], document["ok"]) == (
        "export",
        "exported",
        0,
        True,
    )
    assert document["error"] is None
    assert document["report"] == {
        "source": source,
        "outputs": [output],
        "source_nbytes": os.path.getsize(source),
        "nbytes": os.path.getsize(output),
        "tensors": 2,
        "has_config": False,
        "config_keys": [],
        "notes": ["2 of 2 tensors are moving averages"],
    }
    saved = torch.load(output)
    averages = torch.load(source)["ema_state_dict"]["shadow"]
    assert list(saved) == ["model_state_dict"]
    assert torch.equal(saved["model_state_dict"]["weight"], averages["weight"])


def test_shards_and_back(source: str, tmp_path: Path, capsys: Captured) -> None:
    hub, back = str(tmp_path / "hub"), str(tmp_path / "back.pt")
    assert run(["export", source, "--to", hub, "--max-shard-size", "1kB"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"  {hub}/model-00001-of-00002.safetensors",
        f"  {hub}/model-00002-of-00002.safetensors",
        f"  {hub}/model.safetensors.index.json",
    ]
    for file in (hub, f"{hub}/model.safetensors.index.json"):
        assert run(["export", file, "--to", back]) == 0
        state = torch.load(source)["model_state_dict"]
        found = torch.load(back)["model_state_dict"]
        assert sorted(found) == sorted(state)
        assert all(torch.equal(found[name], state[name]) for name in state)
        os.unlink(back)


def test_one_safetensors_file_and_a_path_without_a_directory(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["export", source, "--to", "m.safetensors"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "  m.safetensors"
    assert set(safetensors.torch.load_file("m.safetensors")) == {"weight", "bias"}
    assert run(["export", "m.safetensors", "--to", "back.pt"]) == 0
    assert sorted(os.listdir()) == ["back.pt", "c.pt", "m.safetensors"]


def failed(args: list[str], status: str, code: int, capsys: Captured) -> str:
    """Run it twice, as text and as JSON; return what is on stderr."""
    assert run(["export", *args]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert run(["export", *args, "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert (document["status"], document["exit_code"], document["ok"]) == (status, code, False)
    assert document["report"] is None
    assert err.startswith(f"error: {document['error']['message']}\n")
    return err


def test_failures(source: str, tmp_path: Path, capsys: Captured) -> None:
    output = str(tmp_path / "i.pt")
    err = failed([str(tmp_path / "no.pt"), "--to", output], "not_found", 4, capsys)
    assert err.startswith(f"error: {tmp_path}/no.pt: No such file or directory")
    err = failed([source, "--to", source], "usage", 2, capsys)
    assert err == (
        f"error: {source} exists already, and export only writes new files\n"
        "hint: name another destination after --to\n"
    )
    assert run(["export", source, "--to", str(tmp_path / "hub")]) == 0
    capsys.readouterr()
    err = failed([source, "--to", str(tmp_path / "hub")], "usage", 2, capsys)
    assert err.startswith(f"error: {tmp_path}/hub/model.safetensors exists already")
    torch.save({"step": 1}, tmp_path / "none.pt")
    err = failed([str(tmp_path / "none.pt"), "--to", output], "unusable", 1, capsys)
    assert "no state dict of a model in" in err
    (tmp_path / "full").mkdir()
    err = failed([str(tmp_path / "full"), "--to", output], "incomplete", 3, capsys)
    assert err == (
        f"error: {tmp_path}/full has neither model.safetensors nor model.safetensors.index.json\n"
    )
    data = bytearray(Path(source).read_bytes())
    weight = torch.load(source)["model_state_dict"]["weight"]
    data[data.index(bytes(weight.view(torch.uint8).numpy())) + 1] ^= 4
    (tmp_path / "damaged.pt").write_bytes(data)
    err = failed([str(tmp_path / "damaged.pt"), "--to", output], "damaged", 1, capsys)
    assert "checksum mismatch in tensor 'model_state_dict.weight'" in err
    damaged = tmp_path / "damaged.pt"
    assert f"`fastckpt repair {damaged} --to NEW` recovers the rest" in err
    assert not os.path.exists(output)


def test_io_errors(source: str, tmp_path: Path, capsys: Captured) -> None:
    err = failed([source, "--to", "/proc/self/x.pt"], "not_found", 4, capsys)
    assert "/proc/self/" in err
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    err = failed([str(tmp_path / "loop.pt"), "--to", str(tmp_path / "i.pt")], "io_error", 6, capsys)
    assert "loop.pt" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["c.pt"], "--to"),
        (["c.pt", "--to", "x.onnx"], "expected a .pt file, a .safetensors file or a directory"),
        (["m.safetensors", "--to", "hub"], "is safetensors already: export it to a .pt file"),
        (["m.safetensors", "--to", "x.pt", "--ema"], "--ema is for exports from a .pt file"),
        (["m.safetensors", "--to", "x.pt", "--no-config"], "--no-config is for exports from"),
        (
            ["c.pt", "--to", "hub", "--max-shard-size", "big"],
            "must be a size such as 5GB, 500MB or 2GiB, not 'big'",
        ),
    ],
)
def test_wrong_usage(args: list[str], message: str, capsys: Captured) -> None:
    err = failed(args, "usage", 2, capsys)
    assert message in err
    assert "hint: try `fastckpt export --help`" in err


def test_a_missing_extra_is_a_usage_error_with_a_hint(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    err = failed([source, "--to", str(tmp_path / "m.safetensors")], "usage", 2, capsys)
    assert err == (
        "error: a .safetensors file needs safetensors\nhint: pip install 'fastckpt[export]'\n"
    )


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("5GB", 5 * 10**9),
        ("500 MB", 5 * 10**8),
        ("1.5kb", 1500),
        ("2GiB", 2 << 30),
        ("7", 7),
        ("7B", 7),
    ],
)
def test_sizes(text: str, nbytes: int) -> None:
    assert _parse_size(text) == nbytes


def test_what_kind_of_export_it_is_follows_from_the_names(tmp_path: Path) -> None:
    directory = str(tmp_path)
    assert export_kind("a.pt", "b.pt") == "inference"
    assert export_kind("a.pt", "b.pth") == "inference"
    assert export_kind("a.ckpt", "b.safetensors") == "safetensors"
    assert export_kind("a.pt", directory) == "safetensors"
    assert export_kind("a.pt", "new/directory") == "safetensors"
    assert export_kind("a.pt", "new.directory/") == "safetensors"
    assert export_kind("a.safetensors", "b.pt") == "import"
    assert export_kind("a.safetensors.index.json", "b.pt") == "import"
    assert export_kind(directory, "b.pt") == "import"


def test_the_help_says_what_is_python_only() -> None:
    command = [sys.executable, "-m", "fastckpt", "export", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    words = " ".join(text.split())
    assert "For torch.export, ONNX and TorchScript the model itself is needed" in words
    assert (
        "torch"
        not in subprocess.run(
            [sys.executable, "-c", "import sys, fastckpt.cli.app; print(*sys.modules)"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    )
