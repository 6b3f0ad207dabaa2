"""`fastckpt repair`: salvage what is good in a damaged file."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from fastckpt.cli import exit_codes
from fastckpt.cli.options import Json, Task, Threads
from fastckpt.cli.output import fail, print_report, printable
from fastckpt.cli.progress import progress_bar
from fastckpt.cli.repair_output import messages, report_document, report_lines

EPILOG = (
    "Exit codes: 0 everything was salvaged (the file was good, or only the bytes between its "
    "records were damaged), 1 something is missing from NEW, or nothing could be salvaged and there is "
    "no NEW, 2 usage (NEW exists, for instance), 4 not found, 6 I/O error, 130 interrupted. "
    "Any other code but 0 is a failure too."
)


def repair(
    file: Annotated[str, typer.Argument(help="The damaged .pt file; it is only read.")],
    to: Annotated[str, typer.Option("--to", metavar="NEW", help="The new file, not yet there.")],
    threads: Threads = None,
    json: Json = False,
) -> Task:
    """Salvage every tensor whose checksum is good from a damaged file into a new one.

    Lists what is lost. Lost tensors are left out of the dicts that they were in; no value is ever made
    up. Where the pickle itself is lost, NEW holds the raw storages by the names of their records.
    """
    return partial(_repair, file, to, threads=threads, as_json=json)


def _repair(file: str, to: str, *, threads: int | None, as_json: bool) -> int:
    try:
        from fastckpt._repair.repair import repair as repair_file
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        hint = "pip install torch"
        return fail(
            "repair", "usage", exit_codes.USAGE, "repair needs torch", hint, as_json=as_json
        )
    try:
        with progress_bar("reading") as progress:
            report = repair_file(file, to=to, threads=threads, progress=progress)
    except FileExistsError:
        message = f"{printable(to)} exists already, and repair only writes new files"
        hint = "name another file after --to"
        return fail("repair", "usage", exit_codes.USAGE, message, hint, as_json=as_json)
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"{printable(str(error.filename))}: {error.strerror}"
        return fail("repair", "not_found", exit_codes.NOT_FOUND, message, None, as_json=as_json)
    return print_report(
        "repair",
        report,
        lines=report_lines,
        document=report_document,
        messages=messages,
        as_json=as_json,
    )
