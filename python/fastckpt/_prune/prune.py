"""Delete old checkpoints, and never the best, the newest good or the only good one.

Nothing is deleted before one of those that stay, the newest that is good, has been read in full. Imports
no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import closing

from fastckpt._steps.durable import make_durable
from fastckpt._steps.held import HeldDirectory
from fastckpt._steps.removal import Removal

from .candidates import Candidate, Family, find_families
from .plan import GoodCheck, Options, Plan, Planner
from .report import Fate, PrunedCheckpoint, PrunedFile, PruneReport

__all__ = ["Fate", "PruneReport", "PrunedCheckpoint", "PrunedFile", "prune"]

_Path = str | os.PathLike[str]
_Progress = Callable[[int, int], None]


def prune(
    path: _Path,
    *,
    keep: int,
    keep_every: int | None = None,
    metric: str | None = None,
    mode: str | None = None,
    dry_run: bool = False,
    verify: bool = True,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> PruneReport:
    """Delete the old checkpoints of one directory.

    Works on nanochat's steps and on a CheckpointManager's checkpoints; a directory with both has each
    kind counted by itself. Directories below it are not looked into.

    What stays: the newest `keep` by step, those whose step is a multiple of `keep_every`, the best one,
    and the newest one that is good. The best one of a CheckpointManager's is the one that `best_model.pt`
    is a link or a copy of, and the one whose file has the best value of the metric of its
    configuration; with `metric`, also the one with the best value of that, which for nanochat's steps is
    looked up in the meta. Steps that are torn, damaged or may be under way do not count, and are not
    deleted: that is the business of `collect_garbage`.

    Before anything is deleted, the newest checkpoint that stays is read in full and compared with its
    checksums. If it is damaged, it does not count and the next one is read. Where none that stays is
    good, nothing is deleted, and `.blocked` says why.

    Of a step the model goes first, then the directory is fsynced, then the rest goes: a crash leaves
    each checkpoint whole, or without the file that makes it one.

    Args:
        path: The directory.
        keep: How many of the newest stay, at least 1.
        keep_every: Steps that are multiples of this stay too.
        metric: A number in the metas, or in the `metrics` of a CheckpointManager's files. In metas,
            dots lead into nested objects: "eval.val_bpb".
        mode: Whether the best value is the least ("min", the default for `metric`) or the greatest
            ("max").
        dry_run: Only say what would be deleted. What stays is verified nonetheless.
        verify: Whether to read what stays in full; else only its structure is checked.
        threads: Number of threads that read; None lets the core decide.
        progress: Called with the bytes done and the bytes in all while something is verified.

    Returns:
        The report: `.checkpoints`, `.files`, `.freed_nbytes`, `.blocked`, `.errors`. What cannot be
        deleted is in it, and is not raised; the rest goes on.

    Raises:
        ValueError: An argument is out of its range, or no checkpoint has the metric; the message names
            what there is.

    Example:
        >>> import fastckpt
        >>> fastckpt.prune("no/such/directory", keep=5, dry_run=True).status
        'not_found'
    """
    _check_arguments(keep, keep_every, mode, metric)
    directory = os.fspath(path)
    removal = Removal()
    options = Options(keep, keep_every, metric, mode or "min", dry_run, not verify)
    check = GoodCheck(quick=not verify, threads=threads, progress=progress)
    if not os.path.isdir(directory):
        return _report(directory, [], removal, {}, options)
    try:
        held = HeldDirectory.open(directory)
    except OSError as error:
        removal.fail(error, directory)
        return _report(directory, [], removal, {}, options)
    with closing(held):
        plans = _plan(held, options, check, removal)
        for going in [going for plan in plans for going in plan.paths]:
            removal.space.look(going)
        kept = {} if dry_run else _remove(plans, removal)
        return _report(directory, plans, removal, kept, options)


def _plan(held: HeldDirectory, options: Options, check: GoodCheck, removal: Removal) -> list[Plan]:
    families: list[Family] = []
    try:
        families = find_families(held, removal.fail)
    except OSError as error:
        removal.fail(error, held.path)
    if options.metric is not None:
        _require_metric(families, options.metric)
    planner = Planner(held, options, check, removal)
    return [planner.plan(family) for family in families]


def _check_arguments(
    keep: int, keep_every: int | None, mode: str | None, metric: str | None
) -> None:
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}: prune never deletes the newest")
    if keep_every is not None and keep_every < 1:
        raise ValueError(f"keep_every must be at least 1, not {keep_every}")
    if mode not in {None, "min", "max"}:
        raise ValueError(f"mode must be 'min' or 'max', not {mode!r}")
    if mode is not None and metric is None:
        raise ValueError("mode says which value of a metric is best: name the metric, too")


def _require_metric(families: Iterable[Family], metric: str) -> None:
    whole = [each for family in families for each in family.candidates if each.problem is None]
    if whole and not any(metric in candidate.metrics for candidate in whole):
        names = sorted({name for candidate in whole for name in candidate.metrics})
        there = ", ".join(names) or "no number at all"
        raise ValueError(f"no checkpoint here has the metric {metric!r}; there is {there}")


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
