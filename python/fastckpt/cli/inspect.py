"""`fastckpt inspect`: what does a checkpoint hold?"""

from __future__ import annotations

import enum
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from fastckpt.cli import exit_codes
from fastckpt.cli.options import Json, Task
from fastckpt.cli.output import fail, print_document, print_lines, print_message, printable

if TYPE_CHECKING:
    from fastckpt._inspect.report import FileContents
    from fastckpt._inspect.run_report import DirectoryContents

EPILOG = (
    "Exit codes: 0 shown, 1 the file is damaged or no checkpoint, 2 usage, 4 not found, or no "
    "checkpoint in the directory, 5 a format that cannot be looked into, 6 I/O error, 130 "
    "interrupted. Any other code but 0 is a failure too."
)


class Sort(str, enum.Enum):
    """In which order tensors are listed."""

    SIZE = "size"
    NAME = "name"


def inspect(
    path: Annotated[
        str,
        typer.Argument(
            help="A .pt or .safetensors file, a checkpoint directory, or a directory above such."
        ),
    ],
    tree: Annotated[
        bool, typer.Option("--tree", help="Show the tensors of a file as a tree of modules.")
    ] = False,
    sort: Annotated[
        Sort | None,
        typer.Option("--sort", help="Order of a file's tensors; as they were saved without it."),
    ] = None,
    json: Json = False,
) -> Task:
    """Say what a checkpoint holds, without reading its tensors.

    Of a file: its tensors with dtype, shape and size, their totals by module, and step, epoch, metrics
    and the other plain values. Of a directory: its checkpoints with size, state and metrics. Needs
    neither torch nor a GPU, and executes nothing that a file says.
    """
    return partial(_inspect, path, tree=tree, sort=sort, as_json=json)


def _inspect(path: str, *, tree: bool, sort: Sort | None, as_json: bool) -> int:
    from fastckpt._inspect.report import FileContents, UncoveredFormatError
    from fastckpt._inspect.runs import inspect as inspect_path
    from fastckpt.errors import CheckpointError

    try:
        contents = inspect_path(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"{printable(path)}: {error.strerror}"
        hint = "give a .pt file, a checkpoint directory, or a directory above one"
        return fail("inspect", "not_found", exit_codes.NOT_FOUND, message, hint, as_json=as_json)
    except UncoveredFormatError as error:
        message = printable(str(error))
        return fail(
            "inspect", "uncovered", exit_codes.UNCOVERED, message, error.hint, as_json=as_json
        )
    except CheckpointError as error:
        hint = (
            f"`fastckpt verify {printable(path)}` says where, `fastckpt repair` salvages the rest"
        )
        message = printable(str(error))
        return fail("inspect", "damaged", exit_codes.DAMAGED, message, hint, as_json=as_json)
    if isinstance(contents, FileContents):
        return _show_file(contents, tree=tree, sort=sort, as_json=as_json)
    return _show_directory(contents, as_json=as_json)


def _show_file(contents: FileContents, *, tree: bool, sort: Sort | None, as_json: bool) -> int:
    from fastckpt.cli.inspect_output import file_document, file_lines, file_messages

    if as_json:
        print_document("inspect", "good", 0, report=file_document(contents, sort=sort))
    else:
        print_lines(file_lines(contents, tree=tree, sort=sort))
    for kind, text in file_messages(contents):
        print_message(kind, text)
    return 0


def _show_directory(contents: DirectoryContents, *, as_json: bool) -> int:
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
    if as_json:
        print_document("inspect", status, exit_code, report=directory_document(contents))
    else:
        print_lines(directory_lines(contents))
    for kind, text in directory_messages(contents):
        print_message(kind, text)
    return exit_code
