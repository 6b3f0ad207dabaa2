"""`fastckpt verify --sha256`: sums that sha256sum itself checks, of verified files and no others."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.command_line import in_terminal
from tests.faults.requirements import need_program

import fastckpt
import fastckpt._verify.verify
from fastckpt._steps import save_id as save_id_module
from fastckpt.cli.app import run


def save(directory: Path, step: int, ranks: tuple[int, ...] = (1, 0)) -> None:
    with save_id_module.agreed(1000 + step, 2):
        for rank in ranks:
            weights = {"w": torch.full((8,), float(step))}
            fastckpt.save_checkpoint(directory, step, weights, {"rank": rank}, {}, rank=rank)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def sums_of(path: Path, *options: str) -> tuple[int, bytes, str]:
    """Run the command in this process; return its exit code and what it wrote."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(["verify", "--sha256", *options, str(path)])
    out.seek(0)
    return code, out.buffer.read(), err.getvalue()


def check_by_sha256sum(sums: bytes, directory: Path) -> str:
    """Let sha256sum check sums; return what it says of each file."""
    need_program("sha256sum")
    done = subprocess.run(
        ["sha256sum", "--check", "--strict"],
        cwd=directory,
        input=sums,
        capture_output=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert (done.returncode == 0) == (b"FAILED" not in done.stdout + done.stderr), done.stderr
    return done.stdout.decode(errors="surrogateescape")


def test_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    save(tmp_path, 2)
    save(tmp_path, 1)
    code, out, err = sums_of(tmp_path)
    assert code == 0
    names = [line.split("  ")[1] for line in out.decode().splitlines()]
    assert names == [
        name
        for step in ("000001", "000002")
        for name in (
            f"model_{step}.pt",
            f"meta_{step}.json",
            f"manifest_{step}.json",
            f"optim_{step}_rank0.pt",
            f"optim_{step}_rank1.pt",
        )
    ]
    for line in out.decode().splitlines():
        digest, name = line.split("  ")
        assert digest == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert err.startswith("OK: 10 files")
    assert check_by_sha256sum(out, tmp_path).count(": OK\n") == 10
    expected = subprocess.run(["sha256sum", *names], cwd=tmp_path, capture_output=True, check=True)
    assert out == expected.stdout

    flip_a_bit(tmp_path / "meta_000002.json")
    said = check_by_sha256sum(out, tmp_path)
    assert said.count(": OK\n") == 9
    assert "meta_000002.json: FAILED\n" in said


def test_the_process_writes_sums_to_stdout_and_the_rest_to_stderr(tmp_path: Path) -> None:
    save(tmp_path, 1)
    done = subprocess.run(
        [sys.executable, "-m", "fastckpt", "verify", "--sha256", str(tmp_path)],
        capture_output=True,
        check=True,
        timeout=200,
    )
    assert done.stdout == sums_of(tmp_path)[1]
    assert done.stderr.startswith(b"OK: 5 files")


def test_the_same_directory_gives_the_same_sums(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (copy := tmp_path / "copy").mkdir()
    for path in sorted(tmp_path.glob("*_000001*"), reverse=True):
        (copy / path.name).write_bytes(path.read_bytes())
    for path in tmp_path.glob("*_000001*"):
        path.unlink()
    first = sums_of(copy)[1]
    os.rename(copy, tmp_path / "moved")
    assert sums_of(tmp_path / "moved")[1] == first


@pytest.mark.parametrize("damaged", ["model_000002.pt", "optim_000002_rank1.pt"])
def test_a_step_that_is_not_good_gets_no_sums(tmp_path: Path, damaged: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    save(tmp_path, 3, ranks=(0,))
    torch.save({}, tmp_path / "other.pt")
    flip_a_bit(tmp_path / damaged)
    code, out, err = sums_of(tmp_path)
    assert code == 1
    assert b"_000001" in out
    assert b"_000002" not in out
    assert b"_000003" not in out
    assert b"other" not in out
    assert err.startswith("DAMAGED: 1 of 15 files")
    for step in (2, 3):
        assert f"warning: no sum: step {step} in {tmp_path} is not good\n" in err
    assert f"warning: no sum: {tmp_path}/other.pt does not belong to a step\n" in err
    check_by_sha256sum(out, tmp_path)


def test_nothing_good_gives_no_sums(tmp_path: Path) -> None:
    save(tmp_path, 1, ranks=(0,))
    code, out, err = sums_of(tmp_path)
    assert (code, out) == (3, b"")
    assert "warning: no sums: there is no good step here\n" in err
    assert sums_of(tmp_path / "nothing")[:2] == (4, b"")


def test_files_without_checksums_get_no_sums(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    code, out, err = sums_of(tmp_path / "old.pt")
    assert (code, out) == (0, b"")
    assert "old.pt is not good" in err
    assert sums_of(tmp_path / "old.pt", "--strict")[:2] == (5, b"")


def test_one_file_has_its_sum(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(4)}, path)
    code, out, _ = sums_of(path)
    assert code == 0
    assert out.decode() == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  model.pt\n"
    flip_a_bit(path)
    assert sums_of(path)[:2] == (1, b"")


def test_files_that_a_newer_save_left_are_not_among_the_sums(tmp_path: Path) -> None:
    """Rank 0 has saved step 1 again, rank 1 has not: the save before it is what loads."""
    save(tmp_path, 1)
    with save_id_module.agreed(17, 2):
        fastckpt.save_checkpoint(tmp_path, 1, {"w": torch.zeros(1)}, {}, {}, rank=0)
    code, out, _ = sums_of(tmp_path)
    assert code == 0
    names = [line.split("  ")[1] for line in out.decode().splitlines()]
    assert len(names) == 5
    assert "model_000001.pt" not in names
    assert all(name.endswith(".kept") for name in names[:4])
    assert check_by_sha256sum(out, tmp_path).count(": OK\n") == 5


@pytest.mark.parametrize(
    "name",
    [
        b"plain",
        b"with space",
        b"back\\slash",
        b"new\nline",
        b"-dash",
        b"*star",
        "poids_é".encode(),
        b"not utf-8 \xff",
        b"tab\t and \x1b[2J",
    ],
)
def test_odd_names_are_escaped_as_sha256sum_does(tmp_path: Path, name: bytes) -> None:
    directory = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    save(directory, 1)
    code, out, _ = sums_of(tmp_path)
    assert code == 0
    assert check_by_sha256sum(out, tmp_path).count(": OK\n") == 5
    files = [line.split(b"  ")[1] for line in sums_of(directory)[1].splitlines()]
    given = [os.path.join(name, file) for file in files]
    theirs = subprocess.run(
        ["sha256sum", "--", *given], cwd=tmp_path, capture_output=True, check=True
    )
    assert out == theirs.stdout


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}])
def test_a_terminal_gets_no_control_characters(tmp_path: Path, env: dict[str, str]) -> None:
    save(tmp_path / "clear\x1b[2J\x9b\u202e\n\\", 1)
    env = {"FASTCKPT_PROGRESS": "0", **env}
    code, shown = in_terminal("verify", "--sha256", str(tmp_path), env=env)
    assert code == 0
    assert "\x1b[2J" not in shown
    assert not {"\x9b", "\u202e"} & set(shown)
    digest = hashlib.sha256(next(tmp_path.glob("*/model_000001.pt")).read_bytes()).hexdigest()
    name = "clear\\x1b[2J\\x9b\\u202e\\n\\\\/model_000001.pt"
    assert f"\\{digest}  {name}\r\n" in shown
    assert "note: control characters in names are escaped on a terminal" in shown


