"""Look into directories of checkpoints: which steps there are, how large, whole or torn, how good."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from fastckpt._arguments import one_path
from fastckpt._contents.plain_values import PlainValues
from fastckpt._named_step import model_file
from fastckpt._steps.checkpoint_names import BEST_NAME
from fastckpt._steps.saves import read_save
from fastckpt._steps.survey import Directory, Listing, StepFiles, absent_ranks, walk_directories
from fastckpt.errors import CheckpointError, IncompleteCheckpointError, UncoveredFormatError

from .files import decode_meta_values, inspect_file, read_meta_values
from .names import name_of_file
from .report import FileContents
from .run_report import CheckpointRow, DirectoryContents, RunContents, State
from .sizes import Sizes

_Path = str | os.PathLike[str]

_SAFETENSORS_SUFFIX = ".safetensors"
# Where a checkpoint of `CheckpointManager` says how many ranks have saved it.
_WORLD_SIZE = "rng_states.world_size"


def inspect_checkpoint(path: _Path) -> FileContents | DirectoryContents:
    """Say what a checkpoint file, or a directory of checkpoints, holds; without reading tensors.

    Args:
        path: A .pt or .safetensors file, a step (``"runs/d12@1200"``: the file with its model), the
            directory of a run, or a parent of such directories.

    Returns:
        `FileContents` for a file (see `inspect_file`), `DirectoryContents` for a directory, in which
        what is wrong with a checkpoint is said and not raised.

    Raises:
        FileNotFoundError, OSError: The path does not exist or cannot be read.
        FormatError: The file is damaged, or not a checkpoint.

    `fastckpt.inspect` is another name of this function.

    Example:
        >>> torch.save({"step": 3, "val_loss": 2.5, "model": {"w": torch.ones(2)}}, "a.pt")
        >>> fastckpt.inspect_checkpoint("a.pt").metrics
        {'val_loss': 2.5}
    """
    name = model_file(os.fsdecode(one_path("path", path)))
    if stat.S_ISDIR(os.stat(name).st_mode):
        return inspect_directory(name)
    return inspect_file(name)


def inspect_directory(path: str) -> DirectoryContents:
    """Say what a directory and those below it hold.

    Raises:
        OSError: It cannot be listed.
    """
    runs = []
    leftovers: list[str] = []
    errors: list[tuple[str, str]] = []
    sizes = Sizes()
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


def _inspect_run(directory: Directory, all_sizes: Sizes) -> RunContents | None:
    path = directory.path
    sizes = Sizes()
    listing = Listing(path)
    rows = [_step_row(path, files, sizes, listing) for files in directory.steps]
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


# Steps with nanochat's names.


def _step_row(directory: str, files: StepFiles, sizes: Sizes, listing: Listing) -> CheckpointRow:
    names = [*files.names(), *files.kept_names()]
    state, problem = State.WHOLE, None
    model = None if files.model is None else os.path.join(directory, files.model)
    shards = [os.path.join(directory, name) for name in files.shards.values()]
    try:
        save = read_save(directory, files.step, optimizer=True, listing=listing)
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


def _file_rows(directory: str, names: list[str], sizes: Sizes) -> Iterator[CheckpointRow]:
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
    directory: str, name: str, ranks: dict[int, str], sizes: Sizes, *, is_best: bool = False
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
    directory: str, name: str, ranks: dict[int, str], sizes: Sizes
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
