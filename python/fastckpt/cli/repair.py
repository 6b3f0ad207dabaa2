"""`fastckpt repair`: salvage what is good in a damaged file."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from fastckpt.cli.exit_codes import epilog
from fastckpt.cli.options import Json, Quiet, Task, Threads, destination, to_option
from fastckpt.cli.output import Output, print_report
from fastckpt.cli.progress import progress_bar
from fastckpt.cli.repair_output import messages, report_document, report_lines

EPILOG = epilog(
    {
        0: "everything was salvaged (the file was good, or damaged only between its records)",
        1: "something is missing from NEW, or nothing could be salvaged and there is no NEW",
        2: "wrong usage (NEW exists, for instance)",
        4: "not found",
    }
)


def repair(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The damaged .pt file; it is only read.")
    ],
    new: Annotated[
        str | None,
        typer.Argument(metavar="[NEW]", help="Output file; must not exist.", show_default=False),
    ] = None,
    to: Annotated[
        str | None,
        to_option("NEW"),
    ] = None,
    threads: Threads = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Task:
    """Salvage every tensor with a good checksum from a damaged file into a new one.

    Lists what is lost. Lost tensors are left out of the dicts that they were in; no value is ever made
    up. If the pickle itself is lost, NEW holds the raw storages by the names of their records.
    """
    return partial(_repair, file, destination(new, to, "NEW"), threads, Output(json, quiet))


def _repair(file: str, to: str, threads: int | None, output: Output) -> int:
    from fastckpt._repair.repair import repair as repair_file

    with progress_bar("reading", output) as progress:
        report = repair_file(file, to, threads=threads, progress=progress)
    return print_report(
        "repair",
        report,
        lines=report_lines,
        document=report_document,
        messages=messages,
        output=output,
    )
