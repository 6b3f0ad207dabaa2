"""`fastckpt average`: the mean of several checkpoints' models, as a new file."""

from __future__ import annotations

import os
from functools import partial
from typing import Annotated

import typer

from fastckpt.cli import exit_codes
from fastckpt.cli.average_output import messages, report_document, report_lines
from fastckpt.cli.options import Json, Task, Threads
from fastckpt.cli.output import fail, print_document, print_lines, print_message, printable
from fastckpt.cli.progress import progress_bar

EPILOG = (
    "Exit codes: 0 OUT is written, 1 an input is damaged or holds no model, 2 usage (OUT exists, or the "
    "checkpoints do not go together), 4 not found, 6 I/O error, 130 interrupted. "
    "Any other code but 0 is a failure too."
)


def average(
    files: Annotated[
        list[str],
        typer.Argument(
            help="The .pt files. A directory stands for its model file, if it has just one."
        ),
    ],
    to: Annotated[str, typer.Option("--to", metavar="OUT", help="The new file, not yet there.")],
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="W,W,...",
            help="A number for each file; they need not add up to 1.",
        ),
    ] = None,
    threads: Threads = None,
    json: Json = False,
) -> Task:
    """Average the models of several checkpoints into a new file, OUT.

    Floating tensors are summed in float64 and rounded once; integer tensors are those of the last file.
    OUT holds the state dict alone, and appears when it is whole, durable and everything that was read has
    been compared with its checksum. A piece of one tensor is in memory at a time.
    """
    return partial(
        _average, files, to, weights=_parse_weights(weights), threads=threads, as_json=json
    )


def _parse_weights(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"--weights takes numbers with commas between, such as 1,2,3, not {text!r}"
        ) from None


def _average(
    files: list[str],
    to: str,
    *,
    weights: list[float] | None,
    threads: int | None,
    as_json: bool,
) -> int:
    give_up = partial(fail, "average", as_json=as_json)
    try:
        from fastckpt._average.average import average_files
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return give_up("usage", exit_codes.USAGE, "average needs torch", "pip install torch")
    from fastckpt.errors import CheckpointError

    try:
        paths = [_model_file(path) for path in files]
        with progress_bar("averaging") as progress:
            report = average_files(paths, to, weights=weights, threads=threads, progress=progress)
    except FileExistsError:
        message = f"{printable(to)} exists already, and average only writes new files"
        return give_up("usage", exit_codes.USAGE, message, "name another file after --to")
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"{printable(str(error.filename))}: {error.strerror}"
        return give_up("not_found", exit_codes.NOT_FOUND, message, None)
    except CheckpointError as error:
        hint = "`fastckpt verify` says what is wrong with a file; nothing was written"
        return give_up("damaged", exit_codes.DAMAGED, printable(str(error)), hint)
    except ValueError as error:
        hint = "checkpoints of one model, and a weight for each; `fastckpt diff` compares two"
        return give_up("usage", exit_codes.USAGE, printable(str(error)), hint)
    if as_json:
        print_document("average", "written", 0, report=report_document(report))
    else:
        print_lines(report_lines(report))
    for kind, text in messages(report):
        print_message(kind, text)
    return 0


def _model_file(path: str) -> str:
    """Return the file itself, or the only model file of a directory."""
    if not os.path.isdir(path):
        return path
    from fastckpt._steps.survey import survey_steps

    steps = survey_steps(path)
    models = [step.model for _, step in sorted(steps.items()) if step.model is not None]
    if len(models) == 1:
        return os.path.join(path, models[0])
    found = f"{len(models)} model files" if models else "no model_<step>.pt"
    example = f", {os.path.join(path, models[-1])} for instance" if models else ""
    message = f"{path} is a directory with {found}: name the files themselves{example}"
    raise typer.BadParameter(printable(message))
