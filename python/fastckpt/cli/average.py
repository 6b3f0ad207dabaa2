"""`fastckpt average`: the mean of several checkpoints' models, as a new file."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from fastckpt.cli.average_output import messages, report_document, report_lines
from fastckpt.cli.exit_codes import epilog
from fastckpt.cli.options import Json, Quiet, Task, Threads, to_option
from fastckpt.cli.output import Output, print_report
from fastckpt.cli.progress import progress_bar

EPILOG = epilog(
    {
        0: "OUT is written",
        1: "an input is damaged or holds no model",
        2: "wrong usage (OUT exists, or the checkpoints do not go together)",
        3: "a step is incomplete",
        4: "not found",
        5: "a format that cannot be looked into",
    }
)


def average(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="The .pt files, or steps (runs/d12@1200). A directory stands for its model file, if it "
            "has just one.",
        ),
    ],
    to: Annotated[
        str,
        to_option("OUT", "Output file; must not exist."),
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="W,W,...",
            help="A number for each file; they need not add up to 1 [default: all the same]",
        ),
    ] = None,
    threads: Threads = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Task:
    """Average the models of several checkpoints into a new file, OUT.

    Floating tensors are summed in float64 and rounded once; integer tensors are those of the last file.
    OUT holds only the state dict. It appears once it is whole and durable, and everything that was read has
    been compared with its checksum. Only a piece of each tensor is in memory at a time.
    """
    output = Output(json, quiet)
    return partial(_average, files, to, _parse_weights(weights), threads, output)


def _parse_weights(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"--weights takes numbers separated by commas, such as 1,2,3, not {text!r}"
        ) from None


def _average(
    files: list[str], to: str, weights: list[float] | None, threads: int | None, output: Output
) -> int:
    from fastckpt._average.average import average_files

    with progress_bar("averaging", output) as progress:
        report = average_files(files, to, weights=weights, threads=threads, progress=progress)
    return print_report(
        "average",
        report,
        lines=report_lines,
        document=report_document,
        messages=messages,
        output=output,
    )
