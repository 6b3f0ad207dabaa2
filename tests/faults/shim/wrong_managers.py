"""Managers with a mistake each, which the tests have to find."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

from tests.faults.shim import manager_scenes
from tests.faults.shim.zygote import Act

from fastckpt.training import best, rotation


def delete_first(directory: Path, step: int, metric: float, number: int) -> Act:
    """Make room for a step that is saved again before the new checkpoint is there."""
    save = manager_scenes.save(directory, step, metric, number)

    def act() -> None:
        os.unlink(directory / "run" / manager_scenes.name_of(step))
        save()

    return act


def _naming(name_best: Any, directory: Path, **arguments: Any) -> Act:
    act = manager_scenes.save(directory, **arguments)

    def patched() -> None:
        with mock.patch.object(best, "name_best", name_best):
            act()

    return patched


def best_in_place(directory: Path, step: int, metric: float, number: int) -> Act:
    """Copy the best over its old name."""

    def copy(checkpoint: str) -> None:
        shutil.copyfile(checkpoint, os.path.join(os.path.dirname(checkpoint), "best_model.pt"))

    return _naming(copy, directory, step=step, metric=metric, number=number)


def best_by_unlink(directory: Path, step: int, metric: float, number: int) -> Act:
    """Remove the old name before the new one is given."""

    def link(checkpoint: str) -> None:
        best = os.path.join(os.path.dirname(checkpoint), "best_model.pt")
        os.unlink(best)
        os.link(checkpoint, best)

    return _naming(link, directory, step=step, metric=metric, number=number)


def forget_the_best(directory: Path, step: int, metric: float, number: int) -> Act:
    """Keep the newest alone."""
    save = manager_scenes.save(directory, step, metric, number)
    real = rotation.expendable

    def forgetful(names: Any, config: Any, *, protected: Any) -> Any:
        return real(names, config, protected=[max(protected)])

    def act() -> None:
        with mock.patch.object(rotation, "expendable", forgetful):
            save()

    return act
