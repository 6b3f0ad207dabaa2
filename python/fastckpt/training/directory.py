"""What the directory of a manager holds, from the files alone. No tensor is read for it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Any, Literal

from fastckpt._contents.identity import Standing, standing
from fastckpt._contents.outline import read_outline
from fastckpt._contents.scalar_tensors import with_numbers
from fastckpt._steps.checkpoint_names import BEST_NAME, CheckpointName, parse_checkpoint_name
from fastckpt.errors import CheckpointError, FormatError

from .contents import check_is_managers
from .log import logger
from .metrics import as_float, is_better


@dataclass(frozen=True)
class Entry:
    """A checkpoint whose structure is whole.

    Attributes:
        path: The file.
        name: What a checkpoint of its step and epoch is called; `best_model.pt` has one too.
        metrics: Its own.
        timestamp: When it was saved.
    """

    path: str
    name: CheckpointName
    metrics: dict[str, float]
    timestamp: str

    def is_same_save(self, other: Entry) -> bool:
        """Whether two files are one, or copies of one."""
        return (self.name, self.timestamp) == (other.name, other.timestamp)


class CheckpointDirectory:
    """The checkpoints of one directory.

    Attributes:
        path: The directory; it need not be there.
        entries: Whole checkpoints, oldest step first.
        best_model: What `best_model.pt` is.
        rank_files: File names of other ranks, by the name of their checkpoint.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self.best_model: Entry | None = None
        self.rank_files: dict[CheckpointName, list[str]] = {}
        # None for a file that is not a whole checkpoint: that is logged once.
        self._read: dict[str, tuple[Standing, Entry | None]] = {}

    def refresh(self) -> None:
        """Look again; only what has changed is read.

        Raises:
            OSError: The directory cannot be listed, or a file in it cannot be read.
        """
        self.rank_files = {}
        found: dict[str, tuple[Standing, Entry | None]] = {}
        for file_name in self._list():
            name = parse_checkpoint_name(file_name)
            if name is not None and name.rank:
                own = CheckpointName(name.step, name.epoch)
                self.rank_files.setdefault(own, []).append(file_name)
            elif name is not None or file_name == BEST_NAME:
                read = self._look_at(file_name, name)
                if read is not None:
                    found[file_name] = read
        self._read = found
        whole = [entry for _, entry in found.values() if entry is not None]
        best_path = os.path.join(self.path, BEST_NAME)
        self.best_model = next((entry for entry in whole if entry.path == best_path), None)
        self.entries = sorted(
            (entry for entry in whole if entry.path != best_path), key=lambda entry: entry.name
        )

    def add(self, name: CheckpointName, metrics: dict[str, float], timestamp: str) -> None:
        """Add a checkpoint that has just been saved, without looking again."""
        others = [entry for entry in self.entries if entry.name != name]
        new = Entry(self.path_of(name), name, metrics, timestamp)
        self.entries = sorted([*others, new], key=lambda entry: entry.name)

    def pass_over(self, entry: Entry) -> None:
        """Let a checkpoint count no more, since its tensors are damaged; until its file is another."""
        self.entries = [one for one in self.entries if one.path != entry.path]
        there = standing(entry.path)
        if there is not None:
            self._read[str(entry.name)] = (there, None)

    def judged(self, name: CheckpointName) -> Standing | None:
        """Return what stood at the name of a checkpoint when it was looked at last; None if it was not."""
        read = self._read.get(str(name))
        return None if read is None else read[0]

    def checkpoint_names(self) -> list[CheckpointName]:
        """List the checkpoints by their file names, damaged ones among them, newest first."""
        names = filter(None, map(parse_checkpoint_name, self._list()))
        return sorted((name for name in names if not name.rank), reverse=True)

    def path_of(self, name: CheckpointName) -> str:
        """Return the path of a checkpoint."""
        return os.path.join(self.path, str(name))

    def best(self, metric: str | None, mode: Literal["min", "max"]) -> Entry | None:
        """Return the best checkpoint: of equals the one that has the name already, then the earliest."""
        candidates = [*([self.best_model] if self.best_model else []), *self.entries]
        best: Entry | None = None
        for entry in candidates if metric is not None else ():
            value = entry.metrics.get(metric or "")
            if is_better(value, None if best is None else best.metrics[metric or ""], mode):
                best = entry
        return best

    def _list(self) -> list[str]:
        try:
            return sorted(os.listdir(self.path or "."))
        except FileNotFoundError:
            return []
        except OSError as error:
            error.strerror = f"{error.strerror}, while listing the directory"
            raise

    def _look_at(
        self, file_name: str, name: CheckpointName | None
    ) -> tuple[Standing, Entry | None] | None:
        """Return what a file is; None if it is gone."""
        path = os.path.join(self.path, file_name)
        try:
            there = standing(path)
            if there is None or there.file is None:
                return None
            known = self._read.get(file_name)
            if known is not None and known[0] == there:
                return known
            return there, _read_entry(path, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            if "while" not in str(error.strerror):  # errors of the core say so themselves
                error.strerror = f"{error.strerror}, while looking at the checkpoint"
            raise


def _read_entry(path: str, name: CheckpointName | None) -> Entry | None:
    """Read what a checkpoint says of itself; warn, and return None, where it is damaged."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FormatError(f"{path} is not a regular file", path=path)
        root = with_numbers(read_outline(path))
        check_is_managers(root, path)
        found = CheckpointName(root["global_step"], root["epoch"])
        if name is not None and found != name:
            raise FormatError(f"{path} holds what belongs into {found}", path=path)
    except CheckpointError as error:
        # best_model.pt is only a name: the next save gives it to the best that is whole.
        logger.warning("Passed over%s: %s", ", and left where it is" if name else "", error)
        return None
    metrics = root.get("metrics")
    return Entry(
        path=path,
        name=found,
        metrics=_floats(metrics if isinstance(metrics, dict) else {}),
        timestamp=str(root.get("timestamp")),
    )


def _floats(metrics: dict[Any, Any]) -> dict[str, float]:
    # Another script may have saved whole numbers, or scalars of numpy.
    numbers = {name: as_float(value) for name, value in metrics.items() if isinstance(name, str)}
    return {name: number for name, number in numbers.items() if number is not None}
