"""How `fastckpt verify` says what it found: as text and as JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fastckpt._verify.report import FileReport, Status, StepReport, VerifyReport
from fastckpt.cli.damages import (
    DAMAGED,
    INCOMPLETE,
    IO_ERROR,
    NOT_FOUND,
    damage_document,
    damage_lines,
)
from fastckpt.cli.failures import PATHS
from fastckpt.cli.output import Line, format_nbytes, plural, print_lines, printable

if TYPE_CHECKING:
    from fastckpt._verify.sha256 import Sum

_LABELS = {
    Status.GOOD: ("OK", "green"),
    Status.DAMAGED: DAMAGED,
    Status.INCOMPLETE: INCOMPLETE,
    Status.IO_ERROR: IO_ERROR,
    Status.NOT_FOUND: NOT_FOUND,
    Status.UNCHECKED: ("NO CHECKSUMS", "yellow"),
}
_LABEL_WIDTH = max(len(label) for label, _ in _LABELS.values())
# Enough to see what kind of damage it is; --json lists all.
_DAMAGES_SHOWN = 20
_REPAIRS_SHOWN = 5


def report_lines(report: VerifyReport) -> Iterator[Line]:
    """Yield the text: the verdict, a line for each step and file, the damages, what to do."""
    yield _verdict_line(report)
    yield from _step_lines(report.steps)
    yield from _other_lines(report)
    for file in report.files:
        yield from _damage_lines(file)
    yield from _advice_lines(report)


def _verdict_line(report: VerifyReport) -> Line:
    status = report.status
    label, style = _LABELS[status]
    affected = sum(file.status is status for file in report.files)
    files = plural(len(report.files), "file")
    what = {
        Status.GOOD: files,
        Status.DAMAGED: f"{affected} of {files}",
        Status.INCOMPLETE: f"{sum(bool(step.missing or step.torn) for step in report.steps)} of "
        f"{plural(len(report.steps), 'step')}",
        Status.IO_ERROR: f"{affected} of {files} cannot be read",
        Status.NOT_FOUND: plural(affected, "path"),
        Status.UNCHECKED: f"{affected} of {files} cannot be checked",
    }[status]
    if report.nbytes == 0:
        return Line(f"{label}: {what}", label, style)
    covered = "structure only, " if report.quick else ""
    if not report.quick and all(_was_read(file) for file in report.files):
        covered = "every byte read, "
    size = format_nbytes(report.nbytes)
    rate = _rate(report.nbytes, report.seconds, report.quick)
    timing = f"{report.seconds:.1f} s" + (f", {rate}" if rate else "")
    line = f"{label}: {what}, {size}, {covered}".removesuffix(", ")
    return Line(f"{line} ({timing})", label, style)


def _was_read(file: FileReport) -> bool:
    """Whether all its bytes were; not where it cannot be opened, or has no records that can be found."""
    if file.status in {Status.IO_ERROR, Status.UNCHECKED, Status.NOT_FOUND}:
        return False
    return not file.damages or file.records > 0


def _step_lines(steps: tuple[StepReport, ...]) -> Iterator[Line]:
    directory = None
    width = max((len(str(step.step)) for step in steps), default=0)
    for step in steps:
        if step.directory != directory:
            directory = step.directory
            yield Line(printable(directory))
        yield _step_line(step, width)


def _step_line(step: StepReport, width: int) -> Line:
    label, style = _LABELS[step.status]
    notes = []
    if step.missing:
        notes.append("missing: " + ", ".join(step.missing))
    notes += step.torn
    if step.extra:
        notes.append("stale, ignored: " + ", ".join(step.extra))
    bad = [file for file in step.files if file.status is Status.DAMAGED]
    notes += [os.path.basename(file.path) for file in bad]
    if step.ranks and not (step.missing or step.torn):
        notes.append(plural(len(step.ranks), "rank"))
    columns = (
        f"  step {step.step:>{width}}",
        f"{label:<{_LABEL_WIDTH}}",
        f"{plural(len(step.files), 'file'):>8}",
        f"{format_nbytes(step.nbytes):>9}",
        f"{_rate(step.nbytes, step.seconds, False):>10}",
        "; ".join(printable(note) for note in notes),
    )
    return Line("  ".join(columns).rstrip(), label, style)


def _other_lines(report: VerifyReport) -> Iterator[Line]:
    in_steps = {id(file) for step in report.steps for file in step.files}
    others = [file for file in report.files if id(file) not in in_steps]
    for file in others:
        label, style = _LABELS[file.status]
        size = format_nbytes(file.nbytes) if file.nbytes else ""
        rate = _rate(file.nbytes, file.seconds, report.quick)
        columns = (f"  {label:<{_LABEL_WIDTH}}", f"{size:>9}", f"{rate:>10}", printable(file.path))
        yield Line("  ".join(columns), label, style)


def _rate(nbytes: int, seconds: float, quick: bool) -> str:
    # Below a megabyte the time is that of opening the file, and the rate says nothing.
    if quick or seconds <= 0 or nbytes < 1_000_000:
        return ""
    return format_nbytes(nbytes / seconds) + "/s"


def _damage_lines(file: FileReport) -> Iterator[Line]:
    for damage in file.damages[:_DAMAGES_SHOWN]:
        yield from damage_lines(file.path, damage)
    hidden = len(file.damages) - _DAMAGES_SHOWN
    if hidden > 0:
        yield Line("")
        yield Line(f"and {plural(hidden, 'more damage')} in {printable(file.path)} (see --json)")


def _advice_lines(report: VerifyReport) -> Iterator[Line]:
    if report.status in {Status.GOOD, Status.UNCHECKED, Status.NOT_FOUND}:
        return
    yield Line("")
    quality = "sound structure" if report.quick else "good"
    for directory, step in report.newest_good_steps.items():
        where = printable(directory)
        if step is None:
            yield Line(f"no step in {where} is {quality}: restore one from a copy")
        elif report.quick:
            yield Line(f"newest step of {quality} in {where}: {step}")
        else:
            yield Line(f"newest good step in {where}: {step}")
    damaged = [file for file in report.files if file.damages and os.path.isfile(file.path)]
    for file in [file for file in damaged if file.repairable][:_REPAIRS_SHOWN]:
        yield Line(_repair_text(file))
    for file in damaged:
        if file.step is None and not file.repairable:
            yield Line(f"restore {printable(file.path)} from a copy")


def _repair_text(file: FileReport) -> str:
    command = f"`fastckpt repair {printable(file.path)} --to NEW`"
    if not file.records:
        return f"{command} recovers the records that are still there"
    if any(damage.record is not None for damage in file.damages):
        return f"damaged records are lost; {command} recovers the others"
    return f"no record is damaged; {command} recovers all of them"


def messages(report: VerifyReport) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of what belongs on stderr."""
    for file in report.files:
        path, message = printable(file.path), printable(file.message or "")
        if file.status is Status.NOT_FOUND:
            yield "error", f"{path}: {message}"
        elif file.status is Status.IO_ERROR:
            yield "error", f"{path} cannot be read: {message}"
        elif message:
            yield "warning", f"{path}: {message}"
    if any(file.status is Status.NOT_FOUND for file in report.files):
        yield "hint", PATHS["verify"]
    if report.leftovers:
        count = plural(len(report.leftovers), "temporary file")
        example = printable(report.leftovers[0])
        yield (
            "note",
            f"{count} of running or interrupted saves, never loaded (`fastckpt gc`): {example}",
        )


