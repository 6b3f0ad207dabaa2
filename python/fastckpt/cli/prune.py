"""`fastckpt prune`: delete old checkpoints, never the best and never the only good one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated

import typer

from fastckpt.cli.exit_codes import epilog
from fastckpt.cli.options import DryRun, Json, MetricName, Mode, Quiet, Task, Threads
from fastckpt.cli.output import Output, print_report
from fastckpt.cli.progress import progress_bar
from fastckpt.cli.prune_output import messages, report_document, report_lines

EPILOG = epilog(
    {
        0: "done, whether there was something to delete or not",
        1: "a damaged checkpoint was met, or none of those that would stay can be verified and nothing was "
        "deleted",
        4: "no checkpoints there, or none has the metric",
        6: "something could not be read or deleted",
    }
)


@dataclass(frozen=True)
class _Options:
    """What stays, and how it is looked at: arguments of `fastckpt.prune`."""

    keep: int | None
    keep_every: int | None
    keep_best: int | None
    metric_name: str | None
    mode: str | None
    dry_run: bool
    quick: bool
    threads: int | None


def prune(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="A checkpoint directory. Not recursive.")
    ],
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep",
            metavar="N",
            min=1,
            help="Keep the N newest. Required, unless --keep-best is given: then 1.",
        ),
    ] = None,
    keep_every: Annotated[
        int | None,
        typer.Option(
            "--keep-every", metavar="N", min=1, help="Also keep steps that are multiples of N."
        ),
    ] = None,
    keep_best: Annotated[
        int | None,
        typer.Option(
            "--keep-best",
            metavar="N",
            min=1,
            help="Also keep the N best by the metric [default: 1]",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="The number that says which checkpoints are the best.",
        ),
    ] = None,
    mode: Annotated[
        Mode | None,
        typer.Option(
            "--mode", help="Whether lower or higher is better [default: min]; requires --metric."
        ),
    ] = None,
    dry_run: DryRun = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Check only the structure of what stays; do not read its tensors.",
        ),
    ] = False,
    threads: Threads = None,
    quiet: Quiet = False,
    json: Json = False,
    metric_name: MetricName = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", hidden=True)] = False,
) -> Task:
    """Delete old checkpoints: all but the newest, the best, and the newest that is good.

    Works on steps with nanochat's names and on a CheckpointManager's checkpoints. The newest checkpoint that
    stays is read in full first; if none is good, nothing is deleted. Checkpoints that are torn, damaged or
    under way are neither counted nor deleted.
    """
    if keep is None and keep_best is None:
        raise typer.BadParameter("Missing option '--keep': say how many of the newest stay")
    end = None if mode is None else mode.value
    name = metric if metric_name is None else metric_name
    quick = quick or no_verify
    options = _Options(keep, keep_every, keep_best, name, end, dry_run, quick, threads)
    return partial(_prune, directory, options, Output(json, quiet))


def _prune(directory: str, options: _Options, output: Output) -> int:
    from fastckpt._prune.prune import prune as prune_directory

    with progress_bar("verifying", output) as progress:
        report = prune_directory(directory, **asdict(options), progress=progress)
    return print_report(
        "prune",
        report,
        lines=report_lines,
        document=report_document,
        messages=messages,
        output=output,
    )
