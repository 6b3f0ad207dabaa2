"""Rank checkpoints by the metrics that they hold, without reading their tensors."""

from __future__ import annotations

import logging
import math
import os
import stat
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ._arguments import one_or_several_paths
from ._contents.opening import Kind, open_source
from ._contents.plain_values import PlainValues
from ._contents.scalar_tensors import read_scalar
from ._inspect.files import decode_meta_values, read_source_values
from ._inspect.names import name_of_file
from ._metric_names import nearest_first
from ._native import Archive
from ._steps.checkpoint_names import BEST_NAME
from ._steps.saves import read_save
from ._steps.survey import Listing, StepName, walk_directories
from .errors import CheckpointError, UnknownMetricError

if TYPE_CHECKING:
    import torch

__all__ = ["ModelSelector", "RankedCheckpoint", "UnknownMetricError"]

logger = logging.getLogger("fastckpt.selection")

_Path = str | os.PathLike[str]
Mode = Literal["min", "max"]

_THREADS = 8
# Paths that a message names.
_PATHS_NAMED = 3


@dataclass(frozen=True)
class RankedCheckpoint:
    """A checkpoint and its metrics.

    Attributes:
        path: Its file; for a nanochat step, the file of the model.
        metric: The metric by which it was ranked, NaN included; None if it does not have that metric.
        step: Its step; None if it does not say.
        epoch: Its epoch; None if it does not say.
        metrics: All its metrics.
        problem: Why it could not be read; None if it could.
    """

    path: Path
    metric: int | float | None
    step: int | None
    epoch: int | None
    metrics: Mapping[str, int | float] = field(default_factory=dict)
    problem: str | None = None


