"""How `fastckpt gc` says what it found and removed: as text and as JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from fastckpt._gc.report import GarbageFile, GarbageKind, GcReport, StepState, UnfinishedStep
from fastckpt._named_step import split_step
from fastckpt.cli.output import Line, format_nbytes, kept_notes, plural, printable

_KINDS = {
    GarbageKind.TEMPORARY: "temporary file",
    GarbageKind.EXPORT: "stale export",
    GarbageKind.REPLACED: "replaced file",
    GarbageKind.INCOMPLETE: "incomplete step",
}
_KIND_WIDTH = max(map(len, _KINDS.values()))
_STATES = {
    StepState.ABANDONED: "can never be completed",
    StepState.UNDER_WAY: "may be under way",
    StepState.MODEL_ONLY: "has no optimizer shards, and stays",
    StepState.FOREIGN: "is incomplete, was not written by fastckpt, and stays",
    StepState.DAMAGED: "is damaged",
}
_FAILED = "NOT REMOVED"
_WIDTH = len("would remove")


def report_lines(report: GcReport) -> Iterator[Line]:
    """Yield the text: what was removed, and which steps are not whole."""
    if report.not_found and not (report.files or report.steps or report.errors):
        yield Line(f"NOT FOUND: {plural(len(report.not_found), 'path')}", "NOT FOUND", "red")
        return
    yield _verdict_line(report)
    done = "would remove" if report.dry_run else "removed"
    for directory, files in _by_directory(report):
        yield Line(printable(directory))
        for file in files:
            yield _file_line(file, done)
    for step in report.steps:
        yield from _step_lines(step)


def _verdict_line(report: GcReport) -> Line:
    if not report.files:
        return Line("NOTHING TO REMOVE", "NOTHING TO REMOVE", "green")
    gone = [file for file in report.files if file.error is None]
    if not gone:
        return Line(f"{_FAILED}: {_counted(report.files)}", _FAILED, "bold red")
    label = "WOULD REMOVE" if report.dry_run else "REMOVED"
    freed = format_nbytes(report.freed_nbytes)
    verb = "would be freed" if report.dry_run else "freed"
    return Line(f"{label}: {_counted(gone)}, {freed} {verb}", label, "green")


def _counted(garbage: Sequence[GarbageFile]) -> str:
    exports = sum(one.kind is GarbageKind.EXPORT for one in garbage)
    directories = f"{exports} {'directory' if exports == 1 else 'directories'}"
    if exports == len(garbage):
        return directories
    files = plural(len(garbage) - exports, "file")
    return f"{files} and {directories}" if exports else files


def _by_directory(report: GcReport) -> Iterator[tuple[str, list[GarbageFile]]]:
    directories: dict[str, list[GarbageFile]] = {}
    for file in report.files:
        directories.setdefault(os.path.dirname(file.path), []).append(file)
    yield from directories.items()


def _file_line(file: GarbageFile, done: str) -> Line:
    word, style = (done, "") if file.error is None else (_FAILED, "bold red")
    columns = (
        f"  {word:<{_WIDTH}}",
        f"{_KINDS[file.kind]:<{_KIND_WIDTH}}",
        f"{format_nbytes(file.nbytes):>9}",
        printable(os.path.basename(file.path)),
    )
    return Line("  ".join(columns), word if style else "", style)


def _step_lines(step: UnfinishedStep) -> Iterator[Line]:
    if step.removed:
        return
    label = _STATES[step.state]
    size = f"{plural(len(step.files), 'file')}, {format_nbytes(step.nbytes)}"
    where = printable(step.directory)
    yield Line(f"{step.name} in {where} {label} ({size}): {printable(step.reason)}", label)
    if step.state is StepState.ABANDONED and step.loads_model:
        yield Line("  its model and meta are whole: they can be loaded without the optimizer")


def messages(report: GcReport) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of what belongs on stderr."""
    for path in report.not_found:
        yield "error", f"{printable(path)}: no such directory"
        step = split_step(path)
        if step is not None:
            yield "hint", f"this command takes a directory, not a step: {printable(step[0])}"
    for path, words in report.errors:
        yield "error", f"{printable(path)}: {printable(words)}"
    yield from kept_notes(report.files, report.errors)
    if report.live:
        count, example = len(report.live), printable(report.live[0])
        running = "1 save or export is" if count == 1 else f"{count} saves or exports are"
        yield "note", f"{running} running; their files are not touched: {example}"
    abandoned = [step for step in report.steps if step.state is StepState.ABANDONED]
    left = [step for step in abandoned if not step.removed]
    if left and not report.incomplete:
        yield (
            "hint",
            f"--incomplete removes {plural(len(left), 'step')} that can never be completed",
        )
    elif left and report.live and not report.dry_run:
        yield (
            "hint",
            "no step is removed while a save or an export is running in its directory",
        )


def report_document(report: GcReport) -> dict[str, Any]:
    """Return the report as JSON values: what a dry run would do is not said to be done."""
    going = [file.path for file in report.files if file.error is None]
    return {
        "dry_run": report.dry_run,
        "incomplete": report.incomplete,
        "freed_nbytes": 0 if report.dry_run else report.freed_nbytes,
        "would_free_nbytes": report.freed_nbytes if report.dry_run else 0,
        "deleted": [] if report.dry_run else going,
        "would_delete": going if report.dry_run else [],
        "files": [_file_document(file) for file in report.files],
        "steps": [_step_document(step) for step in report.steps],
        "live": list(report.live),
        "errors": [{"path": path, "message": words} for path, words in report.errors],
        "not_found": list(report.not_found),
    }


def _file_document(file: GarbageFile) -> dict[str, Any]:
    return {
        "path": file.path,
        "kind": file.kind.value,
        "step": file.step,
        "nbytes": file.nbytes,
        "removed": file.removed,
        "error": file.error,
    }


def _step_document(step: UnfinishedStep) -> dict[str, Any]:
    return {
        "directory": step.directory,
        "step": step.step,
        "epoch": step.epoch,
        "state": step.state.value,
        "reason": step.reason,
        "loads_model": step.loads_model,
        "nbytes": step.nbytes,
        "removed": step.removed,
        "files": list(step.files),
    }
