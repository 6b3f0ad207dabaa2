"""Find the checkpoint files under a path: which steps there are, and which other files.

File names are nanochat's: `model_000100.pt`, `meta_000100.json`, `optim_000100_rank0.pt`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from ._verify_report import Role

# Six digits, more from a million on; a name with other zeros is none that a loader would open.
_STEP = r"(?P<step>[0-9]{6}|[1-9][0-9]{6,17})"
_MODEL = re.compile(rf"model_{_STEP}\.pt")
_META = re.compile(rf"meta_{_STEP}\.json")
_SHARD = re.compile(rf"optim_{_STEP}_rank(?P<rank>0|[1-9][0-9]{{0,17}})\.pt")
_LEFTOVER = re.compile(r"\.fastckpt-.*\.tmp")
# Names under which torch.save's files are found: torch's own documentation, Lightning.
_ARCHIVE_SUFFIXES = (".pt", ".pth", ".ckpt")
# Missing ranks that are named one by one; a gap may be as large as a rank can be.
_NAMED_GAPS = 8


@dataclass(frozen=True)
class StepName:
    """What a file name of nanochat's says."""

    role: Role
    step: int
    rank: int | None = None


def parse_name(name: str) -> StepName | None:
    """Return what a file name says, None if it is not one of nanochat's."""
    if match := _MODEL.fullmatch(name):
        return StepName("model", int(match["step"]))
    if match := _META.fullmatch(name):
        return StepName("meta", int(match["step"]))
    if match := _SHARD.fullmatch(name):
        return StepName("optimizer", int(match["step"]), int(match["rank"]))
    return None


@dataclass
class StepFiles:
    """Names of the files of one step that are there."""

    step: int
    model: str | None = None
    meta: str | None = None
    #: By rank.
    shards: dict[int, str] = field(default_factory=dict)

    def add(self, name: str, named: StepName) -> None:
        """Add one file."""
        if named.role == "model":
            self.model = name
        elif named.role == "meta":
            self.meta = name
        elif named.rank is not None:
            self.shards[named.rank] = name

    def names(self) -> list[str]:
        """Names in the order model, meta, shards by rank."""
        first = [name for name in (self.model, self.meta) if name is not None]
        return first + [self.shards[rank] for rank in sorted(self.shards)]

    def missing(self) -> tuple[str, ...]:
        """Names of the files without which the step is incomplete.

        Every step has a model and its meta. No shards at all is complete: nanochat's RL run saves
        none. A gap in the ranks is not; how many ranks there were, the names do not say.
        """
        names = []
        if self.model is None:
            names.append(f"model_{self.step:06d}.pt")
        if self.meta is None:
            names.append(f"meta_{self.step:06d}.json")
        return (*names, *self._missing_shards())

    def _missing_shards(self) -> Iterator[str]:
        expected = 0
        named = 0
        for rank in sorted(self.shards):
            gap = rank - expected
            for absent in range(expected, expected + min(gap, _NAMED_GAPS - named)):
                yield f"optim_{self.step:06d}_rank{absent}.pt"
                named += 1
                gap -= 1
            if gap > 0:
                yield f"optim_{self.step:06d}_rank*.pt ({gap} ranks below {rank})"
            expected = rank + 1


@dataclass
class Directory:
    """What one directory holds, names sorted."""

    path: str
    steps: list[StepFiles]
    #: Archives whose names are not nanochat's.
    others: list[str]
    leftovers: list[str]
    subdirectories: list[str]


def survey_directory(path: str) -> Directory:
    """List one directory.

    Raises:
        OSError: It cannot be listed.
    """
    found = Directory(path, [], [], [], [])
    steps: dict[int, StepFiles] = {}
    for name in sorted(os.listdir(path)):
        named = parse_name(name)
        if named is not None:
            steps.setdefault(named.step, StepFiles(named.step)).add(name, named)
        elif _LEFTOVER.fullmatch(name):
            found.leftovers.append(name)
        elif name.startswith("."):
            continue
        elif os.path.isdir(os.path.join(path, name)):
            # Before the suffix: Lightning's sharded checkpoints are directories named *.ckpt.
            found.subdirectories.append(name)
        elif name.endswith(_ARCHIVE_SUFFIXES) and not _is_path_configuration(path, name):
            found.others.append(name)
    found.steps = [steps[step] for step in sorted(steps)]
    return found


def _is_path_configuration(path: str, name: str) -> bool:
    # Python's own *.pth files lie in site-packages only.
    return name.endswith(".pth") and os.path.basename(path) in {"site-packages", "dist-packages"}


def walk_directories(
    root: str, visited: set[tuple[int, int]]
) -> Iterator[Directory | OSError | None]:
    """Survey a directory and those below it, hidden ones left out; None for those in `visited`.

    Symbolic links to directories are followed: a run often lies on another disk. A directory that
    cannot be listed is yielded as its error, and the others are visited nonetheless.
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
    """Name what lies at a path, for a message about a file that is none."""
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISCHR, "a character device"),
    )
    return next((words for test, words in kinds if test(mode)), "not a regular file")
