"""A directory before a save, the save, and what may be found of it after it was cut short."""

from __future__ import annotations

import os
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.faults.shim import workloads
from tests.faults.shim.workloads import FILE, file_state, model_state, optimizer_state
from tests.specimens import assert_same

import fastckpt

# What the save under test is called, and those around it.
_BYSTANDER, _OLD, _NEW, _NEXT = 1, 2, 3, 4
# Elements of files whose size does not matter.
_SMALL = 10
# The step that is saved, and the one before it.
_STEP, _EARLIER = 200, 100

_TEMP = re.compile(r"\.fastckpt-\d+-\d+\.tmp")
_KEPT = re.compile(r"\.fastckpt-\d{14}-(.+)\.kept")
_NEWEST_GOOD = re.compile(r"newest good step\D*(\d+)")
# No process has a number this high (man 5 proc, pid_max).
DEAD_TEMP = ".fastckpt-4194399-0.tmp"

# The directory of the steps: one save of the scenes has to make it.
_RUN = "run"
# The bigger disk that shards lie on in some of them.
_BIG = "big"

_MODULE = "tests.faults.shim.workloads"


class Scene(ABC):
    """One kind of save, or of reading: what is there before it, and what may be there afterwards."""

    name: str
    work: str
    # What `judge` says where the work came to its end.
    after = "new"

    @property
    @abstractmethod
    def before(self) -> str:
        """What `judge` says where nothing was done."""

    @abstractmethod
    def fill(self, directory: Path) -> None:
        """Make what is there before."""

    @property
    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """What the work gets."""

    @abstractmethod
    def judge(self, directory: Path, *, finished: bool) -> str:
        """Say whether the save is there ("new") or not (`before`); raise where something is wrong.

        Args:
            directory: As the save left it.
            finished: Whether the save returned: then it has to be there.
        """

    @abstractmethod
    def save_again(self, directory: Path) -> None:
        """Make another save, which has to succeed, to be found, and to leave nothing hidden."""

    @abstractmethod
    def destinations(self, directory: Path) -> set[str]:
        """Return the paths that an exception may name."""

    @abstractmethod
    def is_bystander(self, name: str) -> bool:
        """Whether the work has no right to touch a file of this name."""

    def bystanders(self, directory: Path) -> dict[Path, tuple[int, bytes]]:
        """Return inode number and bytes of the files that the work may not touch."""
        return {
            path: (path.stat().st_ino, path.read_bytes())
            for path in directory.rglob("*")
            if path.is_file() and self.is_bystander(path.name)
        }


def temporary_files(directory: Path) -> list[str]:
    """Return the names of temporary files, except for the one that was there before."""
    names = [path.name for path in directory.rglob("*") if _TEMP.fullmatch(path.name)]
    return sorted({*names} - {DEAD_TEMP})


@dataclass(frozen=True)
class FileScene(Scene):
    """One file is saved.

    Attributes:
        name: For messages.
        replaces: Whether there is one already, of unusual mode, and a temporary file of a dead process.
        work: What saves it.
    """

    name: str
    replaces: bool
    work: str = f"{_MODULE}:save_file"

    @property
    def before(self) -> str:
        return "old" if self.replaces else "none"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"number": _NEW}

    def fill(self, directory: Path) -> None:
        fastckpt.save(file_state(_BYSTANDER, _SMALL), directory / "other.pt")
        if self.replaces:
            fastckpt.save(file_state(_OLD), directory / FILE)
            os.chmod(directory / FILE, 0o640)
            (directory / DEAD_TEMP).write_bytes(b"half")

    def judge(self, directory: Path, *, finished: bool) -> str:
        names = {name for name in os.listdir(directory) if not _TEMP.fullmatch(name)}
        assert names - {FILE} == {"other.pt"}, names
        if FILE not in names:
            assert not finished, "the save returned, and there is no file"
            assert not self.replaces, "the old file is gone"
            return "none"
        found = self._read(directory)
        allowed = [_NEW] if finished or not self.replaces else [_OLD, _NEW]
        assert found in allowed, f"found save {found}, expected one of {allowed}"
        return "old" if found == _OLD else "new"

    def save_again(self, directory: Path) -> None:
        fastckpt.save(file_state(_NEXT, _SMALL), directory / FILE)
        names = sorted(os.listdir(directory))
        assert names == [FILE, "other.pt"], names
        assert self._read(directory) == _NEXT

    def destinations(self, directory: Path) -> set[str]:
        return {str(directory), str(directory / FILE)}

    def is_bystander(self, name: str) -> bool:
        return name == "other.pt"

    @staticmethod
    def _read(directory: Path) -> int:
        path = directory / FILE
        found = fastckpt.load(path)
        expected = file_state(found["n"], found["w"].numel())
        assert_same(found, expected)
        assert_same(torch.load(path), expected)
        assert fastckpt.verify(path).ok
        return int(found["n"])


