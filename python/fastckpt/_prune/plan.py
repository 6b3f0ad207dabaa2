"""Which checkpoints of a directory go, and which stay: decided before anything is deleted."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from fastckpt._contents.identity import Standing, identity
from fastckpt._steps.held import HeldDirectory
from fastckpt._steps.left_behind import divide_temporaries, is_left_behind
from fastckpt._steps.removal import Going, Removal, orphans_going
from fastckpt._verify.report import FileReport, Status
from fastckpt._verify.verify import verify
from fastckpt.errors import CheckpointError

from .candidates import (
    Candidate,
    Family,
    best_candidates,
    read_root,
)
from .retention import expendable_steps


@dataclass(frozen=True)
class Options:
    """What `prune` was asked for."""

    keep: int
    keep_every: int | None
    metric: str | None
    mode: str
    keep_best: int
    dry_run: bool
    quick: bool


class GoodCheck:
    """Says of a checkpoint whether it is good, reading each only once."""

    def __init__(
        self, *, quick: bool, threads: int | None, progress: Callable[[int, int], None] | None
    ) -> None:
        self._quick = quick
        self._threads = threads
        self._progress = progress
        self._verdicts: dict[tuple[str, ...], tuple[Status, str]] = {}

    def __call__(self, candidate: Candidate) -> tuple[Status, str]:
        """Return the verdict on the files of a checkpoint, and what is wrong in words."""
        key = tuple(candidate.loads)
        if key not in self._verdicts:
            self._verdicts[key] = self._verify(candidate)
        return self._verdicts[key]

    def _verify(self, candidate: Candidate) -> tuple[Status, str]:
        report = verify(
            candidate.loads, quick=self._quick, threads=self._threads, progress=self._progress
        )
        status = report.status
        if self._quick and status is Status.UNCHECKED:
            # Nobody asked for its checksums.
            return Status.GOOD, ""
        bad = next((file for file in report.files if file.status is not Status.GOOD), None)
        return status, "" if bad is None else _words_for(bad)


def _words_for(file: FileReport) -> str:
    """Say what is wrong with a file."""
    words = file.message or file.status.value
    for damage in file.damages[:1]:
        tensor = f" in tensor '{damage.tensors[0]}'" if damage.tensors else ""
        words = damage.detail + tensor
    return f"{os.path.basename(file.path)}: {words}"


@dataclass(frozen=True)
class Plan:
    """What becomes of the checkpoints of one family.

    Attributes:
        family: The checkpoints.
        directory: Where they are.
        expendable: Those that go.
        best: Those that are the best by one of the signs that there are.
        verified: The one that was found to be good.
        relies_on: What its files were before they were read.
        blocked: Why nothing goes although something could.
        orphans: Files of ranks whose checkpoint is gone, and which every rank has gone past.
    """

    family: Family
    directory: HeldDirectory
    expendable: list[Candidate]
    best: list[Candidate]
    verified: Candidate | None
    relies_on: dict[str, Standing]
    blocked: str | None
    orphans: list[Going]

    @property
    def counted(self) -> list[Candidate]:
        """The checkpoints that count: whole, and not found to be damaged."""
        return _counted(self.family)

    @property
    def paths(self) -> list[str]:
        """All files that go, in the order of removal."""
        return [*(path for each in self.expendable for path in each.paths), *self.leftovers]

    @property
    def leftovers(self) -> list[str]:
        """Paths of the files of ranks that go."""
        return [
            os.path.join(self.directory.path, name) for going in self.orphans for name in going.rest
        ]

    def going(self, candidate: Candidate) -> Going:
        """Return what has to be compared before a checkpoint goes."""
        return Going(
            directory=self.directory,
            first=[os.path.basename(path) for path in candidate.first],
            rest=[os.path.basename(path) for path in candidate.rest],
            judged=candidate.judged,
            part=candidate.part,
            belongs=candidate.belongs,
            relies_on=self.relies_on,
            what="model" if self.family.kind == "nanochat" else "checkpoint",
        )


class Planner:
    """Decides what becomes of families of checkpoints, one after the other.

    Args:
        held: Where they are.
        options: What was asked for.
        check: Says which of them are good.
        removal: Takes note of what cannot be read.
    """

    def __init__(
        self, held: HeldDirectory, options: Options, check: GoodCheck, removal: Removal
    ) -> None:
        self._held = held
        self._options = options
        self._check = check
        self._removal = removal

    def plan(self, family: Family) -> Plan:
        """Read what would stay until a checkpoint is good, and decide."""
        verified, relies_on, blocked = None, dict[str, Standing](), None
        while True:
            counted = _counted(family)
            best = _best_of(family, counted, self._options)
            steps = expendable_steps(
                {each.step for each in counted},
                keep=self._options.keep,
                keep_every=self._options.keep_every,
                protected={each.step for each in [*best, *filter(_is_held, counted)]},
            )
            expendable = [each for each in counted if each.step in steps]
            if not expendable:
                break
            staying = [each for each in counted if each.step not in steps]
            verified, relies_on = self._newest_good(staying)
            if verified is not None:
                break
            if len(_counted(family)) == len(counted):
                newest = self._check(staying[-1])[1]
                blocked = f"none of the checkpoints that would stay can be verified: {newest}"
                expendable = []
                break
        orphans = self._left_behind(family)
        return Plan(family, self._held, expendable, best, verified, relies_on, blocked, orphans)

    def _newest_good(
        self, staying: list[Candidate]
    ) -> tuple[Candidate | None, dict[str, Standing]]:
        """Return the newest that is good, and what its files were before they were read.

        A newer one that is damaged counts no more from here on.
        """
        for candidate in reversed(staying):
            names = [os.path.basename(path) for path in candidate.loads]
            before = self._held.look_at(names)
            status, words = self._check(candidate)
            if status is Status.GOOD:
                return candidate, before
            if status is not Status.UNCHECKED:
                candidate.problem = words
                candidate.is_damaged = status is Status.DAMAGED
                if status is Status.IO_ERROR:
                    self._removal.errors.append((candidate.directory, words))
                return None, {}
        return None, {}

    def _left_behind(self, family: Family) -> list[Going]:
        """Return the files of ranks that nobody will complete; none while a save is running here."""
        if not family.orphans or not _counted(family):
            return []
        going: list[Going] = []
        try:
            counted = sorted(_counted(family), key=lambda each: each.step)
            # When the newest of those of later steps was written.
            later: list[int] = []
            for files in sorted(family.orphans, key=lambda each: each.step, reverse=True):
                # What is of a later step than this one is of a later step than those to come.
                while counted and counted[-1].step > files.step:
                    known = [each.changed_ns for each in counted.pop().first_files]
                    later = [max((*later, *known))] if known else later
                judged = self._held.look_at(files.rank_names())
                changed_ns = max((there.changed_ns for there in judged.values()), default=0)
                if is_left_behind(changed_ns, later):
                    going.append(orphans_going(self._held, files, judged))
            if divide_temporaries(self._held.path, self._held.names())[0]:
                return []
            return going[::-1]
        except OSError as error:
            self._removal.fail(error, self._held.path)
            return []


def _counted(family: Family) -> list[Candidate]:
    return [each for each in family.candidates if each.problem is None]


def _is_held(candidate: Candidate) -> bool:
    return candidate.held is not None


def _best_of(family: Family, counted: list[Candidate], options: Options) -> list[Candidate]:
    """Return the checkpoints that are the best by any of the signs that there are."""
    best: list[Candidate] = []
    count = options.keep_best
    if options.metric is not None:
        best += best_candidates(counted, options.metric, options.mode, count)
    if family.kind == "manager" and counted:
        newest = counted[-1]
        metric, mode = newest.best_by
        if metric is not None:
            # Which end is the best one, a file may leave open: then neither goes.
            modes = ("min", "max") if mode is None else (mode,)
            for each in modes:
                best += best_candidates(counted, metric, each, count)
        elif newest.best_metric is not None:
            # Its file does not say of what: any number that equals it.
            best += [each for each in counted if newest.best_metric in each.metrics.values()]
        best += [each for path in family.best_names for each in _named_best(path, counted)]
    return best


def _named_best(path: str, counted: list[Candidate]) -> list[Candidate]:
    """Return the checkpoints that a second name, or a copy, is of."""
    try:
        best = identity(path)
        linked = [each for each in counted if best in each.first_files]
        if linked:
            return linked
        root = read_root(path)
    except (CheckpointError, OSError):
        # It is damaged or gone, and says nothing; it is not touched either.
        return []
    step, epoch = root.get("global_step"), root.get("epoch")
    same = [each for each in counted if each.step == step]
    return [each for each in same if each.epoch == epoch] or same
