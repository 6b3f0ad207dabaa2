"""Scenes in which nothing is saved: checkpoints are loaded, found and verified."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.shim import workloads
from tests.faults.shim.scenes import Scene
from tests.faults.shim.workloads import FILE, file_state

import fastckpt

_WORKLOADS = "tests.faults.shim.workloads"
_STEP, _EARLIER = 200, 100
_NUMBER, _BEFORE = 7, 6
_RANKS = 2
# Model, meta and manifest, and the shards.
_STEP_FILES = 3 + _RANKS
_RUN = "d12"


@dataclass(frozen=True)
class ReadScene(Scene):
    """A file or a directory of steps is read; its work checks what it gets.

    Attributes:
        name: For messages.
        work: What reads.
        inputs: For it.
        steps: Whether there are two steps, the last one saved again; else there is a file.
    """

    name: str
    work: str
    inputs: dict[str, Any]
    steps: bool = True
    after = "read"

    @property
    def arguments(self) -> dict[str, Any]:
        return self.inputs

    @property
    def before(self) -> str:
        return "read"

    def fill(self, directory: Path) -> None:
        if not self.steps:
            fastckpt.save(file_state(_NUMBER), directory / FILE)
            return
        ranks = range(_RANKS)
        for step, number in ((_EARLIER, 1), (_STEP, _BEFORE), (_STEP, _NUMBER)):
            workloads.save_whole_step(directory / _RUN, step, number, ranks)

    def judge(self, directory: Path, *, finished: bool) -> str:
        return "read"

    def save_again(self, directory: Path) -> None:
        """There was no save to be followed by another."""

    def destinations(self, directory: Path) -> set[str]:
        return {str(directory), *map(str, directory.rglob("*"))}

    def is_bystander(self, name: str) -> bool:
        return True


def read_scenes() -> list[ReadScene]:
    """Return every way of reading."""
    load_file, verify = f"{_WORKLOADS}:load_file", f"{_WORKLOADS}:verify"
    load_step, find_step = f"{_WORKLOADS}:load_step", f"{_WORKLOADS}:find_step"
    load_shard = f"{_WORKLOADS}:load_shard"
    step = {"run": _RUN, "step": _STEP, "number": _NUMBER}
    found = {"run": _RUN, "expected": _STEP}
    return [
        ReadScene("load", load_file, {"number": _NUMBER, "mmap": False}, steps=False),
        ReadScene("load mapped", load_file, {"number": _NUMBER, "mmap": True}, steps=False),
        ReadScene("verify a file", verify, {"path": FILE, "files": 1}, steps=False),
        ReadScene("verify steps", verify, {"path": _RUN, "files": 2 * _STEP_FILES}),
        ReadScene("load a step", load_step, step | {"rank": _RANKS - 1}),
        ReadScene("load a shard", load_shard, {"number": _NUMBER, "rank": _RANKS - 1}),
        ReadScene("find the last step", find_step, found | {"verify": None}),
        ReadScene("find a good step", find_step, found | {"verify": "quick"}),
        ReadScene("find a good step, full", find_step, found | {"verify": "full"}),
    ]
