"""`fastckpt top`: which checkpoints are the best?"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from fastckpt.cli.exit_codes import epilog
from fastckpt.cli.options import Json, MetricName, Mode, Quiet, Task
from fastckpt.cli.output import Output, print_document, print_lines, print_message, printable

EPILOG = epilog(
    {
        0: "ranked",
        2: "wrong usage (--mode is needed for an accuracy, for instance)",
        4: "not found: the path, or a checkpoint in it, or the metric in a checkpoint",
    }
)


def top(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Checkpoint directories or parents of such directories, steps (runs/d12@1200), or files.",
        ),
    ],
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="NAME", help="The metric, e.g. val_loss. Required."),
    ] = None,
    k: Annotated[int, typer.Option("-k", metavar="N", min=1, help="How many to show.")] = 5,
    mode: Annotated[
        Mode | None,
        typer.Option(
            "--mode",
            help="Whether lower or higher is better [default: min]. Needed for metrics such as val_acc.",
        ),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
    metric_name: MetricName = None,
) -> Task:
    """List the best checkpoints by a metric, without reading their tensors.

    The metric is looked up in the dict `metrics` of a checkpoint, then under its own name, then by the
    last part of a dotted path; for steps with nanochat's names, in the meta.
    """
    name = metric if metric_name is None else metric_name
    if name is None:
        raise typer.BadParameter(
            "Missing option '--metric': name what the checkpoints are ranked by"
        )
    end = None if mode is None else mode.value
    return partial(_top, paths, name, k, end, Output(json, quiet))


def _top(paths: list[str], metric: str, k: int, mode: str | None, output: Output) -> int:
    from fastckpt._metric_names import best_end
    from fastckpt._top import rank
    from fastckpt.cli.top_output import report_document, report_lines

    ranked = rank(paths, metric, mode)
    end = best_end(metric, mode)
    for checkpoint in ranked:
        if checkpoint.problem is not None:
            print_message("warning", f"left out: {printable(checkpoint.problem)}")
    if output.as_json:
        report = report_document(ranked, metric=metric, mode=end, k=k)
        print_document("top", "good", 0, report=report)
    elif not output.quiet:
        print_lines(report_lines(ranked, metric=metric, mode=end, k=k))
    return 0
