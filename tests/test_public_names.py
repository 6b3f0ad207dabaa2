"""The names of the package: what `import *` brings, what errors are called, which arguments are refused."""

from __future__ import annotations

import builtins
import errno
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fastckpt
from fastckpt import errors
from fastckpt._average.report import AverageReport
from fastckpt._verify.report import FileReport, Status, StepReport
from fastckpt.cli.app import app

ERRORS = [
    fastckpt.CheckpointError("what", path="a.pt"),
    fastckpt.FormatError("what", path="a.pt"),
    fastckpt.ContentsError("what", path="a.pt"),
    fastckpt.TorchScriptError("what", path="a.pt"),
    fastckpt.UncoveredFormatError("what", path="a.pt", hint="do that"),
    fastckpt.ChecksumError(
        "what",
        path="a.pt",
        record="data/1",
        tensors=["w"],
        offset=64,
        nbytes=8,
        expected=1,
        found=2,
    ),
    fastckpt.UnsafePickleError("what", path="a.pt"),
    fastckpt.IncompleteCheckpointError("what", path="run"),
    fastckpt.CommitUnknownError(errno.EIO, "what", "a.pt"),
    fastckpt.MissingChecksumWarning("what"),
    fastckpt.MissingMetricError("what"),
    fastckpt.StateMismatchError("what"),
    fastckpt.UnknownMetricError("nope", ["val_loss"], "runs"),
]


def test_dir_is_all() -> None:
    assert dir(fastckpt) == sorted(fastckpt.__all__)
    assert all(getattr(fastckpt, name) is not None for name in fastckpt.__all__)


def test_a_star_import_hides_nothing() -> None:
    names = set(fastckpt.__all__)
    assert names & set(sys.stdlib_module_names) == set()
    assert names & set(dir(builtins)) == set()


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("inspect", "inspect_checkpoint"),
        ("copy", "copy_checkpoint"),
        ("gc", "collect_garbage"),
        ("average", "average_files"),
    ],
)
def test_second_names(name: str, function: str) -> None:
    assert getattr(fastckpt, name) is getattr(fastckpt, function)


def test_every_command_has_its_function() -> None:
    for command in (info.name or "" for info in app.registered_commands):
        found = [
            name
            for name in (command, f"{command}_checkpoint")
            if callable(getattr(fastckpt, name, None))
        ]
        assert found, command


def test_every_error_is_one_of_the_package() -> None:
    assert {type(error) for error in ERRORS} == {getattr(errors, name) for name in errors.__all__}
    assert set(errors.__all__) <= set(fastckpt.__all__)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_say_where_they_are_from_and_can_be_pickled(error: Exception) -> None:
    assert type(error).__module__ == "fastckpt"
    assert getattr(fastckpt, type(error).__name__) is type(error)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert (again.args, getattr(again, "errno", None)) == (
        error.args,
        getattr(error, "errno", None),
    )


