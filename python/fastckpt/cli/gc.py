"""`fastckpt gc`: remove what interrupted saves have left behind."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from fastckpt.cli.exit_codes import epilog
from fastckpt.cli.gc_output import messages, report_document, report_lines
from fastckpt.cli.options import DryRun, Json, Quiet, Task
from fastckpt.cli.output import Output, print_report

EPILOG = epilog(
    {
        0: "done, whether there was something to delete or not",
        4: "no such directory",
        6: "something could not be read or deleted",
    }
)


def gc(
    directories: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR...", help="Checkpoint directories, or parents of such directories."
        ),
    ],
    dry_run: DryRun = False,
    incomplete: Annotated[
        bool,
        typer.Option("--incomplete", help="Also delete steps that can never be completed."),
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> Task:
    """Delete what interrupted saves have left behind.

    Deletes temporary files of saves and hidden directories of exports whose process has died, and files that
    a newer save has replaced, once that save is whole. Lists incomplete steps that are older than a whole
    one, and files of ranks whose checkpoint is gone; --incomplete deletes them. Whole steps are never
    touched. Saves may be running meanwhile on this machine.
    """
    return partial(_gc, directories, dry_run, incomplete, Output(json, quiet))


def _gc(directories: list[str], dry_run: bool, incomplete: bool, output: Output) -> int:
    from fastckpt._gc.gc import collect_garbage

    report = collect_garbage(directories, dry_run=dry_run, incomplete=incomplete)
    return print_report(
        "gc",
        report,
        lines=report_lines,
        document=report_document,
        messages=messages,
        output=output,
    )
