"""The checkpoints of a directory, each with its files in the order of removal and its metrics.

Two families, each counted by itself: steps with nanochat's names, and the checkpoints of a CheckpointManager.
Imports no torch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastckpt._contents.identity import Identity, Standing
from fastckpt._contents.outline import read_outline
from fastckpt._contents.paths import below
from fastckpt._contents.scalar_tensors import with_numbers
from fastckpt._steps.held import HeldDirectory
from fastckpt._steps.manager_files import (
    ManagerFiles,
    is_of_checkpoint,
    part_of_checkpoint,
    survey_manager,
)
from fastckpt._steps.saves import StepSave, read_save
from fastckpt._steps.survey import Listing, StepFiles, is_of_step, part_of_step, survey_steps
from fastckpt.errors import CheckpointError

Fail = Callable[[OSError, str], str]


class Best(NamedTuple):
    """What makes a checkpoint the best."""

    metric: str | None
    mode: str | None


@dataclass
class Candidate:
    """One checkpoint.

    Attributes:
        directory: Where it is.
        step: Its step.
        epoch: Its epoch; None for a step with nanochat's names.
        first: Paths of the files without which the rest is not a checkpoint: they are removed first.
        rest: Paths of its other files, in the order of removal.
        loads: Paths of the files that a load reads: those that have to be good.
        problem: Why it is neither counted nor removed; None for one that is whole.
        is_damaged: Whether the problem is damage.
        held: Why it is not removed, though it counts.
        metrics: Its numbers, by name.
        best_metric: What its file says of the best value so far.
        best_by: Which metric its file says to compare, and how.
        judged: What stood at the names of its files before they were looked at.
    """

    directory: str
    step: int
    epoch: int | None
    first: list[str]
    rest: list[str]
    loads: list[str] = field(default_factory=list)
    problem: str | None = None
    is_damaged: bool = False
    held: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    best_metric: float | None = None
    best_by: Best = field(default=Best(None, None))
    judged: dict[str, Standing] = field(default_factory=dict)

    @property
    def paths(self) -> list[str]:
        """All its files, in the order of removal."""
        return [*self.first, *self.rest]

    @property
    def key(self) -> tuple[int, int]:
        """Its place among the others."""
        return (self.step, -1 if self.epoch is None else self.epoch)

    @property
    def first_files(self) -> list[Identity]:
        """The files of `first`, as they were."""
        found = [self.judged.get(os.path.basename(path)) for path in self.first]
        return [there.file for there in found if there is not None and there.file is not None]

    @property
    def part(self) -> str:
        """What all its names have in them."""
        if self.epoch is None:
            return part_of_step(self.step)
        return part_of_checkpoint(self.step, self.epoch)

    def belongs(self, name: str) -> bool:
        """Whether a name is that of one of its files."""
        if self.epoch is None:
            return is_of_step(name, self.step)
        return is_of_checkpoint(name, self.step, self.epoch)


@dataclass
class Family:
    """The checkpoints of one kind in a directory.

    Attributes:
        kind: "nanochat" or "manager".
        candidates: All of them, by step.
        best_names: Paths that are second names, or copies, of the best.
        orphans: Files of other ranks that belong to no checkpoint.
    """

    kind: str
    candidates: list[Candidate]
    best_names: list[str] = field(default_factory=list)
    orphans: list[ManagerFiles] = field(default_factory=list)


def find_families(held: HeldDirectory, fail: Fail) -> list[Family]:
    """Look at all checkpoints of a directory.

    Args:
        held: The directory.
        fail: Is told what cannot be read; the rest is still looked at.

    Raises:
        OSError: The directory cannot be listed.
    """
    families = [_nanochat(held, fail), _manager(held, fail)]
    return [family for family in families if family.candidates or family.orphans]


def best_candidates(
    candidates: Iterable[Candidate], metric: str, mode: str, count: int
) -> list[Candidate]:
    """Return the checkpoints with the best values of a metric; NaN is never best.

    Of several with the same value the earliest counts as the best.
    """
    sign = 1.0 if mode == "min" else -1.0
    rated = [
        (sign * value, candidate.key, candidate)
        for candidate in candidates
        if (value := candidate.metrics.get(metric)) is not None and not math.isnan(value)
    ]
    return [candidate for _, _, candidate in sorted(rated, key=lambda one: one[:2])[:count]]


# Steps with nanochat's names.


def _nanochat(held: HeldDirectory, fail: Fail) -> Family:
    steps = survey_steps(held.path)
    listing = Listing(held.path)
    candidates = [_step(held, steps[step], listing, fail) for step in sorted(steps)]
    return Family("nanochat", candidates)


def _step(held: HeldDirectory, files: StepFiles, listing: Listing, fail: Fail) -> Candidate:
    directory = held.path
    names = [name for name in files.names() if name != files.model]
    # A meta without its manifest is taken at its word, so the manifest goes last.
    names.sort(key=lambda name: name == files.manifest)
    candidate = Candidate(
        directory=directory,
        step=files.step,
        epoch=None,
        first=[os.path.join(directory, name) for name in [files.model] if name is not None],
        rest=[os.path.join(directory, name) for name in names],
    )
    try:
        candidate.judged = held.look_at([*files.names(), *files.kept_names()])
        save = read_save(directory, files.step, optimizer=True, listing=listing)
    except FileNotFoundError as error:
        # IncompleteCheckpointError is one too.
        candidate.problem = str(error)
    except CheckpointError as error:
        candidate.problem, candidate.is_damaged = str(error), True
    except OSError as error:
        candidate.problem = fail(error, directory)
    else:
        _take_save(candidate, files, save)
    return candidate


def _take_save(candidate: Candidate, files: StepFiles, save: StepSave) -> None:
    candidate.loads = save.paths()
    others = sorted(set(candidate.paths) - set(save.paths()))
    if files.kept:
        # A save of this step was interrupted, or is running; what it needs of these is not known here.
        candidate.held = "files that a save has replaced are still there"
    elif others:
        candidate.held = f"{os.path.basename(others[0])} is not of the save that loads"
    try:
        candidate.metrics = numbers(json.loads(save.meta_bytes))
    except (ValueError, RecursionError) as error:
        candidate.problem, candidate.is_damaged = f"{save.meta} is not JSON: {error}", True


def numbers(document: Any) -> dict[str, float]:
    """Return the numbers of a dict by name; those of dicts in it with a dot between the names.

    Linear in what is there: a dict is looked into once, names are made when they are needed, and are
    never long.
    """
    found: dict[str, float] = {}
    if not isinstance(document, dict):
        return found
    # A pickle may nest a dict in itself.
    seen = {id(document)}
    # What is left of each dict on the way down, under its name.
    ways: list[tuple[str, Iterator[tuple[Any, Any]]]] = [("", iter(document.items()))]
    while ways:
        name, parts = ways[-1]
        part = next(parts, None)
        if part is None:
            ways.pop()
            continue
        key, value = part
        if isinstance(value, dict):
            if id(value) not in seen:
                seen.add(id(value))
                ways.append((below(name, key), iter(value.items())))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            with suppress(OverflowError):
                # A key with a dot in it may read as one that is nested: the first counts.
                found.setdefault(below(name, key), float(value))
    return found


# A CheckpointManager's checkpoints.


def _manager(held: HeldDirectory, fail: Fail) -> Family:
    directory = held.path
    found, best = survey_manager(directory)
    candidates = [_checkpoint(held, files, fail) for files in found if files.name is not None]
    return Family(
        kind="manager",
        candidates=candidates,
        best_names=[] if best is None else [os.path.join(directory, best)],
        orphans=[files for files in found if files.name is None],
    )


def _checkpoint(held: HeldDirectory, files: ManagerFiles, fail: Fail) -> Candidate:
    directory = held.path
    candidate = Candidate(
        directory=directory,
        step=files.step,
        epoch=files.epoch,
        first=[os.path.join(directory, name) for name in [files.name] if name is not None],
        rest=[os.path.join(directory, name) for name in files.rank_names()],
    )
    candidate.loads = candidate.paths
    (path,) = candidate.first
    try:
        candidate.judged = held.look_at(files.names())
        root = read_root(path)
    except CheckpointError as error:
        candidate.problem, candidate.is_damaged = str(error), True
    except OSError as error:
        candidate.problem = fail(error, path)
    else:
        candidate.metrics = numbers(root.get("metrics"))
        candidate.best_metric = numbers({"best": root.get("best_metric")}).get("best")
        candidate.best_by = _best_by(root.get("config"))
    return candidate


def read_root(path: str) -> dict[Any, Any]:
    """Return the dict that a checkpoint is, without its tensors; an empty one if it is not a dict.

    Raises:
        CheckpointError, OSError: As `read_outline` and `with_numbers`.
    """
    root = with_numbers(read_outline(path))
    return root if isinstance(root, dict) else {}


def _best_by(config: Any) -> Best:
    if not isinstance(config, dict):
        return Best(None, None)
    metric, mode = config.get("metric_name"), config.get("metric_mode")
    return Best(
        metric if isinstance(metric, str) else None, mode if mode in {"min", "max"} else None
    )
