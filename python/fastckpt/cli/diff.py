"""`fastckpt diff`: in which tensors two checkpoints differ, and how far."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from fastckpt.cli import exit_codes
from fastckpt.cli.diff_output import markdown_lines, messages, report_document, report_lines
from fastckpt.cli.options import Json, Task, Threads
from fastckpt.cli.output import fail, print_report, printable
from fastckpt.cli.progress import ProgressFunction, progress_bar

if TYPE_CHECKING:
    from fastckpt._diff.report import DiffReport

EPILOG = (
    "Exit codes: 0 no difference, 1 some difference, 2 usage, 4 not found, 6 a file cannot be read, or "
    "is damaged, 130 interrupted. Any other code but 0 and 1 is a failure."
)


def diff(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="A [B]", help="Two .pt or .safetensors files; with --steps, one or two DIRs."
        ),
    ],
    steps: Annotated[
        tuple[int, int] | None,
        typer.Option(
            "--steps",
            metavar="STEP STEP",
            help="Compare two steps of nanochat's naming: both in one DIR, or one in each of two.",
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="List every tensor that differs, not the first few.")
    ] = False,
    threads: Threads = None,
    json: Json = False,
    md: Annotated[bool, typer.Option("--md", help="Print Markdown instead of text.")] = False,
) -> Task:
    """Say in which tensors two checkpoints differ, and how far.

    Keys that were added or removed, changed shapes and dtypes, and for each tensor the largest and the
    mean absolute change and ||B - A|| / ||A||, summed up by layer. Tensors of the same size and checksum
    are not read. Needs no torch.
    """
    if json and md:
        raise typer.BadParameter("--json and --md are two forms of one report: name one")
    most = 1 if steps is not None else 2
    if not most <= len(paths) <= 2:
        raise typer.BadParameter(
            "--steps takes one directory or two"
            if steps is not None
            else f"diff takes two files, not {len(paths)} (or a directory and --steps)"
        )
    return partial(_diff, paths, steps, every=every, threads=threads, as_json=json, as_md=md)


def _diff(
    paths: list[str],
    steps: tuple[int, int] | None,
    *,
    every: bool,
    threads: int | None,
    as_json: bool,
    as_md: bool,
) -> int:
    from fastckpt.errors import CheckpointError

    give_up = partial(fail, "diff", as_json=as_json)
    try:
        with progress_bar("comparing") as progress:
            report = _compare(paths, steps, threads, progress)
    except (FileNotFoundError, NotADirectoryError) as error:
        words = getattr(error, "strerror", None)
        message = f"{printable(str(error.filename))}: {words}" if words else printable(str(error))
        return give_up("not_found", exit_codes.NOT_FOUND, message, None)
    except CheckpointError as error:
        hint = "`fastckpt verify` says what is wrong with a file"
        return give_up("damaged", exit_codes.IO_ERROR, printable(str(error)), hint)
    return print_report(
        "diff",
        report,
        lines=partial(markdown_lines if as_md else report_lines, every=every),
        document=report_document,
        messages=messages,
        as_json=as_json,
    )


def _compare(
    paths: list[str],
    steps: tuple[int, int] | None,
    threads: int | None,
    progress: ProgressFunction | None,
) -> DiffReport:
    from fastckpt._diff.diff import diff as diff_files
    from fastckpt._diff.diff import diff_steps

    if steps is not None:
        return diff_steps(
            paths[0], steps[0], paths[-1], steps[1], threads=threads, progress=progress
        )
    for path in paths:
        if os.path.isdir(path):
            raise typer.BadParameter(
                f"{printable(path)} is a directory: name two files, or two of its steps with --steps"
            )
    return diff_files(paths[0], paths[1], threads=threads, progress=progress)