def test_an_error_of_the_core_is_one_of_the_package(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04" + bytes(60))
    with pytest.raises(fastckpt.FormatError) as caught:
        fastckpt.load(tmp_path / "a.pt")
    assert type(caught.value).__module__ == "fastckpt"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


# Reports


def test_a_report_is_true_if_it_is_ok(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    torch.save({"w": torch.ones(100)}, good)
    data = bytearray(good.read_bytes())
    data[-1] ^= 1
    bad.write_bytes(data)
    other = tmp_path / "other.pt"
    torch.save({"w": torch.zeros(100)}, other)
    reports: list[tuple[Any, bool]] = [
        (fastckpt.verify(good), True),
        (fastckpt.verify(bad), False),
        (fastckpt.verify(good).files[0], True),
        (fastckpt.verify(bad).files[0], False),
        (fastckpt.diff(good, good), True),
        (fastckpt.diff(good, other), False),
        (fastckpt.copy_checkpoint(good, tmp_path / "copies"), True),
        (fastckpt.copy_checkpoint(bad, tmp_path / "copies"), False),
        (fastckpt.collect_garbage(tmp_path), True),
        (fastckpt.collect_garbage(tmp_path / "nothing"), False),
        (fastckpt.prune(tmp_path / "nothing", keep=1), False),
        (fastckpt.repair(good, tmp_path / "repaired.pt"), True),
        (fastckpt.average_files([good, other], tmp_path / "mean.pt"), True),
        (fastckpt.export_checkpoint(good, tmp_path / "weights.pt"), True),
    ]
    for report, ok in reports:
        assert bool(report) is report.ok is ok, report


def test_verdicts_of_steps_are_reports_too() -> None:
    file = FileReport("a.pt", "model", Status.UNCHECKED)
    step = StepReport("run", 1, Status.INCOMPLETE, (file,), (), ("meta_000001.json",))
    assert (bool(file), file.ok, file.exit_code) == (True, True, 0)
    assert (bool(step), step.ok, step.exit_code) == (False, False, 3)
    assert bool(AverageReport("m.pt", (), (), 0, 0, 0, ()))


# Arguments


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fastckpt.verify(5), "path must be a path or a list of paths, not 5"),  # type: ignore[arg-type]
        (
            lambda: fastckpt.verify([5]),  # type: ignore[list-item]
            r"path\[0\] must be a path \(a string or os.PathLike\), not 5",
        ),
        (lambda: fastckpt.verify("a.pt", threads="two"), "threads must be a whole number"),  # type: ignore[arg-type]
        (lambda: fastckpt.inspect_checkpoint(5), "path must be a path"),  # type: ignore[arg-type]
        (lambda: fastckpt.inspect_checkpoint(["a"]), "path must be one path, not a list"),  # type: ignore[arg-type]
        (lambda: fastckpt.diff(5, "b.pt"), "a must be a path"),  # type: ignore[arg-type]
        (
            lambda: fastckpt.average_checkpoints(5),  # type: ignore[arg-type]
            "checkpoints must be a list of paths, not 5",
        ),
        (
            lambda: fastckpt.average_checkpoints("x.pt"),
            r"checkpoints must be a list of paths, not one path: \['x.pt'\]",
        ),
        (lambda: fastckpt.average_files(["x.pt"]), "output is missing: name the destination once"),
        (
            lambda: fastckpt.repair("x.pt", "y.pt", to="z.pt"),
            "output and to are the same argument",
        ),
        (lambda: fastckpt.copy_checkpoint(5, "to"), "source must be a path"),  # type: ignore[arg-type]
        (lambda: fastckpt.copy_checkpoint("x.pt", 5), "output must be a path"),  # type: ignore[arg-type]
        (
            lambda: fastckpt.copy_checkpoint(".", "to", steps=5),  # type: ignore[arg-type]
            "steps must be a list of whole numbers, not 5",
        ),
        (
            lambda: fastckpt.copy_checkpoint(".", "to", steps=["5"]),  # type: ignore[list-item]
            "steps must be whole numbers, not '5'",
        ),
        (
            lambda: fastckpt.average_checkpoints(["x.pt"], weights=5),  # type: ignore[arg-type]
            "weights must be a list of numbers, not 5",
        ),
        (lambda: fastckpt.collect_garbage(5), "path must be a path or a list of paths, not 5"),  # type: ignore[arg-type]
        (lambda: fastckpt.prune(5, keep=1), "path must be a path"),  # type: ignore[arg-type]
        (lambda: fastckpt.top(5, "val_loss"), "path must be a path or a list of paths, not 5"),  # type: ignore[arg-type]
        (
            lambda: fastckpt.ModelSelector.select_top_k_by_metric(5, "val_loss"),  # type: ignore[arg-type]
            "checkpoints must be a path or a list of paths, not 5",
        ),
        (lambda: fastckpt.top("runs", 5), "metric_name must be the name of a metric, not 5"),  # type: ignore[arg-type]
        (lambda: fastckpt.export_checkpoint(5, "x.pt"), "path must be a path"),  # type: ignore[arg-type]
    ],
)
def test_an_argument_of_the_wrong_kind(call: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


def test_a_typo_says_what_is_expected() -> None:
    words = "one of 'base', 'sft', 'rl', not 'bas'; did you mean 'base'"
    with pytest.raises(KeyError, match=words):
        fastckpt.load_model("bas", "cpu", "eval")
    with pytest.raises(KeyError, match=words):
        fastckpt.load_optimizer_state("bas", "cpu", 0)