def test_a_terminal_gets_plain_names_as_a_pipe_does(tmp_path: Path) -> None:
    save(tmp_path, 1)
    code, shown = in_terminal("verify", "--sha256", str(tmp_path), env={"TERM": "dumb"})
    assert code == 0
    assert sums_of(tmp_path)[1].decode().replace("\n", "\r\n") in shown
    assert "note:" not in shown


def test_a_carriage_return_is_escaped(tmp_path: Path) -> None:
    """Some versions of sha256sum take one at the end of a line for a part of the line's end."""
    save(tmp_path / "a\rb", 1)
    assert b"  a\\rb/model_000001.pt\n" in sums_of(tmp_path)[1]
    assert sums_of(tmp_path)[1].startswith(b"\\")


def test_a_file_that_changes_after_it_was_verified_gets_no_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 1)
    model = tmp_path / "model_000001.pt"
    verify = fastckpt._verify.verify.verify

    def then_replace(*args: Any, **options: Any) -> Any:
        report = verify(*args, **options)
        other = tmp_path / "other"
        other.write_bytes(model.read_bytes())
        flip_a_bit(other)
        os.rename(other, model)
        return report

    monkeypatch.setattr(fastckpt._verify.verify, "verify", then_replace)
    assert run(["verify", "--sha256", str(tmp_path)]) == 6
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "it has changed since it was verified" in captured.err
    assert str(model) in captured.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--quick", "x"], "--sha256 and --quick exclude each other"),
        (["--json", "x"], "no --json"),
        (["x", "y"], "one PATH"),
    ],
)
def test_what_does_not_go_together(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", "--sha256", *options]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert "hint: try `fastckpt verify --help`" in captured.err