@dataclass(frozen=True)
class StepScene(Scene):
    """A step is saved, one rank after the other.

    Attributes:
        name: For messages.
        ranks: The ranks, in the order in which they save.
        earlier: Whether the directory is there, with an earlier step in it.
        replaces: Whether the step is there already.
        linked: Whether the shards that are replaced lie elsewhere, and links to them in the directory.
        work: What saves it.
    """

    name: str
    ranks: Sequence[int]
    earlier: bool = True
    replaces: bool = False
    linked: bool = False
    work: str = f"{_MODULE}:save_step"

    @property
    def before(self) -> str:
        return "old" if self.earlier else "none"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"step": _STEP, "number": _NEW, "ranks": list(self.ranks), "run": _RUN}

    def fill(self, directory: Path) -> None:
        if self.earlier:
            workloads.save_whole_step(directory / _RUN, _EARLIER, _BYSTANDER, self.ranks)
        if self.replaces:
            workloads.save_whole_step(directory / _RUN, _STEP, _OLD, self.ranks)
        if self.linked:
            (directory / _BIG).mkdir()
            for rank in self.ranks:
                shard = directory / _RUN / f"optim_{_STEP:06d}_rank{rank}.pt"
                shard.rename(directory / _BIG / f"shard{rank}")
                shard.symlink_to(f"../{_BIG}/shard{rank}")

    def judge(self, directory: Path, *, finished: bool) -> str:
        run = directory / _RUN
        there = {_RUN, _BIG} if self.linked else {_RUN}
        assert set(os.listdir(directory)) <= there, os.listdir(directory)
        if not run.exists():
            assert not finished, "the save returned, and there is no directory"
            assert not self.earlier, "the directory is gone"
            return "none"
        self._judge_names(run)
        self._judge_visible_files(run)
        found = self._newest(run)
        old = (_STEP, _OLD) if self.replaces else (_EARLIER, _BYSTANDER) if self.earlier else None
        allowed = [(_STEP, _NEW)] if finished else [old, (_STEP, _NEW)]
        assert found in allowed, f"found (step, save) {found}, expected one of {allowed}"
        self._judge_pick(run, found)
        return "new" if found == (_STEP, _NEW) else self.before

    def save_again(self, directory: Path) -> None:
        run = directory / _RUN
        workloads.save_whole_step(run, _STEP, _NEXT, self.ranks)
        steps = [_EARLIER, _STEP] if self.earlier else [_STEP]
        names = {name for step in steps for name in self._names(step)}
        different = set(os.listdir(run)) ^ names
        assert not different, f"left or missing after the next save: {sorted(different)}"
        if self.linked:
            shards = {f"shard{rank}" for rank in self.ranks}
            assert set(os.listdir(directory / _BIG)) == shards, os.listdir(directory / _BIG)
        assert self._newest(run) == (_STEP, _NEXT)
        assert fastckpt.verify(run).ok

    def destinations(self, directory: Path) -> set[str]:
        run = directory / _RUN
        files = {str(run / name) for name in self._names(_STEP)}
        big = {str(run / ".." / _BIG)} if self.linked else set()
        return {str(directory), str(run)} | files | big

    def is_bystander(self, name: str) -> bool:
        return name in self._names(_EARLIER)

    def _names(self, step: int) -> set[str]:
        shards = {f"optim_{step:06d}_rank{rank}.pt" for rank in self.ranks}
        return shards | {
            f"model_{step:06d}.pt",
            f"meta_{step:06d}.json",
            f"manifest_{step:06d}.json",
        }

    def _judge_names(self, run: Path) -> None:
        ours = self._names(_STEP) | (self._names(_EARLIER) if self.earlier else set())
        for name in os.listdir(run):
            kept = _KEPT.fullmatch(name)
            plain = kept[1] if kept else name
            assert plain in ours or _TEMP.fullmatch(name), f"left behind: {name}"
            assert not kept or plain in self._names(_STEP), f"of a step that was not saved: {name}"

    def _judge_visible_files(self, run: Path) -> None:
        """Each archive is whole by itself, and of one of the saves that there were."""
        for name in sorted(self._names(_STEP)):
            if not name.endswith(".pt") or not (run / name).exists():
                continue
            found = torch.load(run / name)
            numbers = [_OLD, _NEW] if self.replaces else [_NEW]
            assert any(_is_same(found, _part(name, number)) for number in numbers), name
            assert fastckpt.verify(run / name).ok, name

    def _newest(self, run: Path) -> tuple[int, int] | None:
        """Return the newest good step and which save it is of; every rank loads that save."""
        try:
            step = fastckpt.find_last_good_step(run)
        except FileNotFoundError:
            return None
        number = self._load(run, step, self.ranks[0])[2]["number"]
        for rank in self.ranks:
            workloads.assert_step(self._load(run, step, rank), number, rank)
        # Without the optimizer, a save is whole with its model and its meta.
        model, _, meta = fastckpt.load_checkpoint(run, step, "cpu")
        assert_same(model, model_state(meta["number"]))
        assert number <= meta["number"] <= _NEXT
        return step, number

    def _load(self, run: Path, step: int, rank: int) -> tuple[Any, Any, Any]:
        return fastckpt.load_checkpoint(
            run, step, "cpu", load_optimizer=True, rank=rank, world_size=len(self.ranks)
        )

    def _judge_pick(self, run: Path, good: tuple[int, int] | None) -> None:
        """Check that the step with the last model loads, or that its error says which one does.

        With one rank it always loads: the model is that rank's last file.
        """
        try:
            step = fastckpt.find_last_step(run)
        except FileNotFoundError:
            assert good is None, f"step {good} is good, and there is no last step"
            return
        if good is not None and step == good[0]:
            return
        refusal = workloads.refusal_to_load(run, step, self.ranks[0], len(self.ranks))
        assert refusal is not None, f"step {step} loads, and is not called good"
        assert len(self.ranks) > 1, f"one rank's model is there before its other files: {refusal}"
        named = _NEWEST_GOOD.search(refusal)
        assert good is None or (named and int(named[1]) == good[0]), refusal


def _part(name: str, number: int) -> Any:
    """Return what an archive of a step holds."""
    if name.startswith("model_"):
        return model_state(number)
    return optimizer_state(number, int(name.split("_rank")[1].removesuffix(".pt")))


def _is_same(found: object, expected: object) -> bool:
    try:
        assert_same(found, expected)
    except AssertionError:
        return False
    return True


def save_scenes(generator: random.Random, ranks: int) -> list[Scene]:
    """Return every kind of save, with one rank and with several; in which order they save is drawn."""

    def drawn_of(ranks: int) -> list[int]:
        return generator.sample(range(ranks), ranks)

    def drawn() -> list[int]:
        return drawn_of(ranks)

    return [
        FileScene("a new file", replaces=False),
        FileScene("a file again", replaces=True),
        StepScene("a first step, one rank", [0], earlier=False),
        StepScene("a new step, one rank", [0]),
        StepScene("a step again, one rank", [0], replaces=True),
        StepScene(f"a new step, {ranks} ranks", drawn()),
        StepScene(f"a step again, {ranks} ranks", drawn(), replaces=True),
        StepScene("linked shards again, 2 ranks", drawn_of(2), replaces=True, linked=True),
    ]
