"""Look into directories of checkpoints: which steps there are, how large, whole or torn, how good."""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fastckpt._contents.plain_values import PlainValues
from fastckpt._steps.checkpoint_names import BEST_NAME
from fastckpt._steps.saves import read_save
from fastckpt._steps.survey import Directory, StepFiles, absent_ranks, walk_directories
from fastckpt.errors import CheckpointError, IncompleteCheckpointError

from .files import decode_meta_values, inspect_file, read_meta_values
from .names import name_of_file
from .report import FileContents, UncoveredFormatError

_Path = str | os.PathLike[str]
_Key = tuple[int, int]

_SAFETENSORS_SUFFIX = ".safetensors"
# Where a checkpoint of `CheckpointManager` says how many ranks have saved it.
_WORLD_SIZE = "rng_states.world_size"


class State(str, enum.Enum):
    """Whether a checkpoint can be loaded, as far as its structure tells; `verify` reads its bytes."""

    WHOLE = "whole"
    #: A file is missing, or of another save.
    TORN = "torn"
    DAMAGED = "damaged"
    #: A format that cannot be looked into.
    UNCOVERED = "uncovered"
    #: The operating system could not read it.
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class CheckpointRow:
    """One checkpoint: a step of nanochat's naming, or a file with what belongs to it.

    Attributes:
        name: Its first file.
        step: Its step.
        epoch: Its epoch.
        state: Whether it is whole.
        problem: Why not.
        nbytes: Size of its files, each file on disk counted once.
        model_nbytes: Size of the model: of its file, or of the tensors in a file that holds more.
        optimizer_nbytes: Size of the optimizer's state, of all ranks.
        ranks: How many ranks have saved a part of it.
        metrics: The numbers that were measured, by name.
        files: Names of its files.
        is_best: Whether `best_model.pt` is another name of it.
    """

    name: str
    step: int | None
    epoch: int | None
    state: State
    problem: str | None
    nbytes: int
    model_nbytes: int | None
    optimizer_nbytes: int | None
    ranks: int
    metrics: Mapping[str, int | float]
    files: tuple[str, ...]
    is_best: bool = False


@dataclass(frozen=True)
class RunContents:
    """What one directory holds.

    Attributes:
        directory: Its path.
        checkpoints: By step, those without one last.
        nbytes: Size of their files, each file on disk counted once.
        newest: Step of the newest that is whole.
        freed_nbytes: What removing all older than that would free; files that have names elsewhere free
            nothing.
    """

    directory: str
    checkpoints: tuple[CheckpointRow, ...]
    nbytes: int
    newest: int | None
    freed_nbytes: int


@dataclass(frozen=True)
class DirectoryContents:
    """What a directory and those below it hold.

    Attributes:
        path: As it was given.
        runs: The directories in which there are checkpoints.
        nbytes: Size of all, each file on disk counted once.
        leftovers: Temporary files of saves, running or interrupted.
        errors: (path, words) of directories that could not be listed.
    """

    path: str
    runs: tuple[RunContents, ...]
    nbytes: int
    leftovers: tuple[str, ...]
    errors: tuple[tuple[str, str], ...]


def inspect(path: _Path) -> FileContents | DirectoryContents:
    """Say what a checkpoint file, or a directory of checkpoints, holds; without reading tensors.

    Args:
        path: A .pt or .safetensors file, the directory of a run, or a directory above such.

    Returns:
        `FileContents` for a file (see `inspect_file`), `DirectoryContents` for a directory, in which
        what is wrong with a checkpoint is said, not raised.

    Raises:
        OSError: The path cannot be read.
        FormatError: The file is damaged, or no checkpoint.

    Example:
        >>> torch.save({"step": 3, "val_loss": 2.5, "model": {"w": torch.ones(2)}}, "a.pt")
        >>> fastckpt.inspect("a.pt").metrics
        {'val_loss': 2.5}
    """
    path = os.fsdecode(path)
    if stat.S_ISDIR(os.stat(path).st_mode):
        return inspect_directory(path)
    return inspect_file(path)


