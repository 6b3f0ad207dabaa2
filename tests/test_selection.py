"""ModelSelector: checkpoints ranked by what they say of themselves."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastckpt
from fastckpt import ModelSelector
from fastckpt.selection import RankedCheckpoint, UnknownMetricError

NAN = float("nan")


def write(path: Path, step: int | None = None, **root: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    position = {} if step is None else {"global_step": step}
    torch.save({**position, "model_state_dict": {"w": torch.ones(2)}, **root}, path)
    return path


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step, loss in ((1, 2.5), (2, 2.25), (3, 2.75), (4, 2.0)):
        write(tmp_path / f"{step}.pt", step, metrics={"val_loss": loss, "acc": 1 / loss})
    return tmp_path


# Order.


def test_the_lowest_or_the_highest_first(run: Path) -> None:
    select = ModelSelector.select_top_k_by_metric
    assert names(select(run, "val_loss", "min", 2)) == ["4.pt", "2.pt"]
    assert names(select(run, "val_loss", "max", 2)) == ["3.pt", "1.pt"]
    assert names(select(run, "acc", "max", 10)) == ["4.pt", "2.pt", "1.pt", "3.pt"]
    assert select(run, "val_loss", "min", 1) == [run / "4.pt"]


def test_a_list_of_paths_of_any_kind(run: Path) -> None:
    given_paths: list[str | Path] = [str(run / "1.pt"), run / "2.pt", run / "3.pt"]
    best = ModelSelector.select_top_k_by_metric(given_paths, "val_loss", "min", 2)
    assert best == [run / "2.pt", run / "1.pt"]
    both = ModelSelector.select_top_k_by_metric([run / "1.pt", run], "val_loss", "min", 9)
    assert names(both) == ["4.pt", "2.pt", "1.pt", "3.pt"]


def test_nan_after_all_numbers_and_missing_after_nan(tmp_path: Path) -> None:
    metrics: list[dict[str, Any]] = [
        {"other": 1.0},
        {"loss": NAN},
        {"loss": float("inf")},
        {"loss": 3},
        {"loss": None},
        {"loss": "2.0"},
        {"loss": float("-inf")},
    ]
    for step, each in enumerate(metrics):
        write(tmp_path / f"{step}.pt", step, metrics=each)
    for mode, order in (("min", [6, 3, 2, 1, 0, 4, 5]), ("max", [2, 3, 6, 1, 0, 4, 5])):
        ranked = ModelSelector.rank_by_metric(tmp_path, "loss", mode)  # type: ignore[arg-type]
        assert [checkpoint.step for checkpoint in ranked] == order
    found = {each.step: each.metric for each in ranked}
    assert (found[3], found[0], found[4], found[5]) == (3, None, None, None)
    assert isinstance(found[1], float)
    assert math.isnan(found[1])


def test_among_equals_the_lower_step_then_the_order_given(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "c.pt", 300, loss=1.0),
        write(tmp_path / "b.pt", None, loss=1.0),
        write(tmp_path / "a.pt", None, loss=1.0),
        write(tmp_path / "d.pt", 200, loss=1.0),
    ]
    best = ModelSelector.select_top_k_by_metric(paths, "loss", "max", 4)
    assert names(best) == ["d.pt", "c.pt", "b.pt", "a.pt"]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(
        st.one_of(st.none(), st.floats(), st.integers(-(2**64), 2**64)), min_size=1, max_size=6
    ),
    mode=st.sampled_from(["min", "max"]),
)
def test_the_ranking_is_pythons_own_sort(values: list[Any], mode: Any, tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{step}.pt", step, metrics={} if value is None else {"m": value})
        for step, value in enumerate(values)
    ]
    if all(value is None for value in values):
        with pytest.raises(UnknownMetricError):
            ModelSelector.rank_by_metric(paths, "m", mode)
        return
    numbers = [n for n, value in enumerate(values) if value is not None and value == value]
    numbers.sort(key=lambda n: values[n] if mode == "min" else -values[n])
    nans = [n for n, value in enumerate(values) if value is not None and n not in numbers]
    missing = [n for n, value in enumerate(values) if value is None]
    ranked = ModelSelector.rank_by_metric(paths, "m", mode)
    assert [checkpoint.step for checkpoint in ranked] == numbers + nans + missing


# Where the metric is.


def test_where_a_metric_is_looked_for(tmp_path: Path) -> None:
    roots: list[dict[str, Any]] = [
        {"metrics": {"loss": 1.0}, "loss": 9.0},
        {"loss": 2.0},
        {"eval": {"loss": 3.0}},
        {"loss": torch.tensor(4.0)},
        {"metrics": {"loss": torch.tensor([5.0], dtype=torch.bfloat16)}},
        {"loss": torch.tensor(6, dtype=torch.int64)},
        {"loss": torch.tensor(7.0, dtype=torch.float16)},
        # Not clear which: the metric is missing.
        {"train": {"loss": 0.0}, "eval": {"loss": 0.5}},
        # A view of a large storage is not read.
        {"loss": torch.zeros(10_000)[3]},
        {"loss": [0.0]},
        {"loss": True},
    ]
    for step, root in enumerate(roots):
        write(tmp_path / f"{step:02}.pt", step, **root)
    ranked = ModelSelector.rank_by_metric(tmp_path, "loss")
    expected = [1.0, 2.0, 3.0, 4.0, 5.0, 6, 7.0, None, None, None, None]
    assert [checkpoint.metric for checkpoint in ranked] == expected
    (dotted,) = (each for each in ModelSelector.rank_by_metric(tmp_path, "eval.loss")[:1])
    assert (dotted.step, dotted.metric) == (7, 0.5)


def test_steps_of_nanochats_naming_have_their_metric_in_the_meta(tmp_path: Path) -> None:
    for tag, step, bpb in (("d4", 100, 0.9), ("d4", 200, 0.8), ("d12", 100, 0.7)):
        meta = {"step": step, "val_bpb": bpb, "loop_state": {"min_val_bpb": bpb / 2}}
        state: dict[str, Any] = {"state": {}, "param_groups": []}
        fastckpt.save_checkpoint(tmp_path / tag, step, {"w": torch.ones(2)}, state, meta)
    best = ModelSelector.select_top_k_by_metric(tmp_path, "val_bpb", "min", 2)
    assert best == [tmp_path / "d12/model_000100.pt", tmp_path / "d4/model_000200.pt"]
    # One file, and a name without its path.
    one = [tmp_path / "d4/model_000100.pt"]
    (found,) = ModelSelector.rank_by_metric(one, "min_val_bpb")
    assert found == RankedCheckpoint(
        one[0], 0.45, 100, None, {"val_bpb": 0.9, "loop_state.min_val_bpb": 0.45}
    )
    # Without its optimizer a model can be chosen all the same.
    (tmp_path / "d12/optim_000100_rank0.pt").unlink()
    assert ModelSelector.select_top_k_by_metric(tmp_path, "val_bpb", "min", 1) == best[:1]


def test_a_model_without_a_meta_speaks_for_itself(tmp_path: Path) -> None:
    write(tmp_path / "model_000100.pt", None, val_loss=2.5)
    (found,) = ModelSelector.rank_by_metric(tmp_path, "val_loss")
    assert (found.metric, found.step) == (2.5, 100)


def test_best_model_is_no_checkpoint_of_its_own(tmp_path: Path) -> None:
    name = "checkpoint_epoch0001_step00000100"
    write(tmp_path / f"{name}.pt", 100, epoch=1, metrics={"loss": 1.0})
    torch.save({"rng_states": {}}, tmp_path / f"{name}_rank1.pt")
    for second_name in (os.link, shutil.copyfile):
        second_name(tmp_path / f"{name}.pt", tmp_path / "best_model.pt")
        best = ModelSelector.select_top_k_by_metric(tmp_path, "loss", "min", 5)
        assert names(best) == [f"{name}.pt"]
        (tmp_path / "best_model.pt").unlink()
    write(tmp_path / "best_model.pt", 50, epoch=0, metrics={"loss": 0.5})
    assert names(ModelSelector.select_top_k_by_metric(tmp_path, "loss")) == [
        "best_model.pt",
        f"{name}.pt",
    ]


def test_tensors_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt", 1, loss=1.0, big=torch.arange(4000.0))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert ModelSelector.select_top_k_by_metric(tmp_path, "loss") == [path]


# What goes wrong.


def test_a_metric_that_no_checkpoint_has(run: Path) -> None:
    with pytest.raises(UnknownMetricError) as caught:
        ModelSelector.select_top_k_by_metric(run, "loss", "min", 2)
    assert str(caught.value) == f"no metric 'loss' in {run} (available: val_loss, acc)"
    assert caught.value.available == ["val_loss", "acc"]
    assert isinstance(caught.value, ValueError)


def test_a_checkpoint_that_cannot_be_read_is_left_out_and_named(run: Path) -> None:
    (run / "4.pt").write_bytes(b"nothing of the kind")
    (run / "2.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match="left out: .* is not a checkpoint") as caught:
        best = ModelSelector.select_top_k_by_metric(run, "val_loss", "min", 9)
    assert names(best) == ["1.pt", "3.pt"]
    assert [str(warning.message).split(": ")[:1] for warning in caught] == [["left out"]] * 2
    assert f"{run / '2.pt'} is not a checkpoint" in str(caught[0].message)
    assert caught[0].filename == __file__
    ranked = ModelSelector.rank_by_metric(run, "val_loss")
    assert [each.problem is None for each in ranked] == [True, True, False, False]


def test_wrong_arguments(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        ModelSelector.select_top_k_by_metric(run, "val_loss", "min", 0)
    with pytest.raises(ValueError, match="mode must be 'min' or 'max', not 'best'"):
        ModelSelector.select_top_k_by_metric(run, "val_loss", "best", 1)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        ModelSelector.select_top_k_by_metric([run / "9.pt"], "val_loss", "min", 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*empty"):
        ModelSelector.select_top_k_by_metric(tmp_path / "empty", "val_loss", "min", 1)


# The rest.


def test_averaging_is_done_by_average_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    module = types.ModuleType("fastckpt._average.average")

    def average_checkpoints(*args: Any, **kwargs: Any) -> dict[str, int]:
        calls.append((args, kwargs))
        return {"w": 1}

    module.average_checkpoints = average_checkpoints  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fastckpt._average.average", module)
    model = torch.nn.Linear(1, 1)
    assert ModelSelector.average_checkpoints(["a.pt"], model, weights=[1.0]) == {"w": 1}
    # As a script's own selector: the model is a reference, and whoever calls loads the result into it.
    assert calls == [((["a.pt"],), {"weights": [1.0]})]


def test_no_torch_is_imported(run: Path) -> None:
    script = (
        "import sys, fastckpt\n"
        "best = fastckpt.ModelSelector.select_top_k_by_metric(sys.argv[1], 'val_loss', 'min', 1)\n"
        "assert best[0].name == '4.pt'\n"
        "heavy = {'torch', 'numpy', 'rich', 'typer'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script, str(run)], check=True, timeout=200)
