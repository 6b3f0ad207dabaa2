"""How `fastckpt inspect` says what a directory holds: as text and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastckpt._inspect.names import name_of_file
from fastckpt._inspect.run_report import CheckpointRow, DirectoryContents, RunContents, State
from fastckpt._steps.checkpoint_names import BEST_NAME
from fastckpt._steps.survey import parse_name
from fastckpt.cli.failures import PATHS
from fastckpt.cli.output import Line, format_nbytes, plural, printable
from fastckpt.cli.tables import (
    Align,
    format_number,
    format_table,
    json_number,
    table_width,
    terminal_width,
)

_STATES = {
    State.WHOLE: ("whole", "green"),
    State.TORN: ("TORN", "yellow"),
    State.DAMAGED: ("DAMAGED", "bold red"),
    State.UNCOVERED: ("UNCOVERED", "yellow"),
    State.UNREADABLE: ("UNREADABLE", "bold red"),
}
_INDENT = "  "
# Metrics that are looked for first, by parts of their names.
_WANTED = ("val", "core", "eval", "test", "bpb", "time", "flops", "loss", "acc", "ppl", "lr")
# Columns that go first where the terminal is narrow.
_DISPENSABLE = ("ranks", "model", "optimizer", "epoch")
# A problem that is longer is in --json. It may name two files, by paths of any length.
_PROBLEM_CHARS = 1000


def directory_lines(contents: DirectoryContents) -> Iterator[Line]:
    """Yield the text: how much there is, then a table for each directory."""
    count = sum(len(run.checkpoints) for run in contents.runs)
    size = format_nbytes(contents.nbytes)
    if not contents.runs:
        yield Line(f"NOT FOUND: no checkpoint in {printable(contents.path)}", "NOT FOUND", "red")
        return
    if len(contents.runs) > 1:
        runs = f"{len(contents.runs)} directories with {plural(count, 'checkpoint')}"
        yield Line(f"{printable(contents.path)}: {runs}, {size}")
    for position, run in enumerate(contents.runs):
        if position or len(contents.runs) > 1:
            yield Line("")
        yield from _run_lines(run)


def _run_lines(run: RunContents) -> Iterator[Line]:
    count = plural(len(run.checkpoints), "checkpoint")
    yield Line(f"{printable(run.directory)}: {count}, {format_nbytes(run.nbytes)}")
    metrics, hidden = _choose_metrics(run.checkpoints, terminal_width())
    columns = _fitting(run.checkpoints, _columns(run.checkpoints, metrics), terminal_width())
    cells = _cells(run.checkpoints, columns)
    lines = format_table(cells, [column.align for column in columns], _INDENT)
    yield Line(lines[0])
    for row, text in zip(run.checkpoints, lines[1:], strict=True):
        yield Line(text, *_STATES[row.state])
    for row in run.checkpoints:
        if row.problem is not None:
            problem = printable(row.problem)
            cut = problem if len(problem) <= _PROBLEM_CHARS else problem[:_PROBLEM_CHARS] + "..."
            yield Line(f"{_INDENT}{_label(row)}: {cut}")
    if hidden:
        yield Line(f"{_INDENT}not shown, see --json: {', '.join(map(printable, hidden))}")
    if run.newest is not None and len(run.checkpoints) > 1:
        freed = format_nbytes(run.freed_nbytes)
        prune = f"`fastckpt prune {printable(run.directory)} --keep 1`"
        yield Line(
            f"{_INDENT}deleting all older than step {run.newest} would free {freed} (with {prune})"
        )


def _label(row: CheckpointRow) -> str:
    return f"step {row.step}" if _is_plainly_named(row) else printable(row.name)


def _is_plainly_named(row: CheckpointRow) -> bool:
    """Whether the names of its files say no more than step and epoch."""
    return _is_step(row) or name_of_file(row.name) is not None


def _is_step(row: CheckpointRow) -> bool:
    """Whether its files have nanochat's names, or hidden names of replaced files."""
    return parse_name(row.files[0]) is not None or row.files[0].startswith(".")


@dataclass(frozen=True)
class _Column:
    head: str
    align: Align
    cell: Callable[[CheckpointRow], str]