def inspect_directory(path: str) -> DirectoryContents:
    """Say what a directory and those below it hold.

    Raises:
        OSError: It cannot be listed.
    """
    runs = []
    leftovers: list[str] = []
    errors: list[tuple[str, str]] = []
    sizes = _Sizes()
    for found in walk_directories(path, set()):
        if isinstance(found, OSError):
            if found.filename == path:
                raise found
            errors.append((os.fsdecode(found.filename or path), found.strerror or str(found)))
        elif found is not None:
            leftovers += [os.path.join(found.path, name) for name in found.leftovers]
            run = _inspect_run(found, sizes)
            if run is not None:
                runs.append(run)
    return DirectoryContents(path, tuple(runs), sizes.nbytes(), tuple(leftovers), tuple(errors))


def _inspect_run(directory: Directory, all_sizes: _Sizes) -> RunContents | None:
    path = directory.path
    sizes = _Sizes()
    rows = [_step_row(path, files, sizes) for files in directory.steps]
    rows += _file_rows(path, [*directory.others, *_safetensors_names(path)], sizes)
    if not rows:
        return None
    rows.sort(key=_order)
    all_sizes.add(sizes)
    whole = [row.step for row in rows if row.state is State.WHOLE and row.step is not None]
    newest = max(whole, default=None)
    older = [row for row in rows if newest is not None and (row.step or 0) < newest]
    removed = [
        os.path.join(path, name) for row in older if row.step is not None for name in row.files
    ]
    return RunContents(path, tuple(rows), sizes.nbytes(), newest, sizes.freed_nbytes(removed))


def _order(row: CheckpointRow) -> tuple[bool, int, str]:
    return row.step is None, row.step or 0, row.name


# Steps of nanochat's naming.


def _step_row(directory: str, files: StepFiles, sizes: _Sizes) -> CheckpointRow:
    names = [*files.names(), *files.kept_names()]
    state, problem = State.WHOLE, None
    model = None if files.model is None else os.path.join(directory, files.model)
    shards = [os.path.join(directory, name) for name in files.shards.values()]
    try:
        save = read_save(directory, files.step, optimizer=True)
        plain = decode_meta_values(save.meta_bytes, save.meta)
        model, shards = save.model.path, list(save.optimizer.values())
    except (CheckpointError, OSError) as error:
        state, problem = _judge(error)
        plain = _visible_meta(directory, files)
    return CheckpointRow(
        name=names[0],
        step=files.step,
        epoch=plain.epoch,
        state=state,
        problem=problem,
        nbytes=sizes.of(os.path.join(directory, name) for name in names),
        model_nbytes=None if model is None else sizes.of([model]),
        optimizer_nbytes=sizes.of(shards) if shards else None,
        ranks=len(shards),
        metrics=plain.metrics(),
        files=tuple(names),
    )


def _visible_meta(directory: str, files: StepFiles) -> PlainValues:
    """Read the meta of a step that is not whole; why that cannot be is the step's own problem."""
    if files.meta is None:
        return PlainValues()
    try:
        return read_meta_values(os.path.join(directory, files.meta))
    except (CheckpointError, OSError):
        return PlainValues()


def _judge(error: Exception) -> tuple[State, str]:
    if isinstance(error, (IncompleteCheckpointError, FileNotFoundError)):
        return State.TORN, str(error)
    if isinstance(error, UncoveredFormatError):
        return State.UNCOVERED, str(error)
    if isinstance(error, CheckpointError):
        return State.DAMAGED, str(error)
    return State.UNREADABLE, str(error)


# Files, each a checkpoint.


def _file_rows(directory: str, names: list[str], sizes: _Sizes) -> Iterator[CheckpointRow]:
    parts: dict[str, dict[int, str]] = {}
    main: list[str] = []
    best = None
    for name in names:
        named = name_of_file(name)
        if named is not None and named.role == "rank" and named.rank is not None:
            parts.setdefault(_main_name(name), {})[named.rank] = name
        elif name == BEST_NAME:
            best = name
        else:
            main.append(name)
    best_key = None if best is None else sizes.key(os.path.join(directory, best))
    rows = []
    for name in main:
        is_best = best_key is not None and sizes.key(os.path.join(directory, name)) == best_key
        rows.append(_file_row(directory, name, parts.pop(name, {}), sizes, is_best=is_best))
    if best is not None and not any(row.is_best for row in rows):
        # A copy: it takes room of its own.
        rows.append(_file_row(directory, best, {}, sizes))
    yield from rows
    for name, ranks in parts.items():
        yield _row_without_file(directory, name, ranks, sizes)


