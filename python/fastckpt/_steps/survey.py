"""Find the checkpoint files under a path: which steps there are, and which other files.

Steps are named as nanochat names them: `model_000100.pt`, `meta_000100.json`, `optim_000100_rank0.pt`.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import compress, repeat

from fastckpt._stages import is_stage

from .role import Role

# Six digits, more from a million on; no loader would open a name with other zeros.
_STEP = r"(?P<step>[0-9]{6}|[1-9][0-9]{6,17})"
_MODEL = re.compile(rf"model_{_STEP}\.pt")
_META = re.compile(rf"meta_{_STEP}\.json")
_MANIFEST = re.compile(rf"manifest_{_STEP}\.json")
_SHARD = re.compile(rf"optim_{_STEP}_rank(?P<rank>0|[1-9][0-9]{{0,17}})\.pt")
# The second name of a file that a save has replaced: the save that wrote it, and what it was called.
_KEPT = re.compile(r"\.fastckpt-(?P<save_id>[0-9]{14})-(?P<name>.+)\.kept")
_TEMPORARY = re.compile(r"\.fastckpt-.*\.tmp")
# Names under which torch.save's files are found: torch's own documentation, Lightning.
_ARCHIVE_SUFFIXES = (".pt", ".pth", ".ckpt")
# File systems tell times by the second, or two.
_SETTLED_NS = 3 * 10**9
# Missing ranks that are named one by one; a gap may be as large as a rank can be.
_NAMED_GAPS = 8


@dataclass(frozen=True)
class StepName:
    """What the file name of a model, meta, shard or manifest says."""

    role: Role
    step: int
    rank: int | None = None

    def __str__(self) -> str:
        if self.role == "optimizer":
            return f"optim_{self.step:06d}_rank{self.rank}.pt"
        return f"{self.role}_{self.step:06d}.{'pt' if self.role == 'model' else 'json'}"


def parse_name(name: str) -> StepName | None:
    """Return what a file name says; None if it is not the name of a step's file."""
    if match := _MODEL.fullmatch(name):
        return StepName("model", int(match["step"]))
    if match := _META.fullmatch(name):
        return StepName("meta", int(match["step"]))
    if match := _MANIFEST.fullmatch(name):
        return StepName("manifest", int(match["step"]))
    if match := _SHARD.fullmatch(name):
        return StepName("optimizer", int(match["step"]), int(match["rank"]))
    return None


def kept_name(save_id: int, name: str) -> str:
    """Return the second name that a file of a step gets before it is replaced.

    No pattern by which nanochat finds checkpoints matches it: it does not end in `.pt`.
    """
    return f".fastckpt-{save_id:014d}-{name}.kept"


def parse_kept_name(name: str) -> tuple[int, str, StepName] | None:
    """Return the save id, the former name, and what that says; None for other names."""
    match = _KEPT.fullmatch(name)
    named = parse_name(match["name"]) if match else None
    return (int(match["save_id"]), match["name"], named) if match and named else None


def own_name(name: str) -> str:
    """Return what a file was called before it was kept; other names unchanged."""
    kept = parse_kept_name(name)
    return name if kept is None else kept[1]


def part_of_step(step: int) -> str:
    """Return what the names of all files of a step have in common."""
    return f"_{step:06d}"


def is_of_step(name: str, step: int) -> bool:
    """Whether a name belongs to a file of a step: its own name, or the one under which it is kept."""
    named = parse_name(own_name(name))
    return named is not None and named.step == step


@dataclass
class StepFiles:
    """The file names of one step."""

    step: int
    model: str | None = None
    meta: str | None = None
    manifest: str | None = None
    #: By rank.
    shards: dict[int, str] = field(default_factory=dict)
    #: Second names of files that later saves of the step have replaced, by save id.
    kept: dict[int, StepFiles] = field(default_factory=dict)

    def add(self, name: str, named: StepName) -> None:
        """Add one file."""
        if named.role == "model":
            self.model = name
        elif named.role == "meta":
            self.meta = name
        elif named.role == "manifest":
            self.manifest = name
        elif named.rank is not None:
            self.shards[named.rank] = name

    def add_kept(self, name: str, save_id: int, named: StepName) -> None:
        """Add the second name of one file."""
        self.kept.setdefault(save_id, StepFiles(self.step)).add(name, named)

    def names(self) -> list[str]:
        """Return the names: model, meta, manifest, shards by rank; without those of kept files."""
        first = [name for name in (self.model, self.meta, self.manifest) if name is not None]
        return first + [self.shards[rank] for rank in sorted(self.shards)]

    def kept_names(self) -> list[str]:
        """Return the second names of all kept files."""
        return [name for save_id in sorted(self.kept) for name in self.kept[save_id].names()]

    def missing(self, shards: int | None = None) -> tuple[str, ...]:
        """Return the names of the files that the step lacks.

        Every step has a model and its meta. With `shards` None, only the names are known: a step without
        any shard is complete then (as in RL runs of nanochat), one with a gap in the ranks is not.
        """
        names = []
        if self.model is None:
            names.append(str(StepName("model", self.step)))
        if self.meta is None:
            names.append(str(StepName("meta", self.step)))
        if shards is None:
            shards = max(self.shards, default=-1) + 1
        absent, more = absent_ranks(self.shards, shards)
        names += [str(StepName("optimizer", self.step, rank)) for rank in absent]
        if more:
            names.append(f"optim_{self.step:06d}_rank*.pt of {more} more ranks")
        return tuple(names)


