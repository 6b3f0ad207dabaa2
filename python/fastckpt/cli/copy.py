"""`fastckpt copy`: checkpoints to another disk or machine, verified on the way."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from fastckpt.cli import exit_codes
from fastckpt.cli.copy_output import messages, report_document, report_lines
from fastckpt.cli.options import Json, Task, Threads
from fastckpt.cli.output import fail, print_report, printable
from fastckpt.cli.progress import progress_bar

EPILOG = (
    "Exit codes: 0 all of it is at the destination, 1 the source is damaged, 2 usage, or another file is at "
    "the destination, 3 the step is not whole, 4 not found, 6 I/O error (no space, for instance), "
    "130 interrupted. Any other code but 0 is a failure too."
)


def copy(
    source: Annotated[
        str,
        typer.Argument(
            help="A run's directory, a step of it (runs/d12@1200), a CheckpointManager's directory, "
            "or a .pt file."
        ),
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="DIR", help="The directory that the copies go to.")
    ],
    step: Annotated[
        list[int] | None,
        typer.Option("--step", min=0, help="Copy this step only; may be given several times."),
    ] = None,
    newest: Annotated[
        bool, typer.Option("--newest", help="Copy the newest step that is whole.")
    ] = False,
    threads: Threads = None,
    json: Json = False,
) -> Task:
    """Copy checkpoints, each byte verified while it is read, and committed as a step.

    The same command again goes on where an interrupted one ended, a file at a time. A damaged step
    is refused; another file at the destination is never overwritten. Steps that are not whole are
    left out.
    """
    return partial(_copy, source, to, step or [], newest=newest, threads=threads, as_json=json)


def _copy(
    source: str, to: str, steps: list[int], *, newest: bool, threads: int | None, as_json: bool
) -> int:
    from fastckpt._copy.copy import copy_checkpoint

    try:
        with progress_bar("copying") as progress:
            report = copy_checkpoint(
                source, to, steps=steps, newest=newest, threads=threads, progress=progress
            )
    except ValueError as error:
        return fail("copy", "usage", exit_codes.USAGE, str(error), None, as_json=as_json)
    except FileNotFoundError as error:
        message = f"{printable(str(error.filename))}: {error.strerror}"
        hint = "give a run's directory, a step of it (runs/d12@1200), or a .pt file"
        return fail("copy", "not_found", exit_codes.NOT_FOUND, message, hint, as_json=as_json)
    return print_report(
        "copy",
        report,
        lines=report_lines,
        document=report_document,
        messages=messages,
        as_json=as_json,
    )
