"""`fastckpt diff`: which tensors differ and how far, in figures that numpy confirms."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests import archives
from tests.command_line import run_json
from tests.elements import COMPONENTS, FLOATING, INTEGER, bytes_of, laid_out, name_of, numbers
from tests.specimens import fill

import fastckpt
from fastckpt import _native
from fastckpt._contents.safetensors_header import HEADER_NBYTES_MAX
from fastckpt._diff.diff import FileDiff, TensorDiff, TensorLayout, ValueDiff, diff, diff_steps
from fastckpt._diff.report import layer_of
from fastckpt.cli.app import run


def saved(directory: Path, a: Any, b: Any) -> tuple[str, str]:
    paths = str(directory / "a.pt"), str(directory / "b.pt")
    for path, obj in zip(paths, (a, b), strict=True):
        torch.save(obj, path)
    return paths


def compared(directory: Path, a: Any, b: Any, **options: Any) -> FileDiff:
    (file,) = diff(*saved(directory, a, b), **options).files
    return file


def expected_figures(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """Compute by numpy what a comparison of two tensors has to give."""
    dtype = COMPONENTS.get(a.dtype, a.dtype)
    width = 2 if a.is_complex() or a.dtype in COMPONENTS else 1
    raw = [np.frombuffer(bytes_of(t), dtype=f"V{a.itemsize}") for t in (a, b)]
    x, y = (numbers(bytes_of(t), dtype).reshape(a.numel(), width) for t in (a, b))
    differing = raw[0] != raw[1]
    finite = (np.isfinite(x) & np.isfinite(y)).all(axis=1)
    with np.errstate(all="ignore"):
        if a.dtype in (torch.int64, torch.uint64):
            exact = [int(q) - int(p) for p, q in zip(a.tolist(), b.tolist(), strict=True)]
            change = np.abs(np.array([float(number) for number in exact]))
        else:
            change = np.hypot.reduce(y - x, axis=1) if width == 2 else np.abs(y - x)[:, 0]
        change = change[finite]
        return {
            "differing": int(differing.sum()),
            "non_finite": int((differing & ~finite).sum()),
            "finite": int(finite.sum()),
            "max_abs": float(change.max(initial=0.0)),
            "sum_abs": float(change.sum()),
            "sum_squares": float((change**2).sum()),
            "reference_squares": float((x[finite] ** 2).sum()),
        }


# Figures


@pytest.mark.parametrize("dtype", [*FLOATING, *INTEGER], ids=name_of)
@pytest.mark.parametrize("numel", [1, 4999])
def test_the_figures_are_numpys(dtype: torch.dtype, numel: int, tmp_path: Path) -> None:
    a, b = fill(dtype, numel, 1), fill(dtype, numel, 2)
    # Some elements are the same, NaNs and infinities among them.
    half = numel // 2
    b = torch.cat(
        [a.view(torch.uint8)[: half * dtype.itemsize], b.view(torch.uint8)[half * dtype.itemsize :]]
    ).view(dtype)
    file = compared(tmp_path, {"w": a}, {"w": b})
    expected = expected_figures(a, b)
    if expected["differing"] == 0:
        assert file.is_same
        return
    (found,) = file.differing
    assert found.layout == TensorLayout(name_of(dtype), (numel,))
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-12), name
    assert found.mean_abs == pytest.approx(
        expected["sum_abs"] / expected["finite"] if expected["finite"] else math.nan, nan_ok=True
    )


def test_neighbours_among_large_integers_are_told_apart(tmp_path: Path) -> None:
    a = torch.tensor([2**62, -(2**63), 5])
    b = torch.tensor([2**62 + 1, 2**63 - 1, 5])
    (found,) = compared(tmp_path, {"n": a}, {"n": b}).differing
    assert (found.differing, found.max_abs, found.sum_abs) == (2, 2.0**64, 2.0**64)


def test_nan_and_infinity_are_counted_and_not_measured(tmp_path: Path) -> None:
    nan, inf = math.nan, math.inf
    a = torch.tensor([nan, nan, 1.0, inf, inf, 3.0, -0.0])
    b = torch.tensor([nan, 1.0, nan, inf, -inf, 4.0, 0.0])
    (found,) = compared(tmp_path, {"w": a}, {"w": b}).differing
    # The first NaN and the first infinity are the same on both sides; the zeros differ in their sign.
    assert (found.differing, found.non_finite, found.finite) == (5, 3, 2)
    assert (found.max_abs, found.mean_abs, found.relative_norm) == (1.0, 0.5, 1 / 3)
    other = torch.tensor([nan]).view(torch.int32) + 1
    (found,) = compared(
        tmp_path, {"w": torch.tensor([nan])}, {"w": other.view(torch.float32)}
    ).differing
    assert (found.differing, found.non_finite) == (1, 1)
    assert math.isnan(found.mean_abs)
    assert math.isnan(found.relative_norm)


def test_changes_at_the_end_of_the_range_of_float64(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = {f"layer.{n}": torch.zeros(2, dtype=torch.float64) for n in "xyz"}
    b = {name: torch.full((2,), 0.8e308, dtype=torch.float64) for name in a}
    assert run(["diff", *saved(tmp_path, a, b)]) == 1
    assert capsys.readouterr().out.count("8e+307") == 2 * (len(a) + 1)
    (layer,) = compared(tmp_path, a, b).layers
    assert layer.mean_abs == pytest.approx(0.8e308)


def test_a_change_of_nothing_is_infinitely_large(tmp_path: Path) -> None:
    (found,) = compared(tmp_path, {"w": torch.zeros(2)}, {"w": torch.ones(2)}).differing
    assert found.relative_norm == math.inf


@hypothesis.settings(max_examples=30)
@hypothesis.given(
    shape=st.lists(st.integers(0, 9), max_size=3),
    layouts=st.tuples(*[st.sampled_from(["plain", "transposed", "inside", "stepped"])] * 2),
    seed=st.integers(0, 99),
    change=st.booleans(),
)
def test_layouts_do_not_change_the_result(
    shape: list[int],
    layouts: tuple[str, str],
    seed: int,
    change: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(shape, generator=generator)
    b = a + torch.randn(shape, generator=generator) if change else a.clone()
    directory = tmp_path_factory.mktemp("layouts")
    file = compared(directory, {"w": laid_out(a, layouts[0])}, {"w": laid_out(b, layouts[1])})
    expected = expected_figures(a, b)
    assert file.is_same == (expected["differing"] == 0)
    for found in file.differing:
        for name, value in expected.items():
            assert getattr(found, name) == pytest.approx(value, rel=1e-12), name


def test_what_overlaps_on_both_sides_is_compared_once(tmp_path: Path) -> None:
    a, b = torch.ones(3, 1).expand(3, 2**50), torch.full((3, 1), 3.0).expand(3, 2**50)
    (found,) = compared(tmp_path, {"w": a}, {"w": b}).differing
    assert (found.numel, found.differing, found.max_abs) == (3, 3, 2.0)
    # On one side only: there are as many bytes on the other.
    (found,) = compared(tmp_path, {"w": a[:, :5]}, {"w": torch.zeros(3, 5)}).differing
    assert (found.numel, found.differing) == (15, 15)
    size = (2**11, 2**11)
    windows = [fill(2**12).as_strided(size, (1, 1)) for fill in (torch.zeros, torch.ones)]
    assert compared(tmp_path, {"w": windows[0]}, {"w": windows[0]}).is_same
    (found,) = compared(tmp_path, {"w": windows[0]}, {"w": windows[1]}).differing
    assert (found.numel, found.differing, found.sum_abs) == (2**12 - 1, 2**12 - 1, 2**12 - 1)
    # Of what lies between them nothing is compared.
    base = torch.zeros(100)
    one, other = base.as_strided((5, 4), (20, 2)), base.clone().as_strided((5, 4), (20, 2))
    base[1::2] = 1
    base[8::20] = 1
    assert compared(tmp_path, {"w": one}, {"w": other}).is_same


def test_what_overlaps_in_another_way_is_refused_beyond_a_bound(tmp_path: Path) -> None:
    size = (2**11, 2**11)
    rows, columns = (torch.zeros(2**12).as_strided(size, stride) for stride in ((0, 1), (1, 0)))
    with pytest.raises(fastckpt.FormatError, match="w has 4194304 elements that overlap in memory"):
        compared(tmp_path, {"w": rows}, {"w": columns})
    # Each is smaller than the file, all together are not.
    base = torch.zeros(2**18)
    many = {f"w{n}": base[n:] for n in range(2**10)}
    with pytest.raises(fastckpt.FormatError, match=r"overlap in memory: up to w\d+ there are \d+"):
        compared(tmp_path, many, {"base": base, **many})


def test_the_figures_do_not_depend_on_the_threads(tmp_path: Path) -> None:
    paths = saved(tmp_path, {"w": torch.randn(3_000_000)}, {"w": torch.randn(3_000_000)})
    assert diff(*paths, threads=1) == diff(*paths, threads=4)


# What is compared


def test_keys_shapes_dtypes_and_values(tmp_path: Path) -> None:
    a: dict[str, Any] = {
        "model": {"h.0.w": torch.ones(2, 3), "h.1.w": torch.ones(2), "gone": torch.ones(1)}
    }
    b: dict[str, Any] = {
        "model": {"h.0.w": torch.ones(3, 2), "h.1.w": torch.ones(2).half(), "new": torch.ones(4)}
    }
    a |= {"step": 1, "config": {"lr": 0.1, "nan": math.nan, "name": "x"}, "old": None}
    b |= {"step": 2, "config": {"lr": 0.1, "nan": math.nan, "name": "y"}, "kind": [1]}
    file = compared(tmp_path, a, b)
    f32 = "float32"
    assert file.added == (("model.new", TensorLayout(f32, (4,))),)
    assert file.removed == (("model.gone", TensorLayout(f32, (1,))),)
    assert file.reshaped == (
        ("model.h.0.w", TensorLayout(f32, (2, 3)), TensorLayout(f32, (3, 2))),
        ("model.h.1.w", TensorLayout(f32, (2,)), TensorLayout("float16", (2,))),
    )
    assert file.values == (
        ValueDiff("step", "1", "2"),
        ValueDiff("config.name", "'x'", "'y'"),
        ValueDiff("old", "None", None),
        ValueDiff("kind.0", None, "1"),
    )


def test_what_is_the_same_by_checksum_is_not_read(tmp_path: Path) -> None:
    state = {"same": torch.ones(1000), "other": torch.ones(1000)}
    a, b = saved(tmp_path, state, state | {"other": torch.zeros(1000)})
    (file,) = diff(a, b).files
    assert (file.tensors, file.unread, file.unchecked) == (("same", "other"), ("same",), ())
    assert [tensor.name for tensor in file.differing] == ["other"]
    # The bytes of what was not read may be anything.
    data = bytearray(Path(b).read_bytes())
    data[archives.record_range(bytes(data), "data/0").start] ^= 1
    Path(b).write_bytes(data)
    assert diff(a, b).files == (file,)
    # And those of what is read may not.
    data[archives.record_range(bytes(data), "data/1").start] ^= 1
    Path(b).write_bytes(data)
    with pytest.raises(fastckpt.ChecksumError) as caught:
        diff(a, b)
    assert (caught.value.path, caught.value.tensors) == (b, ["other"])


def test_parts_of_a_storage_are_compared_and_said_to_be_unchecked(tmp_path: Path) -> None:
    flat = torch.arange(10.0)
    a = {"x": flat[:5], "y": flat[5:], "z": torch.ones(3)}
    b = {"x": torch.arange(5.0), "y": torch.arange(5.0, 10.0) + 1, "z": torch.ones(3)}
    file = compared(tmp_path, a, b)
    assert [tensor.name for tensor in file.differing] == ["y"]
    assert (file.unread, file.unchecked) == (("z",), ("x", "y"))


def test_files_without_checksums_are_compared_and_said_to_be(tmp_path: Path) -> None:
    path, other = tmp_path / "a.pt", tmp_path / "b.pt"
    path.write_bytes(archives.without_checksums({"w": torch.ones(10)}))
    torch.save({"w": torch.ones(10)}, other)
    (file,) = diff(path, other).files
    assert file.is_same
    assert (file.unread, file.unchecked) == ((), ("w",))


def test_a_pt_file_and_a_safetensors_file(tmp_path: Path) -> None:
    state = {f"t{n}": fill(dtype, 50) for n, dtype in enumerate((torch.float32, torch.bfloat16))}
    state["empty"], state["one"] = torch.empty(0, 2), torch.tensor(1.5)
    plain, other = str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")
    save_file(state, plain, metadata={"format": "pt"})
    save_file(state | {"one": torch.tensor(2.0)}, other)
    whole = str(tmp_path / "whole.pt")
    torch.save({"step": 7, "model_state_dict": state}, whole)
    for pair in ((plain, whole), (whole, plain), (plain, plain)):
        (file,) = diff(*pair).files
        assert file.is_same
        assert set(file.tensors) == set(state)
        notes = (f"only model_state_dict of {whole} was compared",) if whole in pair else ()
        assert file.notes == notes
        assert set(file.unchecked) == set(state)
    for pair in ((whole, other), (plain, other)):
        (tensor,) = diff(*pair).files[0].differing
        assert (tensor.name, tensor.max_abs) == ("one", 0.5)


def header(document: Any, data: bytes = b"") -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it has 0 bytes"),
        ((HEADER_NBYTES_MAX + 1).to_bytes(8, "little"), "its header should have"),
        (header(b"[" * 100_000), "too deeply"),
        (header(entry(shape=[3]), bytes(8)), "'w' has 8 bytes"),
        (header(entry(), bytes(9)), "should end at byte"),
    ],
)
def test_hostile_safetensors_are_refused(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    with pytest.raises(fastckpt.FormatError, match="not a safetensors file") as caught:
        diff(path, path)
    assert words in str(caught.value)


def test_shared_tensors_and_rare_ones(tmp_path: Path) -> None:
    def state(number: float) -> dict[str, Any]:
        w = torch.full((50,), number)
        return {"w": w, "tied": w, "sparse": torch.eye(3).to_sparse() * number}

    file = compared(tmp_path, state(1.0), state(2.0))
    assert {tensor.name for tensor in file.differing} >= {"w", "tied"}
    assert not compared(tmp_path, state(1.0), state(1.0)).differing


def write_step(directory: Path, step: int, value: float, ranks: int = 1) -> None:
    directory.mkdir(exist_ok=True)
    torch.save({"wte": torch.full((8,), value)}, directory / f"model_{step:06d}.pt")
    (directory / f"meta_{step:06d}.json").write_text(json.dumps({"step": step, "lr": 0.1}))
    for rank in range(ranks):
        torch.save({"m": torch.full((4,), value)}, directory / f"optim_{step:06d}_rank{rank}.pt")


def test_two_steps_of_a_run_and_of_two_runs(tmp_path: Path) -> None:
    write_step(tmp_path / "run", 100, 1.0)
    write_step(tmp_path / "run", 200, 1.5, ranks=2)
    report = diff_steps(tmp_path / "run", 100, tmp_path / "run", 200)
    assert [Path(file.b).name for file in report.files] == [
        "model_000200.pt",
        "meta_000200.json",
        "optim_000200_rank0.pt",
    ]
    assert [Path(path).name for path in report.only_b] == ["optim_000200_rank1.pt"]
    assert report.files[1].values == (ValueDiff("step", "100", "200"),)
    assert report.files[0].differing[0].relative_norm == 0.5
    write_step(tmp_path / "other", 100, 1.0)
    assert diff_steps(tmp_path / "run", 100, tmp_path / "other", 100).is_same
    with pytest.raises(fastckpt.IncompleteCheckpointError, match=r"no step 7 in .*: 100, 200$"):
        diff_steps(tmp_path / "run", 100, tmp_path / "run", 7)


def test_files_that_cannot_be_compared(tmp_path: Path) -> None:
    good, junk = saved(tmp_path, {"w": torch.ones(2)}, {})
    Path(junk).write_bytes(b"junk")
    with pytest.raises(fastckpt.FormatError):
        diff(good, junk)
    with pytest.raises(FileNotFoundError):
        diff(good, tmp_path / "missing.pt")
    swapped = tmp_path / "swapped.pt"
    swapped.write_bytes(archives.with_records(Path(good).read_bytes(), {"byteorder": b"big"}))
    with pytest.raises(fastckpt.FormatError, match="byte order"):
        diff(good, swapped)


def test_a_record_that_is_too_short_is_refused(tmp_path: Path) -> None:
    good, short = saved(tmp_path, {"w": torch.ones(20)}, {"w": torch.ones(20)})
    data = archives.with_records(Path(good).read_bytes(), {"data/0": bytes(79)})
    Path(short).write_bytes(data)
    with pytest.raises(
        fastckpt.FormatError, match=r"record data/0 has 79 bytes, and data\.pkl asks for 80"
    ):
        diff(good, short)


def test_places_outside_a_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain"
    path.write_bytes(bytes(16))
    plain = _native.PlainFile.open(path)
    assert (
        _native.compare_tensors(plain, plain, [("float32", "float32", 4, 0, 0)])[0].differing == 0
    )
    for numel, start in ((4, 1), (5, 0), (2**62, 0), (1, 2**64 - 1)):
        with pytest.raises(ValueError, match="beyond the end"):
            _native.compare_tensors(plain, plain, [("float32", "float32", numel, start, 0)])


def test_layers() -> None:
    for name, layer in {
        "model.transformer.h.12.attn.c_q.weight": "model.transformer.h.12",
        "lm_head.weight": "lm_head",
        "w": "w",
        "state.0": "state",
        "state.0.exp_avg": "state.0",
    }.items():
        assert layer_of(name) == layer


# The command


def some_difference(directory: Path) -> tuple[str, str]:
    a = {f"h.{n}.{part}": torch.ones(10) for n in range(2) for part in ("w", "b")}
    b = a | {"h.1.w": torch.full((10,), 1.5), "h.1.b": torch.full((10,), 2.0)}
    return saved(directory, a | {"old": torch.ones(1)}, b)


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = some_difference(tmp_path)
    assert run(["diff", a, a]) == 0
    assert capsys.readouterr().out == "SAME: 5 tensors\n"
    assert run(["diff", a, b]) == 1
    captured = capsys.readouterr()
    assert captured.out == (
        "DIFFERENT: 2 of 4 tensors differ, 1 removed\n"
        f"{a} -> {b}\n"
        "  removed  old  float32 [1]\n"
        "  layer  differ  max change  mean change  relative norm\n"
        "  h.1    2 of 2           1         0.75          0.791\n"
        "  tensor    differ  max change  mean change  relative norm\n"
        "  h.1.w   10 of 10         0.5          0.5            0.5\n"
        "  h.1.b   10 of 10           1            1              1\n"
    )
    assert captured.err == ""


def test_long_lists_are_cut_unless_all_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = saved(tmp_path, *({f"t{n}": torch.full((1,), v) for n in range(30)} for v in (1.0, 2.0)))
    assert run(["diff", a, b]) == 1
    assert "  ... and 10 more (--all lists them)\n" in capsys.readouterr().out
    assert run(["diff", "--all", a, b]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 33


def test_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = saved(tmp_path, {"a|b": torch.ones(2), "n": 1}, {"a|b": torch.zeros(2), "n": 2})
    assert run(["diff", "--md", a, b]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "## DIFFERENT: 1 of 1 tensors differ, other values: 1"
    assert "| n | 1 | 2 |" in lines
    assert "| tensor | differ | max change | mean change | relative norm |" in lines
    assert "|---|---:|---:|---:|---:|" in lines
    assert "| a\\|b | 2 of 2 | 1 | 1 | 1 |" in lines


def test_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = saved(
        tmp_path,
        {"w": torch.tensor([1.0, math.nan]), "z": torch.zeros(1)},
        {"w": torch.tensor([2.0, 1.0]), "z": torch.ones(1)},
    )
    document = run_json(capsys, "diff", a, b, status="different", code=1)
    (file,) = document["report"]["files"]
    assert file["differing"][0] == {
        "name": "w",
        "dtype": "float32",
        "shape": [2],
        "elements": 2,
        "differing": 2,
        "non_finite": 1,
        "max_abs": 1.0,
        "mean_abs": 1.0,
        "relative_norm": 1.0,
    }
    # JSON has no infinity.
    assert file["differing"][1]["relative_norm"] is None
    assert [layer["name"] for layer in file["layers"]] == ["w", "z"]


@pytest.mark.parametrize("as_json", [False, True])
def test_exit_codes(as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--json"] if as_json else []
    good, junk = saved(tmp_path, {"w": torch.ones(2)}, {})
    Path(junk).write_bytes(b"junk")
    write_step(tmp_path / "run", 1, 1.0)
    directory, missing = str(tmp_path / "run"), str(tmp_path / "missing.pt")
    for arguments, code, status in (
        ([good, good], 0, "same"),
        ([directory, "--steps", "1", "1"], 0, "same"),
        ([good], 2, "usage"),
        ([good, good, good], 2, "usage"),
        ([good, directory], 2, "usage"),
        ([good, good, "--md", "--json"], 2, "usage"),
        ([good, missing], 4, "not_found"),
        ([directory, "--steps", "1", "2"], 4, "not_found"),
        ([missing, "--steps", "1", "2"], 4, "not_found"),
        ([good, junk], 6, "damaged"),
    ):
        assert run(["diff", *arguments, *options]) == code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert (captured.err == "") == (code == 0)
        if as_json:
            assert json.loads(captured.out)["status"] == status


def test_names_do_not_control_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = saved(tmp_path, {"w\x1b[2J": torch.ones(1), "v": "\x1b"}, {"w\x1b[2J": torch.zeros(1)})
    for options in ([], ["--md"]):
        assert run(["diff", a, b, *options]) == 1
        assert "\x1b" not in capsys.readouterr().out


def test_progress_ends_at_its_end_and_may_raise(tmp_path: Path) -> None:
    paths = saved(tmp_path, {"w": torch.ones(100_000)}, {"w": torch.zeros(100_000)})
    seen: list[tuple[int, int]] = []
    diff(*paths, progress=lambda *figures: seen.append(figures))
    assert seen[-1] == (800_000, 800_000)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diff(*paths, progress=stop)


def test_torch_is_not_imported(tmp_path: Path) -> None:
    a, b = some_difference(tmp_path)
    script = (
        "import sys\n"
        "from fastckpt.cli.app import run\n"
        "code = run(['diff', *sys.argv[1:]])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, a, b], check=False, capture_output=True)
    assert done.returncode == 1
    assert done.stderr == b""


def test_a_report_is_plain_data() -> None:
    tensor = TensorDiff("h.0.w", TensorLayout("float32", (2,)), 2, 1, 0, 2, 3.0, 3.0, 9.0, 4.0)
    assert (tensor.mean_abs, tensor.relative_norm) == (1.5, 1.5)