class ModelSelector:
    """Rank checkpoints by a metric, and average the best of them."""

    @staticmethod
    def select_top_k_by_metric(
        checkpoints: _Path | Iterable[_Path],
        metric_name: str = "val_loss",
        mode: Mode = "min",
        k: int = 5,
    ) -> list[Path]:
        """Return the k checkpoints with the best metric, the best first.

        Only metrics are read, no tensors. NaN comes after all numbers, and a missing metric after NaN. Among
        equals the lower step comes first, then the given order. A checkpoint that cannot be read is left out,
        and a warning says why.

        The metric of a file is looked up in its dict `metrics`, then at the top level, then by a dotted path
        or the last part of one. A tensor of one element counts. The metrics of a nanochat step are those of
        its meta file.

        Args:
            checkpoints: Files, directories of checkpoints, or parents of these directories; one path or
                several. `best_model.pt`, a second name of a checkpoint, is not counted twice.
            metric_name: The metric.
            mode: "min" if lower is better, "max" if higher is better.
            k: Maximum number of checkpoints.

        Returns:
            The paths; for a nanochat step, the path of its model file. `rank_by_metric` returns the metrics
            too.

        Raises:
            UnknownMetricError: None of the checkpoints has the metric; a ValueError that names the available
                ones.
            ValueError: `mode` or `k` is invalid.
            FileNotFoundError: A path does not exist, or holds no checkpoint.
            OSError: A directory cannot be listed.

        Example:
            >>> for step, loss in ((1, 2.5), (2, 2.25), (3, 2.75)):
            ...     fastckpt.save({"step": step, "metrics": {"val_loss": loss}}, f"{step}.pt")
            >>> best = fastckpt.ModelSelector.select_top_k_by_metric(".", "val_loss", "min", 2)
            >>> [path.name for path in best]
            ['2.pt', '1.pt']
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        ranked = ModelSelector.rank_by_metric(checkpoints, metric_name, mode)
        for checkpoint in ranked:
            if checkpoint.problem is not None:
                warnings.warn(f"left out: {checkpoint.problem}", stacklevel=2)
        return [each.path for each in ranked if each.problem is None][:k]

    @staticmethod
    def rank_by_metric(
        checkpoints: _Path | Iterable[_Path], metric_name: str = "val_loss", mode: Mode = "min"
    ) -> list[RankedCheckpoint]:
        """Return all checkpoints with their metrics: the best first, those that cannot be read last.

        Arguments and errors are those of `select_top_k_by_metric`.
        """
        if mode not in {"min", "max"}:
            raise ValueError(f"mode must be 'min' or 'max', not {mode!r}")
        names = one_or_several_paths("checkpoints", checkpoints)
        ranked = _without_copies_of_best(_read_all(list(_list_checkpoints(names)), metric_name))
        if not ranked:
            raise FileNotFoundError(f"no checkpoint in {', '.join(names) or 'an empty list'}")
        if all(checkpoint.metric is None for checkpoint in ranked):
            available = {name for each in ranked for name in each.metrics}
            where = ", ".join(names) if len(names) <= _PATHS_NAMED else f"{len(ranked)} checkpoints"
            raise UnknownMetricError(metric_name, nearest_first(metric_name, available), where)
        sign = 1 if mode == "min" else -1
        return sorted(ranked, key=lambda checkpoint: _rank(checkpoint, sign))

    @staticmethod
    def average_checkpoints(
        checkpoints: Iterable[_Path],
        model: torch.nn.Module | None = None,
        *,
        weights: Iterable[float] | None = None,
    ) -> dict[str, Any]:
        """Return the average of the models in some checkpoints; see `fastckpt.average_checkpoints`.

        Args:
            checkpoints: Files, e.g. those that `select_top_k_by_metric` returned.
            model: The model of these checkpoints. It does not change: pass the result to its
                ``load_state_dict``, or call ``fastckpt.average_checkpoints(checkpoints, model)``.
            weights: One for each checkpoint; None: all the same.

        Returns:
            The averaged state dict, on the CPU.
        """
        del model  # What is averaged is known from the files.
        # A single path is refused where they are averaged.
        if not isinstance(checkpoints, (str, os.PathLike)):
            checkpoints = list(checkpoints)
            logger.info("Averaging %d checkpoints...", len(checkpoints))
        # Torch comes with it.
        average = import_module("._average.average", __package__).average_checkpoints
        averaged: dict[str, Any] = average(checkpoints, weights=weights)
        return averaged


def _rank(checkpoint: RankedCheckpoint, sign: int) -> tuple[int, float, bool, int]:
    metric = checkpoint.metric
    step = (checkpoint.step is None, checkpoint.step or 0)
    if checkpoint.problem is not None:
        return 3, 0, *step
    if metric is None:
        return 2, 0, *step
    if math.isnan(metric):
        return 1, 0, *step
    return 0, sign * metric, *step


# Finding checkpoints.


def _list_checkpoints(paths: list[str]) -> Iterator[str]:
    """Yield the files; one with two names once."""
    seen: set[tuple[int, int]] = set()
    for path in paths:
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                yield path
            continue
        for found in _list_directory(path):
            try:
                status = os.stat(found)
            except FileNotFoundError:
                # Deleted meanwhile, by a rotation.
                continue
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                yield found


def _list_directory(path: str) -> Iterator[str]:
    for found in walk_directories(path, set()):
        if isinstance(found, OSError):
            raise found
        if found is None:
            continue
        for step in found.steps:
            if step.model is not None:
                yield os.path.join(found.path, step.model)
        # Of two names of one file the first is taken.
        for name in sorted(found.others, key=lambda name: (name == BEST_NAME, name)):
            named = name_of_file(name)
            if named is None or named.role == "managed":
                yield os.path.join(found.path, name)


def _without_copies_of_best(ranked: list[RankedCheckpoint]) -> list[RankedCheckpoint]:
    """Leave out each `best_model.pt` that is a copy, as on file systems without hard links."""
    known = {
        (each.path.parent, each.epoch, each.step, each.metric)
        for each in ranked
        if each.path.name != BEST_NAME and each.step is not None
    }
    return [
        each
        for each in ranked
        if each.path.name != BEST_NAME
        or (each.path.parent, each.epoch, each.step, each.metric) not in known
    ]


# Reading metrics.


def _read_all(paths: list[str], metric_name: str) -> list[RankedCheckpoint]:
    """Read all of them with several threads, since each is a few small reads that wait for the disk."""
    waiting = deque(enumerate(paths))
    read: dict[int, RankedCheckpoint] = {}
    reading = _Reading(metric_name)

    def work() -> None:
        while True:
            try:
                position, path = waiting.popleft()
            except IndexError:
                return
            read[position] = reading.read(path)

    # One task for each thread: a task for each file would cost a tenth of the time of a file.
    with ThreadPoolExecutor(_THREADS) as executor:
        try:
            for thread in [executor.submit(work) for _ in range(_THREADS)]:
                thread.result()
        finally:
            # After Ctrl-C each thread ends in the middle of its file.
            waiting.clear()
            reading.is_stopped = True
    return [read[position] for position in range(len(paths))]


class _Reading:
    """Reads the metrics of checkpoints, from several threads.

    Attributes:
        is_stopped: Whether the threads should end: only the main thread sees a Ctrl-C.
    """

    def __init__(self, metric_name: str) -> None:
        self._metric_name = metric_name
        self._listings: dict[str, Listing] = {}
        self.is_stopped = False

    def read(self, path: str) -> RankedCheckpoint:
        """Read one checkpoint; an error becomes its `problem`."""
        try:
            named = name_of_file(path)
            if named is not None and named.role == "model":
                directory = os.path.dirname(path) or "."
                if os.path.exists(os.path.join(directory, str(StepName("meta", named.step)))):
                    return self._read_step(directory, named.step)
            return self._read_file(path)
        except (CheckpointError, OSError) as error:
            return RankedCheckpoint(Path(path), None, None, None, problem=str(error))

    def _read_step(self, directory: str, step: int) -> RankedCheckpoint:
        """Read the meta of a step, from the save that its model belongs to."""
        listing = self._listings.setdefault(directory, Listing(directory))
        save = read_save(directory, step, optimizer=False, listing=listing)
        plain = decode_meta_values(save.meta_bytes, save.meta)
        return _ranked(save.model.path, step, plain, _metric_of(plain, self._metric_name, None))

    def _read_file(self, path: str) -> RankedCheckpoint:
        named = name_of_file(path)
        with open_source(path) as source:
            if source.kind is Kind.SAFETENSORS:
                return _ranked(path, None if named is None else named.step, PlainValues(), None)
            archive, plain = read_source_values(source, self._look)
        step = plain.step
        if step is None and named is not None:
            step = named.step
        return _ranked(path, step, plain, _metric_of(plain, self._metric_name, archive))

    def _look(self, done: int, total: int) -> None:
        if self.is_stopped:
            raise KeyboardInterrupt


def _ranked(
    path: str, step: int | None, plain: PlainValues, metric: float | None
) -> RankedCheckpoint:
    return RankedCheckpoint(Path(path), metric, step, plain.epoch, plain.metrics())


def _metric_of(plain: PlainValues, metric_name: str, archive: Archive | None) -> int | float | None:
    name = plain.find_name(metric_name)
    if name is None:
        return None
    value = plain.values.get(name)
    if isinstance(value, (int, float)):
        return value
    tensor = plain.scalar_tensors.get(name)
    return None if tensor is None or archive is None else read_scalar(archive, tensor)