def absent_ranks(ranks: Collection[int], end: int) -> tuple[list[int], int]:
    """Return which ranks below `end` are not among these: the first few, and how many more."""
    there = sorted(rank for rank in ranks if rank < end)
    absent: list[int] = []
    expected = 0
    for rank in (*there, end):
        absent += range(expected, min(rank, expected + _NAMED_GAPS - len(absent)))
        expected = rank + 1
    return absent, end - len(there) - len(absent)


@dataclass
class Directory:
    """What one directory holds, names sorted."""

    path: str
    steps: list[StepFiles]
    #: Archives that are not named as files of a step.
    others: list[str]
    #: Temporary files of saves, running or interrupted.
    leftovers: list[str]
    #: Hidden directories of exports, running or interrupted.
    stages: list[str]
    subdirectories: list[str]


def survey_steps(path: str) -> dict[int, StepFiles]:
    """List the steps of one directory, by step.

    Raises:
        OSError: It cannot be listed.
    """
    steps: dict[int, StepFiles] = {}
    for name in _list(path):
        _add_to_steps(steps, name)
    return steps


def survey_step(path: str, step: int) -> StepFiles:
    """List the files of one step; other names, of which there may be very many, are only skipped.

    Raises:
        OSError: The directory cannot be listed.
    """
    names = _names(path)
    of_step = compress(names, map(str.__contains__, names, repeat(part_of_step(step))))
    steps = {step: StepFiles(step)}
    for name in sorted(of_step):
        _add_to_steps(steps, name)
    return steps[step]


class Listing:
    """The steps of one directory, which is listed again only if it has changed.

    For callers that look at one step after the other: in a directory of very many, a listing for each
    would take time without end.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._steps: dict[int, StepFiles] = {}
        # When the directory was last changed before it was listed; None if that says nothing.
        self._changed_ns: int | None = None

    def step(self, step: int) -> StepFiles:
        """Return what there is of a step now.

        Raises:
            OSError: The directory cannot be listed.
        """
        try:
            changed_ns = os.stat(self._path).st_mtime_ns
        except FileNotFoundError:
            changed_ns = -1
        if self._changed_ns is None or changed_ns != self._changed_ns:
            self._steps = survey_steps(self._path)
            # A second change may have the same time, as far as file systems tell it.
            is_settled = 0 <= changed_ns < time.time_ns() - _SETTLED_NS
            self._changed_ns = changed_ns if is_settled else None
        return self._steps.get(step, StepFiles(step))


def survey_directory(path: str) -> Directory:
    """List one directory.

    Raises:
        OSError: It cannot be listed.
    """
    found = Directory(path, [], [], [], [], [])
    steps: dict[int, StepFiles] = {}
    for name in _list(path):
        if _add_to_steps(steps, name):
            continue
        if _TEMPORARY.fullmatch(name):
            found.leftovers.append(name)
        elif name.startswith("."):
            if is_stage(path, name):
                found.stages.append(name)
        elif os.path.isdir(os.path.join(path, name)):
            # Before the suffix: Lightning's sharded checkpoints are directories named *.ckpt.
            found.subdirectories.append(name)
        elif name.endswith(_ARCHIVE_SUFFIXES) and not _is_path_configuration(path, name):
            found.others.append(name)
    found.steps = [steps[step] for step in sorted(steps)]
    return found


def _list(path: str) -> list[str]:
    return sorted(_names(path))


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError as error:
        error.strerror = f"{error.strerror}, while listing the directory"
        raise


def _add_to_steps(steps: dict[int, StepFiles], name: str) -> bool:
    named = parse_name(name)
    if named is not None:
        steps.setdefault(named.step, StepFiles(named.step)).add(name, named)
        return True
    kept = parse_kept_name(name)
    if kept is not None:
        save_id, _, named = kept
        steps.setdefault(named.step, StepFiles(named.step)).add_kept(name, save_id, named)
    return kept is not None


def _is_path_configuration(path: str, name: str) -> bool:
    # Python's own *.pth files lie in site-packages only.
    return name.endswith(".pth") and os.path.basename(path) in {"site-packages", "dist-packages"}


def walk_directories(
    root: str, visited: set[tuple[int, int]]
) -> Iterator[Directory | OSError | None]:
    """Survey a directory and those below it, hidden ones left out; None for those in `visited`.

    Symbolic links to directories are followed: a run is often on another disk. If a directory cannot
    be listed, its error is yielded, and the others are still visited.
    """
    pending = [root]
    while pending:
        path = pending.pop()
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in visited:
                yield None
                continue
            visited.add((status.st_dev, status.st_ino))
            directory = survey_directory(path)
        except OSError as error:
            yield error
            continue
        yield directory
        pending += [os.path.join(path, name) for name in reversed(directory.subdirectories)]


def kind_of(mode: int) -> str:
    """Name what is at a path, for a message that it is not a regular file."""
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISCHR, "a character device"),
    )
    return next((words for test, words in kinds if test(mode)), "not a regular file")
