"""`fastckpt prune`: delete old checkpoints, never the best and never the only good one."""

from __future__ import annotations

from enum import Enum
from functools import partial
from typing import Annotated

import typer

from fastckpt.cli import exit_codes
from fastckpt.cli.options import Json, Task, Threads
from fastckpt.cli.output import fail, print_report
from fastckpt.cli.progress import progress_bar
from fastckpt.cli.prune_output import messages, report_document, report_lines

EPILOG = (
    "Exit codes: 0 done, whether there was something to delete or not, 1 a damaged checkpoint was met, or "
    "none of those that would stay can be verified and nothing was deleted, 2 usage, 4 no checkpoints "
    "there, 6 something could not be read or deleted, 130 interrupted. "
    "Any other code but 0 is a failure too."
)


class Mode(str, Enum):
    """Which value of a metric is best."""

    MIN = "min"
    MAX = "max"


def prune(
    directory: Annotated[
        str,
        typer.Argument(help="A checkpoint directory; those below it are not looked into."),
    ],
    keep: Annotated[int, typer.Option("--keep", min=1, help="How many of the newest stay.")],
    keep_every: Annotated[
        int | None,
        typer.Option("--keep-every", min=1, help="Steps that are multiples of this stay too."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="The checkpoint with the best value of this number stays too.",
        ),
    ] = None,
    mode: Annotated[
        Mode | None,
        typer.Option("--mode", help="Which value of the metric is best; min without it."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be deleted; delete nothing.")
    ] = False,
    no_verify: Annotated[
        bool,
        typer.Option(
            "--no-verify",
            help="Check only the structure of what stays; do not read its tensors.",
        ),
    ] = False,
    threads: Threads = None,
    json: Json = False,
) -> Task:
    """Delete old checkpoints: all but the newest, the best, and the newest that is good.

    Works on nanochat's steps and on a CheckpointManager's checkpoints. The newest checkpoint that stays is
    read in full first; where none is good, nothing is deleted. What is torn, damaged or under way is
    neither counted nor deleted.
    """
    return partial(
        _prune,
        directory,
        keep=keep,
        keep_every=keep_every,
        metric=metric,
        mode=None if mode is None else mode.value,
        dry_run=dry_run,
        verify=not no_verify,
        threads=threads,
        as_json=json,
    )


def _prune(
    directory: str,
    *,
    keep: int,
    keep_every: int | None,
    metric: str | None,
    mode: str | None,
    dry_run: bool,
    verify: bool,
    threads: int | None,
    as_json: bool,
) -> int:
    from fastckpt._prune.prune import prune as prune_directory

    try:
        with progress_bar("verifying") as progress:
            report = prune_directory(
                directory,
                keep=keep,
                keep_every=keep_every,
                metric=metric,
                mode=mode,
                dry_run=dry_run,
                verify=verify,
                threads=threads,
                progress=progress,
            )
    except ValueError as error:
        return fail("prune", "usage", exit_codes.USAGE, str(error), None, as_json=as_json)
    return print_report(
        "prune",
        report,
        lines=report_lines,
        document=report_document,
        messages=messages,
        as_json=as_json,
    )
