"""Measure contenders in turn, and print their medians, spreads and ratios."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


class CannotMeasureError(Exception):
    """Why a group or a contender cannot be measured on this machine."""


@dataclass(frozen=True)
class Measured:
    """What a run says that measured itself, as fio does."""

    nbytes: int
    seconds: float


@dataclass
class Contender:
    """One way to do the job.

    Attributes:
        name: As the table shows it.
        run: Does the job once; the call is timed, unless it returns Measured. What else it returns
            is freed outside the time.
        prepare: Done before each run, outside the time.
        nbytes: Bytes that a run moves, where it does not say itself.
    """

    name: str
    run: Callable[[], object]
    nbytes: int
    prepare: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Target:
    """A ratio of rates that was promised: `contender` is at least `ratio` times `reference`."""

    contender: str
    reference: str
    ratio: float


@dataclass
class Group:
    """Contenders that do the same job; the first is what the others are compared with."""

    name: str
    title: str
    contenders: list[Contender]
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """What one contender measured, a value for each round."""

    name: str
    nbytes: int
    seconds: list[float]

    @property
    def rates(self) -> list[float]:
        """Bytes per second of each round."""
        return [self.nbytes / one for one in self.seconds]

    @property
    def rate(self) -> float:
        """Median of the rates."""
        return statistics.median(self.rates)


def measure(
    group: Group, rounds: int, back_memory: Callable[[], None], say: Callable[[str], None]
) -> list[Result]:
    """Run each contender once a round, in turn, so that a slow minute of the machine hits all.

    One round more is run first and not counted: imports, pools and allocators. `back_memory` is
    called right before each run, outside the time.
    """
    measured: dict[str, Result] = {}
    for number in range(rounds + 1):
        say(f"{group.name}: round {number} of {rounds}")
        for contender in group.contenders:
            nbytes, seconds = _run_once(contender, back_memory)
            result = measured.setdefault(contender.name, Result(contender.name, nbytes, []))
            if number > 0:
                result.seconds.append(seconds)
    return list(measured.values())


def _run_once(contender: Contender, back_memory: Callable[[], None]) -> tuple[int, float]:
    contender.prepare()
    gc.collect()
    back_memory()
    started = time.perf_counter()
    outcome = contender.run()
    seconds = time.perf_counter() - started
    if isinstance(outcome, Measured):
        return outcome.nbytes, outcome.seconds
    return contender.nbytes, seconds


def table(group: Group, results: list[Result]) -> Iterator[str]:
    """Yield the lines of one group's table, in Markdown."""
    first = results[0]
    yield f"### {group.title}"
    yield ""
    yield f"| | median s | median GB/s | lowest to highest GB/s | times {first.name} |"
    yield "|---|---:|---:|---:|---:|"
    for result in results:
        low, high = min(result.rates) / 1e9, max(result.rates) / 1e9
        yield (
            f"| {result.name} | {statistics.median(result.seconds):.3f} | {result.rate / 1e9:.2f} "
            f"| {low:.2f} to {high:.2f} | {result.rate / first.rate:.2f} |"
        )
    yield ""
    for target in group.targets:
        yield _target_line(target, {result.name: result for result in results})
    for note in group.notes:
        yield f"- note: {note}"
    yield ""


def _target_line(target: Target, results: dict[str, Result]) -> str:
    promise = f"{target.contender} at least {target.ratio:g} times {target.reference}"
    if target.contender not in results or target.reference not in results:
        return f"- not measured: {promise}"
    ratio = results[target.contender].rate / results[target.reference].rate
    verdict = "met" if ratio >= target.ratio else "SHORT"
    return f"- {verdict}: {promise}: {ratio:.3f}"
