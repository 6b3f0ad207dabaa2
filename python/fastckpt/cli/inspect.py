"""`fastckpt inspect`: what does a checkpoint hold?"""

from __future__ import annotations

import enum
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from fastckpt.cli import exit_codes
from fastckpt.cli.options import Json, Quiet, Task
from fastckpt.cli.output import Output, print_document, print_lines, print_messages

if TYPE_CHECKING:
    from fastckpt._inspect.report import FileContents
    from fastckpt._inspect.run_report import DirectoryContents

EPILOG = exit_codes.epilog(
    {
        0: "shown",
        1: "the file is damaged, or not a checkpoint",
        3: "the step is incomplete",
        4: "not found, or no checkpoint in the directory",
        5: "a format that cannot be looked into",
    }
)


class Sort(str, enum.Enum):
    """In which order tensors are listed."""

    SIZE = "size"
    NAME = "name"


def inspect(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A .pt or .safetensors file, a step (runs/d12@1200: its model), a checkpoint directory, or "
            "a parent of such directories.",
        ),
    ],
    tree: Annotated[
        bool, typer.Option("--tree", help="Show the tensors of a file as a tree of modules.")
    ] = False,
    sort: Annotated[
        Sort | None,
        typer.Option("--sort", help="Sort order of the tensors [default: as saved]"),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Task:
    """Say what a checkpoint holds, without reading its tensors.

    For a file: its tensors with dtype, shape and size, their totals by module, and step, epoch, metrics
    and the other plain values. For a directory: its checkpoints with size, state and metrics. Needs
    neither torch nor a GPU, and never executes what is in a file.
    """
    return partial(_inspect, path, tree, sort, Output(json, quiet))


def _inspect(path: str, tree: bool, sort: Sort | None, output: Output) -> int:
    from fastckpt._inspect.report import FileContents
    from fastckpt._inspect.runs import inspect_checkpoint

    contents = inspect_checkpoint(path)
    if isinstance(contents, FileContents):
        return _show_file(contents, tree, sort, output)
    return _show_directory(contents, output)


def _show_file(contents: FileContents, tree: bool, sort: Sort | None, output: Output) -> int:
    from fastckpt.cli.inspect_output import file_document, file_lines, file_messages

    if output.as_json:
        print_document("inspect", "good", 0, report=file_document(contents, sort=sort))
    elif not output.quiet:
        print_lines(file_lines(contents, tree=tree, sort=sort))
    print_messages(file_messages(contents), output)
    return 0


def _show_directory(contents: DirectoryContents, output: Output) -> int:
    from fastckpt.cli.inspect_runs_output import (
        directory_document,
        directory_lines,
        directory_messages,
    )

    status, exit_code = "good", 0
    if contents.errors:
        status, exit_code = "io_error", exit_codes.IO_ERROR
    elif not contents.runs:
        status, exit_code = "not_found", exit_codes.NOT_FOUND
    if output.as_json:
        print_document("inspect", status, exit_code, report=directory_document(contents))
    elif not output.quiet:
        print_lines(directory_lines(contents))
    print_messages(directory_messages(contents), output)
    return exit_code
