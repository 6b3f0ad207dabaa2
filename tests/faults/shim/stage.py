"""A scene that is played again and again, each time with another operation spoiled."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.harness import Tally
from tests.faults.shim.scenes import Scene
from tests.faults.shim.shim import Operation, Plan
from tests.faults.shim.zygote import Ending, Zygote

# What nanochat calls it, so that its own functions find the runs in it.
_NAME = "base_checkpoints"


@dataclass(frozen=True)
class Play:
    """One save that may have been cut short.

    Attributes:
        scene: What was there before it.
        directory: What it left.
        plan: What was done to it.
        ending: How it ended.
        is_untouched: Whether the files that it has nothing to do with are the same as before.
    """

    scene: Scene
    directory: Path
    plan: Plan
    ending: Ending
    is_untouched: bool

    @property
    def spoiled(self) -> Operation | None:
        """The operation at which it happened; None if the save had fewer."""
        operations = self.ending.operations
        return operations[self.plan.at - 1] if len(operations) >= self.plan.at else None

    def judge(self, *, finished: bool) -> str:
        """Say which save is there now, and that the next one works; see `Scene.judge`."""
        assert self.is_untouched, "files were touched that have nothing to do with the save"
        found = self.scene.judge(self.directory, finished=finished)
        self.scene.save_again(self.directory)
        return found

    def __str__(self) -> str:
        where = f"operation {self.plan.at} ({self.spoiled})"
        error = f" with errno {self.plan.error}" if self.plan.error else ""
        ever = ", for ever" if self.plan.for_ever else ""
        return f"{self.scene.name}: {self.plan.action} at {where}{error}{ever}"


class Stage:
    """A scene, and what was there before its save, made once and copied for each play.

    Attributes:
        scene: The scene.
        operations: Those of its save where nothing is spoiled.
    """

    def __init__(self, scene: Scene, zygote: Zygote, directory: Path) -> None:
        self.scene = scene
        self._zygote = zygote
        self._directory = directory
        self._template = Path(tempfile.mkdtemp(prefix="template-", dir=directory))
        scene.fill(self._template)
        self.operations = self._rehearse()

    def _rehearse(self) -> list[Operation]:
        with self.play(Plan()) as play:
            assert play.ending.raised is None, play.ending.raised
            assert not play.ending.signal
            assert play.judge(finished=True) == self.scene.after
            return play.ending.operations

    @contextmanager
    def play(self, plan: Plan) -> Iterator[Play]:
        """Copy what was there before, save, and remove it all in the end."""
        parent = Path(tempfile.mkdtemp(prefix="play-", dir=self._directory))
        directory = parent / _NAME
        try:
            shutil.copytree(self._template, directory)
            bystanders = self.scene.bystanders(directory)
            ending = self._zygote.run(self.scene.work, directory, plan, **self.scene.arguments)
            is_untouched = self.scene.bystanders(directory) == bystanders
            yield Play(self.scene, directory, plan, ending, is_untouched)
        finally:
            shutil.rmtree(parent)


def play_all(
    cases: Iterable[tuple[Stage, Plan]],
    judge: Callable[[Play], str],
    tally: Tally,
    note: str = "",
) -> Tally:
    """Play cases and count what `judge` says of each; what it raises is a failure.

    The description of a failure has `note` behind the plan: what it takes to draw the same cases.
    """
    for stage, plan in cases:
        with stage.play(plan) as play:
            try:
                tally.count(f"{stage.scene.name}: {judge(play)}")
            except Exception as error:
                tally.fail(f"{play}{note}: {type(error).__name__}: {error}")
    return tally
