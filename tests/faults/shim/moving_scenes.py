"""A run that is copied, and one that is pruned: what may be there after that was cut short."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.faults.shim import workloads
from tests.faults.shim.scenes import DEAD_TEMP, Scene
from tests.faults.shim.zygote import Act

import fastckpt

_MODULE = "tests.faults.shim.moving_scenes"
_TEMP = re.compile(r"\.fastckpt-\d+-\d+\.tmp")
_RUN, _TO = "run", "to"
_RANKS = (1, 0)
_STEPS = (100, 200, 300)


class UnfinishedError(Exception):
    """The report says that not all was done."""


def copy(directory: Path) -> Act:
    """Copy the run."""

    def act() -> None:
        report = fastckpt.copy_checkpoint(directory / _RUN, directory / _TO, threads=1)
        _require(report.ok, report)

    return act


def prune(directory: Path) -> Act:
    """Delete all but the newest of the run."""

    def act() -> None:
        report = fastckpt.prune(directory / _RUN, keep=1)
        _require(report.ok, report)

    return act


def _require(ok: bool, report: object) -> None:
    if not ok:
        raise UnfinishedError(str(report))


def _fill(run: Path) -> None:
    for step in _STEPS:
        workloads.save_whole_step(run, step, step, _RANKS)
        stem = f"checkpoint_epoch0001_step{step:08d}"
        fastckpt.save({"rank": 1}, run / f"{stem}_rank1.pt")
        root = {"global_step": step, "epoch": 1, "metrics": {"loss": 1.0 / step}}
        fastckpt.save(root, run / f"{stem}.pt")


def _visible(directory: Path) -> dict[str, bytes]:
    if not directory.exists():
        return {}
    paths = [path for path in directory.iterdir() if not _TEMP.fullmatch(path.name)]
    return {path.name: path.read_bytes() for path in paths}


def _require_whole_steps(directory: Path) -> set[int]:
    """Load everything that has the name of a model or a checkpoint; return the steps."""
    steps = {int(path.stem[-6:]) for path in directory.glob("model_*.pt")}
    for step in steps:
        for rank in _RANKS:
            loaded = fastckpt.load_checkpoint(
                directory, step, "cpu", load_optimizer=True, rank=rank, world_size=len(_RANKS)
            )
            assert loaded[2]["number"] == step
    for path in directory.glob("checkpoint_*[0-9].pt"):
        if "rank" not in path.name:
            assert torch.load(path, weights_only=True)["global_step"] == int(path.stem[-8:])
    return steps


class MovingScene(Scene):
    """A whole run, and work on it that is told nothing else."""

    @property
    def before(self) -> str:
        return "old"

    @property
    def arguments(self) -> dict[str, Any]:
        return {}

    def destinations(self, directory: Path) -> set[str]:
        return {str(directory), *map(str, directory.rglob("*"))}


@dataclass(frozen=True)
class CopyScene(MovingScene):
    """A run is copied to where an earlier copy has one step of it already."""

    name: str = "copy"
    work: str = f"{_MODULE}:copy"

    def fill(self, directory: Path) -> None:
        _fill(directory / _RUN)
        assert fastckpt.copy_checkpoint(directory / _RUN, directory / _TO, steps=[100]).ok
        (directory / _TO / DEAD_TEMP).write_bytes(b"half")

    def judge(self, directory: Path, *, finished: bool) -> str:
        source, found = _visible(directory / _RUN), _visible(directory / _TO)
        different = {name for name, data in found.items() if source.get(name) != data}
        assert not different, f"not what was copied: {sorted(different)}"
        assert 100 in _require_whole_steps(directory / _TO)
        is_all = found.keys() == source.keys()
        assert is_all or not finished, "the copy returned, and not all of it is there"
        return "new" if is_all else "old"

    def save_again(self, directory: Path) -> None:
        assert fastckpt.copy_checkpoint(directory / _RUN, directory / _TO).ok
        assert fastckpt.collect_garbage(directory / _TO).ok
        names = {path.name for path in (directory / _TO).iterdir()}
        assert names == {path.name for path in (directory / _RUN).iterdir()}
        assert self.judge(directory, finished=True) == "new"

    def is_bystander(self, name: str) -> bool:
        # At the source and, from the earlier copy, at the destination.
        return "000100" in name


@dataclass(frozen=True)
class PruneScene(MovingScene):
    """All but the newest of a run are deleted."""

    name: str = "prune"
    work: str = f"{_MODULE}:prune"

    def fill(self, directory: Path) -> None:
        _fill(directory / _RUN)

    def judge(self, directory: Path, *, finished: bool) -> str:
        run = directory / _RUN
        steps = _require_whole_steps(run)
        # A step that could not be read is left alone.
        assert 300 in steps, steps
        is_done = all("000300" in path.name for path in run.iterdir())
        assert is_done or not finished, "prune returned, and something is left"
        return "new" if is_done else "old"

    def save_again(self, directory: Path) -> None:
        run = directory / _RUN
        assert fastckpt.prune(run, keep=1).ok
        assert fastckpt.collect_garbage(run, incomplete=True).ok
        assert self.judge(directory, finished=True) == "new"

    def is_bystander(self, name: str) -> bool:
        return "000300" in name