def _columns(rows: Sequence[CheckpointRow], metrics: Sequence[str]) -> list[_Column]:
    columns = [_Column("step", ">", lambda row: _number(row.step))]
    if any(row.epoch is not None for row in rows):
        columns.append(_Column("epoch", ">", lambda row: _number(row.epoch)))
    columns += [
        _Column("state", "<", lambda row: _STATES[row.state][0]),
        _Column("model", ">", lambda row: _size(row.model_nbytes)),
        _Column("optimizer", ">", lambda row: _size(row.optimizer_nbytes)),
        _Column("total", ">", lambda row: format_nbytes(row.nbytes)),
    ]
    if any(map(_is_step, rows)) or any(row.ranks > 1 for row in rows):
        columns.append(_Column("ranks", ">", lambda row: str(row.ranks)))
    short = _short_names(metrics)
    columns += [
        _Column(printable(short[name]), ">", partial(_metric, name=name)) for name in metrics
    ]
    if not all(map(_is_plainly_named, rows)):
        columns.append(_Column("file", "<", lambda row: printable(row.name)))
    if any(row.is_best for row in rows):
        columns.append(_Column("", "<", lambda row: f"= {BEST_NAME}" if row.is_best else ""))
    return columns


def _fitting(rows: Sequence[CheckpointRow], columns: list[_Column], width: int) -> list[_Column]:
    """Leave out columns that a narrow terminal has no room for; --json has them all."""
    for head in _DISPENSABLE:
        if len(_INDENT) + table_width(_cells(rows, columns)) <= width:
            break
        columns = [column for column in columns if column.head != head]
    return columns


def _cells(rows: Sequence[CheckpointRow], columns: Sequence[_Column]) -> list[list[str]]:
    head = [column.head for column in columns]
    return [head, *([column.cell(row) for column in columns] for row in rows)]


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _size(nbytes: int | None) -> str:
    return "-" if nbytes is None else format_nbytes(nbytes)


def _metric(row: CheckpointRow, name: str) -> str:
    return format_number(row.metrics[name]) if name in row.metrics else "-"


def _short_names(metrics: Sequence[str]) -> dict[str, str]:
    """Return the last part of each name, where that names one metric only."""
    last = [name.rpartition(".")[2] for name in metrics]
    return {
        name: part if last.count(part) == 1 else name
        for name, part in zip(metrics, last, strict=True)
    }


def _choose_metrics(rows: Sequence[CheckpointRow], width: int) -> tuple[list[str], list[str]]:
    """Return the metrics that fit into the width, and the others.

    Those that sound like a verdict come first, and those that differ between checkpoints; then as saved.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    ordered = sorted(names, key=lambda name: (not _varies(rows, name), _rank(name)))
    shown: list[str] = []
    for name in ordered:
        cells = _cells(rows, _columns(rows, [*shown, name]))
        if len(_INDENT) + table_width(cells) > width:
            break
        shown.append(name)
    return shown, [name for name in ordered if name not in shown]


def _varies(rows: Sequence[CheckpointRow], name: str) -> bool:
    # With one checkpoint there is nothing to differ.
    return len(rows) == 1 or len({row.metrics.get(name) for row in rows}) > 1


def _rank(name: str) -> int:
    last = name.rpartition(".")[2].lower()
    return next((place for place, word in enumerate(_WANTED) if word in last), len(_WANTED))


def directory_messages(contents: DirectoryContents) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of what belongs on stderr."""
    for path, words in contents.errors:
        yield "error", f"{printable(path)}: {printable(words)}"
    if any(row.state is not State.WHOLE for run in contents.runs for row in run.checkpoints):
        yield (
            "hint",
            f"`fastckpt verify {printable(contents.path)}` says what is wrong, byte by byte",
        )
    if contents.leftovers:
        count = plural(len(contents.leftovers), "temporary file")
        example = printable(contents.leftovers[0])
        yield "note", f"{count} of running or interrupted saves (`fastckpt gc`): {example}"
    if not contents.runs:
        yield "hint", PATHS["inspect"]


def directory_document(contents: DirectoryContents) -> dict[str, Any]:
    """Return the contents as JSON values; sizes are in bytes."""
    return {
        "kind": "directory",
        "path": contents.path,
        "nbytes": contents.nbytes,
        "runs": [
            {
                "directory": run.directory,
                "nbytes": run.nbytes,
                "newest": run.newest,
                "freed_nbytes": run.freed_nbytes,
                "checkpoints": [_row_document(row) for row in run.checkpoints],
            }
            for run in contents.runs
        ],
        "leftovers": list(contents.leftovers),
        "errors": [{"path": path, "message": words} for path, words in contents.errors],
    }


def _row_document(row: CheckpointRow) -> dict[str, Any]:
    metrics = {name: json_number(value) for name, value in row.metrics.items()}
    return {**vars(row), "state": row.state.value, "metrics": metrics, "files": list(row.files)}
