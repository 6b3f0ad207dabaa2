"""`fastckpt gc`: remove what interrupted saves have left behind."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from fastckpt.cli.gc_output import messages, report_document, report_lines
from fastckpt.cli.options import Json, Task
from fastckpt.cli.output import print_report

EPILOG = (
    "Exit codes: 0 done, whether there was something to remove or not, 2 usage, 4 no such "
    "directory, 6 something could not be read or removed, 130 interrupted. "
    "Any other code but 0 is a failure too."
)


def gc(
    directories: Annotated[
        list[str], typer.Argument(help="Checkpoint directories, or directories above them.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed; remove nothing.")
    ] = False,
    incomplete: Annotated[
        bool,
        typer.Option("--incomplete", help="Remove steps that can never be completed, too."),
    ] = False,
    json: Json = False,
) -> Task:
    """Remove what interrupted saves have left behind.

    That is: temporary files of saves and hidden directories of exports whose process has died, and
    files that a newer save has replaced and that were kept until it was whole. Steps that are not
    whole although a later one is, and files of ranks whose checkpoint is gone, are listed, and removed
    with --incomplete. A whole step is never touched. Saves may be running meanwhile, on this machine.
    """
    return partial(_gc, directories, dry_run=dry_run, incomplete=incomplete, as_json=json)


def _gc(directories: list[str], *, dry_run: bool, incomplete: bool, as_json: bool) -> int:
    from fastckpt._gc.gc import collect_garbage

    report = collect_garbage(directories, dry_run=dry_run, incomplete=incomplete)
    return print_report(
        "gc",
        report,
        lines=report_lines,
        document=report_document,
        messages=messages,
        as_json=as_json,
    )
