"""`fastckpt copy`: checkpoints to another disk or machine, verified on the way."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from fastckpt.cli.copy_output import messages, report_document, report_lines
from fastckpt.cli.exit_codes import epilog
from fastckpt.cli.options import Json, Quiet, Task, Threads, destination, to_option
from fastckpt.cli.output import Output, print_report
from fastckpt.cli.progress import progress_bar

EPILOG = epilog(
    {
        0: "all of it is at the destination",
        1: "the source is damaged",
        2: "wrong usage, or another file is at the destination",
        3: "the step is incomplete",
        4: "not found",
        6: "I/O error (no space, for instance)",
    }
)


def copy(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A run's directory, a step of it (runs/d12@1200), a CheckpointManager's directory, "
            "or a .pt file. Not recursive.",
        ),
    ],
    dest: Annotated[
        str | None,
        typer.Argument(
            metavar="[DEST]",
            help="The directory to copy to; made if it is missing. For a .pt file also its new name.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        str | None,
        to_option("DEST"),
    ] = None,
    step: Annotated[
        list[int] | None,
        typer.Option(
            "--step",
            metavar="STEP",
            min=0,
            help="Copy only this step; may be given several times.",
        ),
    ] = None,
    newest: Annotated[bool, typer.Option("--newest", help="Copy the newest whole step.")] = False,
    threads: Threads = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Task:
    """Copy and verify checkpoints; each step arrives complete or not at all.

    The same command again resumes an interrupted copy, file by file. A damaged step is refused, and a
    different file at the destination is never overwritten. Incomplete steps are skipped.
    """
    output = Output(json, quiet)
    target = destination(dest, to, "DEST")
    return partial(_copy, source, target, step or [], newest, threads, output)


def _copy(
    source: str, to: str, steps: list[int], newest: bool, threads: int | None, output: Output
) -> int:
    from fastckpt._copy.copy import copy_checkpoint

    with progress_bar("copying", output) as progress:
        report = copy_checkpoint(
            source, to, steps=steps, newest=newest, threads=threads, progress=progress
        )
    return print_report(
        "copy",
        report,
        lines=report_lines,
        document=report_document,
        messages=messages,
        output=output,
    )
