"""`fastckpt diff`: in which tensors two checkpoints differ, and how far."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from fastckpt.cli.diff_output import markdown_lines, messages, report_document, report_lines
from fastckpt.cli.exit_codes import epilog
from fastckpt.cli.options import Json, Quiet, Task, Threads
from fastckpt.cli.output import Output, print_report
from fastckpt.cli.progress import progress_bar

EPILOG = epilog(
    {
        0: "no difference",
        1: "some difference",
        3: "a step is incomplete",
        4: "not found",
        5: "a format that cannot be looked into",
        6: "a file cannot be read, or is damaged",
    }
)


def diff(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="A [B]",
            help="Two .pt or .safetensors files, or steps (runs/d12@100); with --steps, one or two DIRs.",
        ),
    ],
    steps: Annotated[
        tuple[int, int] | None,
        typer.Option(
            "--steps",
            metavar="STEP STEP",
            help="Compare two steps, from one directory or two: short for A@STEP B@STEP.",
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="List every tensor that differs, not only the first few.")
    ] = False,
    threads: Threads = None,
    quiet: Quiet = False,
    json: Json = False,
    md: Annotated[bool, typer.Option("--md", help="Print Markdown instead of text.")] = False,
) -> Task:
    """Compare two checkpoints tensor by tensor.

    Lists keys that were added or removed, changed shapes and dtypes, and for each tensor the largest and the
    mean absolute change and ||B - A|| / ||A||, summed up by layer. Tensors with the same size and checksum
    are not read.
    """
    if json and md:
        raise typer.BadParameter("--json and --md exclude each other: name one")
    least = 2 if steps is None else 1
    if not least <= len(paths) <= 2:
        raise typer.BadParameter(
            f"diff takes two files or steps, not {len(paths)}"
            if steps is None
            else f"--steps takes one directory or two, not {len(paths)}"
        )
    if steps is not None:
        paths = [f"{paths[0]}@{steps[0]}", f"{paths[-1]}@{steps[1]}"]
    return partial(_diff, paths, every, threads, Output(json, quiet, columns=not md), md)


def _diff(paths: list[str], every: bool, threads: int | None, output: Output, md: bool) -> int:
    from fastckpt._diff.diff import diff as diff_checkpoints

    with progress_bar("comparing", output) as progress:
        report = diff_checkpoints(paths[0], paths[1], threads=threads, progress=progress)
    return print_report(
        "diff",
        report,
        lines=partial(markdown_lines if md else report_lines, every=every),
        document=report_document,
        messages=messages,
        output=output,
    )
