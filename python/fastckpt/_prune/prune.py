"""Delete old checkpoints, and never the best, the newest good or the only good one.

Nothing is deleted before one of those that stay, the newest that is good, has been read in full. Imports
no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Literal

from fastckpt._arguments import checked_threads, one_path
from fastckpt._metric_names import best_end, nearest_first
from fastckpt._steps.durable import make_durable
from fastckpt._steps.held import HeldDirectory
from fastckpt._steps.removal import Removal
from fastckpt.errors import UnknownMetricError

from .candidates import Candidate, Family, find_families
from .plan import GoodCheck, Options, Plan, Planner
from .report import Fate, PrunedCheckpoint, PrunedFile, PruneReport

__all__ = ["Fate", "PruneReport", "PrunedCheckpoint", "PrunedFile", "prune"]

_Path = str | os.PathLike[str]
_Progress = Callable[[int, int], None]


def prune(
    path: _Path,
    *,
    keep: int | None = None,
    keep_every: int | None = None,
    keep_best: int | None = None,
    metric_name: str | None = None,
    metric: str | None = None,
    mode: str | None = None,
    dry_run: bool = False,
    quick: bool = False,
    verify: bool | Literal["quick", "full"] = "full",
    threads: int | None = None,
    progress: _Progress | None = None,
) -> PruneReport:
    """Delete the old checkpoints of one directory.

    Works on steps with nanochat's names and on a CheckpointManager's checkpoints; where a directory has both,
    each kind is counted by itself. Not recursive.

    What stays: the newest `keep` by step, those whose step is a multiple of `keep_every`, the best ones,
    and the newest one that is good. The best of a CheckpointManager's checkpoints are those that
    `best_model.pt` is a link or a copy of, and those with the best value of the metric that their
    configuration names. With `metric_name`, those with the best value of that stay too; for steps with
    nanochat's names it is looked up in the meta. Steps that are torn, damaged or may be under way do not
    count, and are not deleted: `collect_garbage` takes care of them.

    Before anything is deleted, the newest checkpoint that stays is read in full and compared with its
    checksums. If it is damaged, it does not count and the next one is read. If none of those that stay is
    good, nothing is deleted, and `.blocked` says why.

    The model of a step is deleted first, then the directory is fsynced, then the rest is deleted: a crash
    leaves each checkpoint whole, or without the file that makes it a checkpoint.

    Args:
        path: The directory.
        keep: How many of the newest stay, at least 1. May be left out beside `keep_best`: then 1.
        keep_every: Steps that are multiples of this stay too.
        keep_best: How many of the best stay [default: 1]; needs `metric_name`, or checkpoints of a
            CheckpointManager, whose configuration names one.
        metric_name: A number in the metas, or in the `metrics` of a CheckpointManager's files. In metas,
            dots lead into nested objects: "eval.val_bpb".
        metric: Another name of `metric_name`.
        mode: Whether the best value is the lowest ("min") or the highest ("max") [default: "min"]. Needed
            where the metric's name says that higher is better, as "val_acc" does.
        dry_run: Only say what would be deleted. What stays is verified nonetheless.
        quick: Check only the structure of what stays, as in `verify`, and do not read it in full.
        verify: "quick" or False is the same as ``quick=True``; "full" or True reads what stays in full.
        threads: Number of threads that read; None chooses.
        progress: Called with bytes done and bytes in all while something is verified.

    Returns:
        The report, which is true if all went well: `.checkpoints`, `.files`, `.freed_nbytes`, `.blocked`,
        `.errors`. What cannot be deleted is in the report and not raised; the rest is deleted all the same.

    Raises:
        UnknownMetricError: (a ValueError) No checkpoint has the metric; it names those that there are.
        ValueError: An argument is out of its range, or missing.
        TypeError: `path` is not a path.

    Example:
        >>> import fastckpt
        >>> fastckpt.prune("no/such/directory", keep=5, dry_run=True).status
        'not_found'
    """
    directory = one_path("path", path)
    if metric is not None and metric_name is not None:
        raise ValueError("metric_name and metric are the same argument: give one")
    if verify not in (True, False, "quick", "full"):
        raise ValueError(f"verify must be 'quick' or 'full', not {verify!r}")
    quick = quick or verify in (False, "quick")
    asked = (keep, keep_every, keep_best, metric_name if metric is None else metric, mode)
    removal = Removal()
    options = _checked_options(*asked, dry_run=dry_run, quick=quick)
    check = GoodCheck(quick=quick, threads=checked_threads(threads), progress=progress)
    if not os.path.isdir(directory):
        return _report(directory, [], removal, {}, options)
    try:
        held = HeldDirectory.open(directory)
    except OSError as error:
        removal.fail(error, directory)
        return _report(directory, [], removal, {}, options)
    with closing(held):
        plans = _plan(held, options, check, removal, for_best=keep_best is not None)
        for going in [going for plan in plans for going in plan.paths]:
            removal.space.look(going)
        kept = {} if dry_run else _remove(plans, removal)
        return _report(directory, plans, removal, kept, options)


def _plan(
    held: HeldDirectory, options: Options, check: GoodCheck, removal: Removal, *, for_best: bool
) -> list[Plan]:
    families: list[Family] = []
    try:
        families = find_families(held, removal.fail)
    except OSError as error:
        removal.fail(error, held.path)
    _require_metric(families, options, held.path, for_best=for_best)
    planner = Planner(held, options, check, removal)
    return [planner.plan(family) for family in families]


def _checked_options(
    keep: int | None,
    keep_every: int | None,
    keep_best: int | None,
    metric: str | None,
    mode: str | None,
    *,
    dry_run: bool,
    quick: bool,
) -> Options:
    """Return what was asked for, with the defaults.

    Raises:
        ValueError: It is out of range, contradictory or not enough.
    """
    if keep is None and keep_best is None:
        raise ValueError("keep is missing: say how many of the newest checkpoints stay")
    for name, value in (("keep", keep), ("keep_every", keep_every), ("keep_best", keep_best)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{name} must be a whole number, not {value!r}")
        if value is not None and value < 1:
            why = ": prune never deletes the newest" if name == "keep" else ""
            raise ValueError(f"{name} must be at least 1, not {value}{why}")
    if mode not in {None, "min", "max"}:
        raise ValueError(f"mode must be 'min' or 'max', not {mode!r}")
    if mode is not None and metric is None:
        raise ValueError("mode needs a metric_name (--mode needs --metric)")
    end = "min" if metric is None else best_end(metric, mode)
    return Options(keep or 1, keep_every, metric, end, keep_best or 1, dry_run, quick)


def _require_metric(
    families: Iterable[Family], options: Options, directory: str, *, for_best: bool
) -> None:
    """Refuse a metric that no checkpoint has, and a number of best ones by no metric."""
    found = [family for family in families if family.candidates]
    whole = [each for family in found for each in family.candidates if each.problem is None]
    metric = options.metric
    if metric is None:
        if for_best and any(family.kind == "nanochat" for family in found):
            raise ValueError(
                "keep_best needs a metric_name (--keep-best needs --metric): steps with nanochat's "
                "names do not say which of their numbers decides"
            )
        return
    if whole and not any(metric in candidate.metrics for candidate in whole):
        names = {name for candidate in whole for name in candidate.metrics}
        raise UnknownMetricError(metric, nearest_first(metric, names), directory)


def _remove(plans: Iterable[Plan], removal: Removal) -> dict[str, str]:
    """Remove what is to go, the oldest first; return why what is still there could not be removed."""
    kept: dict[str, str] = {}
    for plan in plans:
        unsure = _settle(plan, removal)
        for each in plan.expendable:
            kept.update(
                dict.fromkeys(each.paths, unsure) if unsure else removal.remove(plan.going(each))
            )
        for going in plan.orphans:
            kept.update(removal.remove(going))
    return kept


def _settle(plan: Plan, removal: Removal) -> str | None:
    """Make durable what the others are removed for; return why nothing may be removed where that fails.

    It was read whole, but that may have been from memory: cp and torch.save sync nothing.
    """
    staying = [plan.verified, *plan.best] if plan.expendable else []
    paths = sorted({path for each in staying if each is not None for path in each.loads})
    try:
        make_durable(paths)
    except OSError as error:
        words = removal.fail(error, plan.expendable[0].directory)
        return f"kept, since what stays may not be on the disk: {words}"
    return None


class _Reporter:
    """Puts together what was found and done."""

    def __init__(self, removal: Removal, kept: dict[str, str], options: Options) -> None:
        self._removal = removal
        self._kept = kept
        self._options = options

    def files(self, paths: Iterable[str]) -> tuple[PrunedFile, ...]:
        """Report files that go, and count them."""
        return tuple(self._file(path) for path in paths)

    def _file(self, path: str) -> PrunedFile:
        error = self._kept.get(path)
        if error is None:
            self._removal.space.count(path)
        removed = error is None and not self._options.dry_run
        return PrunedFile(path, self._removal.space.look(path), removed, error)

    def checkpoints(self, plan: Plan) -> list[PrunedCheckpoint]:
        """Report all checkpoints of a family."""
        newest = {each.step for each in plan.counted[-self._options.keep :]}
        return [self._checkpoint(each, plan, newest) for each in plan.family.candidates]

    def _checkpoint(self, each: Candidate, plan: Plan, newest: set[int]) -> PrunedCheckpoint:
        fate, reasons = Fate.KEPT, self._reasons(each, plan, newest)
        if each.problem is not None:
            fate = Fate.DAMAGED if each.is_damaged else Fate.LEFT_ALONE
            reasons = (each.problem,)
        elif each in plan.expendable:
            fate, reasons = Fate.REMOVED, ()
        nbytes = sum(self._removal.space.look(path) for path in each.paths)
        files = self.files(each.paths) if fate is Fate.REMOVED else ()
        return PrunedCheckpoint(each.step, each.epoch, fate, reasons, nbytes, files)

    def _reasons(self, each: Candidate, plan: Plan, newest: set[int]) -> tuple[str, ...]:
        every = self._options.keep_every
        reasons = {
            "newest": each.step in newest,
            "every": every is not None and each.step % every == 0,
            "best": each in plan.best,
            each.held: each.held is not None,
            "verified": each is plan.verified and not self._options.quick,
            "blocked": plan.blocked is not None,
        }
        return tuple(reason for reason, holds in reasons.items() if holds and reason is not None)


def _report(
    directory: str, plans: list[Plan], removal: Removal, kept: dict[str, str], options: Options
) -> PruneReport:
    reporter = _Reporter(removal, kept, options)
    checkpoints = [each for plan in plans for each in reporter.checkpoints(plan)]
    leftovers = reporter.files(path for plan in plans for path in plan.leftovers)
    return PruneReport(
        directory=directory,
        checkpoints=tuple(checkpoints),
        leftovers=leftovers,
        blocked=tuple(plan.blocked for plan in plans if plan.blocked is not None),
        errors=tuple(removal.errors),
        freed_nbytes=removal.space.freed_nbytes(),
        found=any(plan.family.candidates for plan in plans),
        dry_run=options.dry_run,
        quick=options.quick,
    )
