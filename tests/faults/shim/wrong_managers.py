"""Managers with a mistake each, which the tests have to find."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

from tests.faults.shim import manager_scenes
from tests.faults.shim.zygote import Act

from fastckpt.training import manager as module
from fastckpt.training import rotation


def delete_first(directory: Path, step: int, metric: float, number: int) -> Act:
    """Make room before the new checkpoint is there: all that is not the best."""
    run = directory / "run"

    def act() -> None:
        for name in (manager_scenes.name_of(20), manager_scenes.name_of(30)):
            os.unlink(run / name)
        manager_scenes.save(directory, step, metric, number)()

    return act


def _with(name: str, replacement: Any, directory: Path, **arguments: Any) -> Act:
    act = manager_scenes.save(directory, **arguments)

    def patched() -> None:
        with mock.patch.object(module, name, replacement):
            act()

    return patched


def best_in_place(directory: Path, step: int, metric: float, number: int) -> Act:
    """Copy the best over its old name."""

    def copy(checkpoint: str) -> None:
        shutil.copyfile(checkpoint, os.path.join(os.path.dirname(checkpoint), "best_model.pt"))

    return _with("name_best", copy, directory, step=step, metric=metric, number=number)


def best_by_unlink(directory: Path, step: int, metric: float, number: int) -> Act:
    """Remove the old name before the new one is given."""

    def link(checkpoint: str) -> None:
        best = os.path.join(os.path.dirname(checkpoint), "best_model.pt")
        os.unlink(best)
        os.link(checkpoint, best)

    return _with("name_best", link, directory, step=step, metric=metric, number=number)


def forget_the_best(directory: Path, step: int, metric: float, number: int) -> Act:
    """Keep the newest alone, and give the name of the best to whatever is there."""
    act = manager_scenes.save(directory, step, metric, number)

    def forgetful() -> None:
        real = rotation.expendable
        with mock.patch.object(
            rotation,
            "expendable",
            lambda names, config, *, protected: real(names, config, protected=[max(protected)]),
        ):
            act()
        os.unlink(directory / "run" / "best_model.pt")

    return forgetful