def print_sums(sums: Sequence[Sum]) -> None:
    """Print to stdout what `sha256sum -c` reads: names as they are, whatever bytes they have.

    On a terminal they are escaped, as sha256sum does not read them back: nobody signs what is there.
    """
    if sys.stdout.isatty():
        print_lines((Line(each.line.removesuffix("\n")) for each in sums), columns=False)
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(b"".join(os.fsencode(each.line) for each in sums))
    sys.stdout.buffer.flush()


def sum_messages(sums: Sequence[Sum], omitted: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of what was left out of the sums, or changed in them."""
    if sys.stdout.isatty() and any(not each.name.isprintable() for each in sums):
        yield (
            "note",
            "control characters in names are escaped on a terminal: sign the output to a file or a pipe",
        )
    for words in omitted:
        yield "warning", f"no sum: {printable(words)}"
    if not sums:
        yield "warning", "no sums: there is no good step here"


def report_document(report: VerifyReport) -> dict[str, Any]:
    """Return the report as JSON values. Paths that are not UTF-8 have lone surrogates."""
    return {
        "quick": report.quick,
        "nbytes": report.nbytes,
        "seconds": round(report.seconds, 6),
        "newest_good_steps": report.newest_good_steps,
        "steps": [_step_document(step) for step in report.steps],
        "files": [_file_document(file) for file in report.files],
        "leftovers": list(report.leftovers),
    }


def _step_document(step: StepReport) -> dict[str, Any]:
    return {
        "directory": step.directory,
        "step": step.step,
        "status": step.status.value,
        "nbytes": step.nbytes,
        "seconds": round(step.seconds, 6),
        "ranks": list(step.ranks),
        "missing": list(step.missing),
        "torn": list(step.torn),
        "extra": list(step.extra),
        "save_id": step.save_id,
        "files": [file.path for file in step.files],
    }


def _file_document(file: FileReport) -> dict[str, Any]:
    return {
        "path": file.path,
        "role": file.role,
        "status": file.status.value,
        "step": file.step,
        "rank": file.rank,
        "nbytes": file.nbytes,
        "records": file.records,
        "checksums": file.checksums,
        "headers_covered": file.headers_covered,
        "repairable": file.repairable,
        "message": file.message,
        "seconds": round(file.seconds, 6),
        "damages": [damage_document(damage) for damage in file.damages],
    }
