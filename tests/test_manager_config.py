"""CheckpointConfig: its defaults, and what it refuses; when `should_save` says yes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.manager_runs import manager_of, save_all, steps_in

import fastckpt
from fastckpt import CheckpointConfig


def test_the_defaults() -> None:
    assert dataclasses.asdict(CheckpointConfig()) == {
        "checkpoint_dir": "checkpoints",
        "save_total_limit": 5,
        "save_best_only": False,
        "metric_name": "val_loss",
        "metric_mode": "min",
        "save_optimizer": True,
        "save_rng_state": True,
        "keep_every": None,
        "save_every_steps": None,
        "save_every_secs": None,
        "save_when": None,
        "cycle_steps": None,
        "cycle_mult": 1,
        "verify_before_delete": True,
    }
    assert CheckpointConfig("a", 3, True, "acc", "max", False, False).save_total_limit == 3


_WHOLE = "must be a whole number of at least 1, or None, not"
_CONDITION = "must be a comparison and a number, such as ('<', 2.5), not"


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"checkpoint_dir": 3}, TypeError, "checkpoint_dir must be a path, not 3"),
        ({"save_total_limit": 0}, ValueError, f"save_total_limit {_WHOLE} 0"),
        ({"save_total_limit": 2.0}, TypeError, f"save_total_limit {_WHOLE} 2.0"),
        ({"keep_every": True}, TypeError, f"keep_every {_WHOLE} True"),
        ({"save_every_steps": -1}, ValueError, f"save_every_steps {_WHOLE} -1"),
        ({"cycle_steps": "9"}, TypeError, f"cycle_steps {_WHOLE} '9'"),
        (
            {"cycle_steps": 9, "cycle_mult": 0},
            ValueError,
            "cycle_mult must be a whole number of at least 1, not 0",
        ),
        (
            {"cycle_mult": 2},
            ValueError,
            "cycle_mult needs cycle_steps, the length of the first cycle",
        ),
        ({"save_best_only": 1}, TypeError, "save_best_only must be True or False, not 1"),
        ({"metric_name": 3}, TypeError, "metric_name must be a string or None, not 3"),
        ({"metric_mode": "low"}, ValueError, "metric_mode must be 'min' or 'max', not 'low'"),
        (
            {"save_every_secs": 0},
            ValueError,
            "save_every_secs must be a number of seconds above 0, or None, not 0",
        ),
        (
            {"save_every_secs": math.nan},
            ValueError,
            "save_every_secs must be a number of seconds above 0, or None, not nan",
        ),
        (
            {"save_every_secs": "60"},
            TypeError,
            "save_every_secs must be a number of seconds above 0, or None, not '60'",
        ),
        (
            {"save_when": [1]},
            TypeError,
            "save_when must map metric names to conditions, not [1]",
        ),
        ({"save_when": {"a": 3}}, TypeError, f"save_when['a'] {_CONDITION} 3"),
        ({"save_when": {"a": ("=", 3)}}, ValueError, f"save_when['a'] {_CONDITION} ('=', 3)"),
        (
            {"save_when": {"a": ("<", "3")}},
            TypeError,
            f"save_when['a'] {_CONDITION} ('<', '3')",
        ),
        (
            {"save_best_only": True, "metric_name": None},
            ValueError,
            "save_best_only needs a metric_name, which chooses the best",
        ),
        (
            {"save_best_only": True, "cycle_steps": 5},
            ValueError,
            (
                "save_best_only and cycle_steps exclude each other: an ensemble needs the end of every "
                "cycle, which is seldom the best checkpoint"
            ),
        ),
    ],
)
def test_wrong_fields_are_refused(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        CheckpointConfig(**fields)
    assert str(caught.value) == message


def test_the_manager_has_a_copy_that_is_checked(tmp_path: Path) -> None:
    config = CheckpointConfig(tmp_path, save_total_limit=np.int64(2))
    assert type(config.save_total_limit) is int
    manager = fastckpt.CheckpointManager(config, None, None, None)
    config.save_total_limit = 0
    assert manager.config.save_total_limit == 2
    with pytest.raises(ValueError, match="save_total_limit"):
        fastckpt.CheckpointManager(config, None, None, None)


def due_steps(manager: fastckpt.CheckpointManager, steps: range, **metrics: float) -> list[int]:
    return [step for step in steps if manager.should_save(step, metrics)]


def test_without_a_policy_a_save_is_due_whenever_asked(tmp_path: Path) -> None:
    assert manager_of(tmp_path).should_save(3)
    best_only = manager_of(tmp_path, save_best_only=True)
    save_all(best_only, {1: 2.0})
    assert best_only.should_save(2, {"val_loss": 1.5})
    assert not best_only.should_save(2, {"val_loss": 2.0})
    assert not best_only.should_save(2)


def test_every_so_many_steps(tmp_path: Path) -> None:
    manager = manager_of(tmp_path, save_every_steps=4)
    assert due_steps(manager, range(13)) == [4, 8, 12]


def test_every_so_many_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("fastckpt.training.triggers.time.monotonic", lambda: now)
    manager = manager_of(tmp_path, save_every_secs=60)
    assert not manager.should_save(1)
    now += 59.9
    assert not manager.should_save(2)
    now += 0.2
    assert manager.should_save(3)
    assert manager.should_save(4)
    save_all(manager, {4: 1.0})
    assert not manager.should_save(5)
    now += 60
    assert manager.should_save(6)


def test_when_a_metric_comes_to_fulfil_its_condition(tmp_path: Path) -> None:
    when = {"acc": (">=", 0.9), "loss": ("<", 1.0)}
    manager = manager_of(tmp_path, save_when=when, metric_name=None)
    accuracies = [0.5, 0.9, 0.95, math.nan, 0.91, 0.2, 0.9]
    due = [manager.should_save(step, {"acc": acc}) for step, acc in enumerate(accuracies)]
    assert due == [False, True, False, False, True, False, True]
    # Asked twice, the same answer; and without the metric, there is nothing to say.
    assert manager.should_save(6, {"acc": 0.9})
    assert not manager.should_save(7)
    assert manager.should_save(8, {"acc": 0.9, "loss": 0.5})
    manager.save(0, 8, {"acc": 0.9, "loss": 0.5})
    # A new manager knows what was fulfilled already.
    again = manager_of(tmp_path, save_when=when, metric_name=None)
    assert not again.should_save(9, {"acc": 0.95, "loss": 0.4})
    assert not again.should_save(10, {"acc": 0.95, "loss": 1.4})
    assert again.should_save(11, {"acc": 0.95, "loss": 0.9})


def test_at_the_end_of_each_cycle_and_those_stay(tmp_path: Path) -> None:
    manager = manager_of(tmp_path, cycle_steps=3, save_total_limit=1)
    assert due_steps(manager, range(10)) == [3, 6, 9]
    longer = manager_of(tmp_path, cycle_steps=2, cycle_mult=3, save_total_limit=1)
    # Cycles of 2, 6 and 18 steps.
    assert due_steps(longer, range(30)) == [2, 8, 26]
    save_all(longer, dict.fromkeys(range(1, 10), 1.0))
    assert steps_in(tmp_path) == [1, 2, 8, 9]  # 1 is the best


@given(first=st.integers(1, 9), mult=st.integers(1, 3), step=st.integers(-3, 400))
def test_cycles_end_where_a_loop_over_them_says(first: int, mult: int, step: int) -> None:
    config = CheckpointConfig(cycle_steps=first, cycle_mult=mult)
    ends, length = {first}, first
    while max(ends) < 400:
        length *= mult
        ends.add(max(ends) + length)
    assert config.ends_cycle(step) == (step in ends)


def test_should_save_checks_what_it_is_given(tmp_path: Path) -> None:
    manager = manager_of(tmp_path)
    with pytest.raises(ValueError, match="step must not be negative, and is -1"):
        manager.should_save(-1)
    with pytest.raises(TypeError, match="must be one real number"):
        manager.should_save(1, {"val_loss": "x"})
