"""`fastckpt top`: which checkpoints are the best?"""

from __future__ import annotations

import enum
from functools import partial
from typing import Annotated, Any

import typer

from fastckpt.cli import exit_codes
from fastckpt.cli.options import Json, Task
from fastckpt.cli.output import fail, print_document, print_lines, print_message, printable

EPILOG = (
    "Exit codes: 0 ranked, 2 usage, 4 not found: the path, or a checkpoint in it, or the metric in a "
    "checkpoint, 6 I/O error, 130 interrupted. Any other code but 0 is a failure too."
)


class Mode(str, enum.Enum):
    """Which values of a metric are better."""

    MIN = "min"
    MAX = "max"


def top(
    paths: Annotated[
        list[str],
        typer.Argument(help="Checkpoint directories, directories above such, or files."),
    ],
    metric: Annotated[
        str, typer.Option("--metric", metavar="NAME", help="The metric, e.g. val_loss.")
    ],
    k: Annotated[int, typer.Option("-k", min=1, help="How many to show.")] = 5,
    mode: Annotated[
        Mode, typer.Option("--mode", help="Whether lower or higher is better.")
    ] = Mode.MIN,
    json: Json = False,
) -> Task:
    """List the best checkpoints by a metric, without reading their tensors.

    The metric is looked for in the dict `metrics` of a checkpoint, then under its own name, then by the
    last part of a dotted path; for a model of nanochat's, in the meta of its step.
    """
    return partial(_top, paths, metric=metric, k=k, mode=mode, as_json=json)


def _top(paths: list[str], *, metric: str, k: int, mode: Mode, as_json: bool) -> int:
    from fastckpt.cli.top_output import report_document, report_lines
    from fastckpt.selection import ModelSelector, UnknownMetricError

    try:
        ranked = ModelSelector.rank_by_metric(paths, metric, mode.value)
    except (FileNotFoundError, NotADirectoryError) as error:
        where = (
            f"{printable(str(error.filename))}: {error.strerror}" if error.filename else str(error)
        )
        return fail(
            "top",
            "not_found",
            exit_codes.NOT_FOUND,
            where,
            "give checkpoint directories, or files",
            as_json=as_json,
        )
    except UnknownMetricError as error:
        names = [printable(name) for name in error.available]
        hint = (
            f"give --metric {names[0]}, say" if names else "`fastckpt inspect` shows what they hold"
        )
        return fail(
            "top", "not_found", exit_codes.NOT_FOUND, printable(str(error)), hint, as_json=as_json
        )
    for checkpoint in ranked:
        if checkpoint.problem is not None:
            print_message("warning", f"left out: {printable(checkpoint.problem)}")
    if as_json:
        report: dict[str, Any] = report_document(ranked, metric=metric, mode=mode.value, k=k)
        print_document("top", "good", 0, report=report)
    else:
        print_lines(report_lines(ranked, metric=metric, mode=mode.value, k=k))
    return 0
