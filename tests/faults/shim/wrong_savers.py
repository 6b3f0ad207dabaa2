"""Saves with a mistake each, in Python: the harness has to notice every one of them."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tests.faults.shim import workloads
from tests.faults.shim.workloads import FILE, file_state, meta_state, model_state, optimizer_state
from tests.faults.shim.zygote import Act


def _durable(
    path: Path, write: Callable[[Path], object], fsync: Callable[[int], object] = os.fsync
) -> None:
    """Write as it should be done: temporary name, fsync, rename, fsync of the directory."""
    _beside(path, write, path.with_name(f".fastckpt-{os.getpid()}-0.tmp"), fsync)


def _beside(
    path: Path,
    write: Callable[[Path], object],
    temp: Path,
    fsync: Callable[[int], object] = os.fsync,
) -> None:
    write(temp)
    for opened, flags in ((temp, os.O_RDWR), (path.parent, os.O_RDONLY | os.O_DIRECTORY)):
        descriptor = os.open(opened, flags)
        fsync(descriptor)
        os.close(descriptor)
        if opened == temp:
            os.rename(temp, path)


def _torch_save(obj: Any) -> Callable[[Path], None]:
    # Through a file object of Python: torch opens paths by functions that the shim does not see.
    def write(path: Path) -> None:
        with path.open("wb") as file:
            torch.save(obj, file)

    return write


def _json_dump(obj: Any) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(obj))


def _parts(
    directory: Path, step: int, number: int
) -> dict[str, tuple[Path, Callable[[Path], object]]]:
    """Return path and writer of each file of a step of one rank, in the right order."""
    return {
        "shard": (
            directory / f"optim_{step:06d}_rank0.pt",
            _torch_save(optimizer_state(number, 0)),
        ),
        "meta": (directory / f"meta_{step:06d}.json", _json_dump(meta_state(number))),
        "model": (directory / f"model_{step:06d}.pt", _torch_save(model_state(number))),
    }


def save_file_in_place(directory: Path, number: int) -> Act:
    """Write over the old file, as torch.save does."""
    write = _torch_save(file_state(number))
    return lambda: write(directory / FILE)


def save_with_a_second_fsync(directory: Path, number: int) -> Act:
    """Try an fsync again that failed: the second succeeds over pages that were lost."""
    write = _torch_save(file_state(number))

    def fsync(descriptor: int) -> None:
        try:
            os.fsync(descriptor)
        except OSError:
            os.fsync(descriptor)

    return lambda: _durable(directory / FILE, write, fsync)


def save_without_a_word(directory: Path, number: int) -> Act:
    """Take no notice of an fsync that failed."""
    write = _torch_save(file_state(number))

    def fsync(descriptor: int) -> None:
        with suppress(OSError):
            os.fsync(descriptor)

    return lambda: _durable(directory / FILE, write, fsync)


def save_and_leave(directory: Path, number: int) -> Act:
    """Leave the temporary file where something fails."""
    write = _torch_save(file_state(number))
    return lambda: _durable(directory / FILE, write)


def save_step_in_place(
    directory: Path, run: str, step: int, number: int, ranks: Sequence[int]
) -> Act:
    """Write over the old files of a step."""
    parts = _parts(directory / run, step, number)

    def act() -> None:
        for path, write in parts.values():
            write(path)

    return act


def save_step_beside(
    directory: Path, run: str, step: int, number: int, ranks: Sequence[int]
) -> Act:
    """Give the temporary file of the model a name that ends in `.pt`, by which a step is found."""
    parts = _parts(directory / run, step, number)

    def act() -> None:
        for part, (path, write) in parts.items():
            if part == "model":
                _beside(path, write, path.with_name(f"new_{path.name}"))
            else:
                _durable(path, write)

    return act


def save_model_first(
    directory: Path, run: str, step: int, number: int, ranks: Sequence[int]
) -> Act:
    """Make the model visible before the shard."""
    parts = _parts(directory / run, step, number)

    def act() -> None:
        for part in ("model", "meta", "shard"):
            path, write = parts[part]
            _durable(path, write)

    return act


def save_files_in_place_on_and_on(directory: Path, number: int, progress: str) -> Act:
    """Write over the old file again and again."""

    def act() -> None:
        for current in itertools.count(number):
            obj = file_state(current)
            workloads.note(progress, current)
            torch.save(obj, directory / FILE)

    return act