def _main_name(name: str) -> str:
    """Return the name of the checkpoint that a rank's part belongs to."""
    return name.rpartition("_rank")[0] + ".pt"


def _file_row(
    directory: str, name: str, ranks: dict[int, str], sizes: _Sizes, *, is_best: bool = False
) -> CheckpointRow:
    files = (name, *(ranks[rank] for rank in sorted(ranks)))
    nbytes = sizes.of(os.path.join(directory, each) for each in files)
    named = name_of_file(name)
    contents: FileContents | None = None
    state, problem = State.WHOLE, None
    try:
        contents = inspect_file(os.path.join(directory, name))
        problem = _missing_parts(ranks, contents)
        state = State.WHOLE if problem is None else State.TORN
    except (CheckpointError, OSError) as error:
        state, problem = _judge(error)
    groups = {} if contents is None else {total.name: total for total in contents.groups()}
    model, optimizer = groups.get("model"), groups.get("optimizer")
    return CheckpointRow(
        name=name,
        step=contents.step if contents is not None else None if named is None else named.step,
        epoch=contents.epoch if contents is not None else None if named is None else named.epoch,
        state=state,
        problem=problem,
        nbytes=nbytes,
        model_nbytes=None if model is None else model.storage_nbytes,
        optimizer_nbytes=None if optimizer is None else optimizer.storage_nbytes,
        ranks=1 + len(ranks),
        metrics={} if contents is None else contents.metrics,
        files=files,
        is_best=is_best,
    )


def _missing_parts(ranks: dict[int, str], contents: FileContents) -> str | None:
    """Say which parts of other ranks a checkpoint lacks: it counts them, or one above them is there."""
    counted = contents.values.get(_WORLD_SIZE)
    named = name_of_file(contents.path)
    end = max(ranks, default=0) + 1
    if named is not None and named.role == "managed" and isinstance(counted, int):
        end = max(end, counted)
    absent, more = absent_ranks([0, *ranks], end)
    if not absent:
        return None
    others = len(absent) - 1 + more
    words = f"the part of rank {absent[0]} is missing"
    return words + (f", and those of {others} more ranks" if others else "")


def _row_without_file(
    directory: str, name: str, ranks: dict[int, str], sizes: _Sizes
) -> CheckpointRow:
    files = tuple(ranks[rank] for rank in sorted(ranks))
    named = name_of_file(name)
    return CheckpointRow(
        name=files[0],
        step=None if named is None else named.step,
        epoch=None if named is None else named.epoch,
        state=State.TORN,
        problem=f"{os.path.join(directory, name)} is missing",
        nbytes=sizes.of(os.path.join(directory, each) for each in files),
        model_nbytes=None,
        optimizer_nbytes=None,
        ranks=len(ranks),
        metrics={},
        files=files,
    )


def _safetensors_names(path: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(path) if name.endswith(_SAFETENSORS_SUFFIX))
    except OSError:
        # It was listed a moment ago.
        return []


@dataclass
class _Sizes:
    """Sizes of files, by what they are on the disk: a second name takes no room."""

    _files: dict[_Key, tuple[int, int]] = field(default_factory=dict)

    def key(self, path: str) -> _Key | None:
        """Look at a file; return what it is on the disk, None if it is not there any more."""
        try:
            status = os.stat(path)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ELOOP, errno.EACCES}:
                return None
            raise
        key = (status.st_dev, status.st_ino)
        self._files[key] = (status.st_size, status.st_nlink)
        return key

    def of(self, paths: Iterable[str]) -> int:
        """Return the size of some files, each on the disk counted once."""
        keys = {self.key(path) for path in paths}
        return sum(self._files[key][0] for key in keys if key is not None)

    def nbytes(self) -> int:
        """Return the size of all that were looked at."""
        return sum(nbytes for nbytes, _ in self._files.values())

    def freed_nbytes(self, paths: Iterable[str]) -> int:
        """Return what removing these names would free."""
        names: dict[_Key, set[str]] = {}
        for path in paths:
            # With a link goes the link alone.
            key = None if os.path.islink(path) else self.key(path)
            if key is not None:
                names.setdefault(key, set()).add(path)
        return sum(
            self._files[key][0] for key, gone in names.items() if len(gone) >= self._files[key][1]
        )

    def add(self, other: _Sizes) -> None:
        """Take in what another has looked at."""
        self._files.update(other._files)
