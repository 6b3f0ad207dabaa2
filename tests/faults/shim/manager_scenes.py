"""Saves of a CheckpointManager: what is there before one, and what may be there after it was cut short."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.faults.shim.scenes import DEAD_TEMP, Scene
from tests.faults.shim.zygote import Act
from tests.specimens import assert_same

import fastckpt
from fastckpt._steps.checkpoint_names import parse_checkpoint_name

_MODULE = "tests.faults.shim.manager_scenes"
_RUN = "run"
_BEST = "best_model.pt"
_TEMP = re.compile(r"\.fastckpt-\d+-\d+\.tmp")
# One chunk, so that the operations have the same order each time: which writes of an archive fail or kill
# is what `crash_everywhere` and `errors_everywhere` try.
_NUMEL = 1_000
_EPOCH = 1
_LIMIT = 2
# Steps that are there, with their metric: 10 is the best, the others are the newest.
_EARLIER = {10: 1.0, 20: 3.0, 30: 2.0}
_NEXT_STEP = 90


class Weights:
    """A model whose weights follow from one number."""

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def state_dict(self) -> dict[str, Any]:
        return {"w": torch.full((_NUMEL,), float(self.number)), "n": torch.tensor(self.number)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = int(state["n"])
        assert_same(state, self.state_dict())


def manager_of(directory: Path, model: Weights) -> fastckpt.CheckpointManager:
    """Make a manager of the run in a directory."""
    config = fastckpt.CheckpointConfig(directory / _RUN, save_total_limit=_LIMIT)
    return fastckpt.CheckpointManager(config, model, None, None)


def name_of(step: int, rank: int = 0) -> str:
    """Return the name of a file of a step."""
    return f"checkpoint_epoch{_EPOCH:04d}_step{step:08d}" + (f"_rank{rank}.pt" if rank else ".pt")


def save(directory: Path, step: int, metric: float, number: int) -> Act:
    """Save a step; the manager was made before."""
    model = Weights(number)
    manager = manager_of(directory, model)

    def act() -> None:
        manager.save(_EPOCH, step, {"val_loss": metric})

    return act


def load(directory: Path, number: int, *, best: bool) -> Act:
    """Load the newest or the best with a new manager."""
    model = Weights()

    def act() -> Any:
        manager = manager_of(directory, model)
        resumed = manager.load_best() if best else manager.load()
        return lambda: _assert_loaded(model.number, number, resumed)

    return act


def _assert_loaded(found: int, expected: int, resumed: Any) -> None:
    assert found == expected, f"loaded save {found}, not {expected}"
    assert resumed["global_step"] == expected // 10


def _number(step: int, again: int = 0) -> int:
    """Return the number of a save: which step, and which of its saves."""
    return 10 * step + again


@dataclass(frozen=True)
class ManagerScene(Scene):
    """One save of a manager.

    Attributes:
        name: For messages.
        step: The step that is saved.
        metric: Its metric; the best there was is 1.0.
        is_first: Whether there is no directory yet.
        ranks: Whether another rank has files beside the checkpoints.
        work: What saves it.
    """

    name: str
    step: int
    metric: float
    is_first: bool = False
    ranks: bool = False
    work: str = f"{_MODULE}:save"

    @property
    def before(self) -> str:
        return "none" if self.is_first else "old"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"step": self.step, "metric": self.metric, "number": _number(self.step, 1)}

    @property
    def _improves(self) -> bool:
        return self.is_first or self.metric < _EARLIER[10]

    def fill(self, directory: Path) -> None:
        if self.is_first:
            return
        model = Weights()
        manager = manager_of(directory, model)
        for step, metric in _EARLIER.items():
            model.number = _number(step)
            manager.save(_EPOCH, step, {"val_loss": metric})
            if self.ranks:
                fastckpt.save({"rng_states": {}}, directory / _RUN / name_of(step, rank=1))
        (directory / _RUN / DEAD_TEMP).write_bytes(b"half")

    def judge(self, directory: Path, *, finished: bool) -> str:
        run = directory / _RUN
        steps = self._judge_files(run)
        is_new = self.step in steps and steps[self.step] == _number(self.step, 1)
        if finished:
            assert is_new, "the save returned, and its checkpoint is not there"
        if self.is_first and not is_new:
            assert not steps, steps
            return "none"
        # The last good one, and the best one, whatever has become of the others.
        newest = {True: _number(self.step, 1), False: _number(30)}[is_new or self.step < 30]
        if self.step == 30 and is_new:
            newest = _number(30, 1)
        model = Weights()
        assert manager_of(directory, model).load()["global_step"] == max(steps)
        assert model.number == newest, f"loaded {model.number}, not {newest}"
        manager = manager_of(directory, model)
        resumed = manager.load_best()
        best = self.metric if is_new and self._improves else _EARLIER[10]
        assert resumed["metrics"]["val_loss"] == best == manager.best_metric
        assert model.number == (_number(self.step, 1) if is_new and self._improves else _number(10))
        self._judge_best_name(run, is_new=is_new, finished=finished)
        return "new" if is_new else "old"

    def _judge_files(self, run: Path) -> dict[int, int]:
        """Check that each visible file is whole; return the save of each step."""
        steps: dict[int, int] = {}
        for path in sorted(run.iterdir() if run.exists() else ()):
            if _TEMP.fullmatch(path.name):
                continue
            name = parse_checkpoint_name(path.name)
            assert name is not None or path.name == _BEST, f"left behind: {path.name}"
            assert fastckpt.verify(path).ok, path.name
            contents = torch.load(path, weights_only=True)
            if name is None or name.rank:
                continue
            assert contents["global_step"] == name.step
            steps[name.step] = int(contents["model_state_dict"]["n"])
        return steps

    def _judge_best_name(self, run: Path, *, is_new: bool, finished: bool) -> None:
        best = run / _BEST
        if not best.exists():
            assert self.is_first, "best_model.pt is gone"
            assert not finished, "the save returned, and there is no best_model.pt"
            return
        value = torch.load(best, weights_only=True)["metrics"]["val_loss"]
        allowed = {self.metric} if self.is_first else {_EARLIER[10]}
        if is_new and self._improves:
            allowed = {self.metric} if finished else allowed | {self.metric}
        assert value in allowed, f"best_model.pt is of {value}, not of {allowed}"

    def save_again(self, directory: Path) -> None:
        run = directory / _RUN
        had = {path.name for path in run.iterdir()} if run.exists() else set()
        model = Weights(_number(_NEXT_STEP))
        manager = manager_of(directory, model)
        manager.save(_EPOCH, _NEXT_STEP, {"val_loss": 5.0})
        best = manager.load_best()["global_step"]
        steps = {10, 20, 30, self.step} if not self.is_first else {self.step}
        there = [step for step in sorted(steps) if name_of(step) in had]
        kept = {_NEXT_STEP, best, *there[-1:]}
        names = {name_of(step) for step in kept} | {_BEST}
        names |= {name_of(step, 1) for step in kept if name_of(step, 1) in had}
        different = {path.name for path in run.iterdir()} ^ names
        assert not different, f"left or missing after the next save: {sorted(different)}"
        assert fastckpt.verify(run).ok
        # Whatever was cut short, the name is that of the best again.
        found = torch.load(run / _BEST, weights_only=True)["global_step"]
        assert found == best, f"best_model.pt is of step {found}, and {best} is the best"

    def destinations(self, directory: Path) -> set[str]:
        run = directory / _RUN
        return {str(directory), str(run), str(run / name_of(self.step)), str(run / _BEST)}

    def is_bystander(self, name: str) -> bool:
        # The best that there was, as long as nothing better has come; and what is among the newest.
        if name == name_of(10):
            return not self._improves
        return name == name_of(30) and self.step != 30


@dataclass(frozen=True)
class ManagerReadScene(Scene):
    """The newest or the best is loaded."""

    name: str
    best: bool
    work: str = f"{_MODULE}:load"
    after = "read"

    @property
    def before(self) -> str:
        return "read"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"number": _number(10 if self.best else 30), "best": self.best}

    def fill(self, directory: Path) -> None:
        ManagerScene("", 40, 9.0).fill(directory)

    def judge(self, directory: Path, *, finished: bool) -> str:
        return "read"

    def save_again(self, directory: Path) -> None:
        """There was no save to be followed by another."""

    def destinations(self, directory: Path) -> set[str]:
        return {str(directory), *map(str, directory.rglob("*"))}

    def is_bystander(self, name: str) -> bool:
        return True


def manager_save_scenes() -> list[ManagerScene]:
    """Return every kind of save of a manager."""
    return [
        ManagerScene("a manager's first save", 10, 1.0, is_first=True),
        ManagerScene("a new best", 40, 0.5),
        ManagerScene("not the best", 40, 4.0),
        ManagerScene("a step again, better", 30, 0.5),
        ManagerScene("not the best, with ranks", 40, 4.0, ranks=True),
    ]


def manager_read_scenes() -> list[ManagerReadScene]:
    """Return every way in which a manager reads."""
    return [ManagerReadScene("load", best=False), ManagerReadScene("load_best", best=True)]
