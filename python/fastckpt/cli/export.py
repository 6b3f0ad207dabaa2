"""`fastckpt export`: the weights of a checkpoint alone, as .pt or safetensors, and back."""

from __future__ import annotations

import os
import re
import warnings
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from fastckpt.cli import exit_codes
from fastckpt.cli.export_output import messages, report_document, report_lines
from fastckpt.cli.options import Json, Task, Threads
from fastckpt.cli.output import print_document, print_lines, print_message, printable
from fastckpt.cli.progress import progress_bar
from fastckpt.errors import (
    CheckpointError,
    ChecksumError,
    IncompleteCheckpointError,
    MissingChecksumWarning,
)

if TYPE_CHECKING:
    from fastckpt.export import ExportReport

EPILOG = (
    "Exit codes: 0 exported, 1 FILE is damaged or holds nothing to export, 2 usage (OUT exists, for "
    "instance, or something is not installed), 3 a shard is missing, 4 not found, 6 I/O error, "
    "130 interrupted. Any other code but 0 is a failure too."
)

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", start=1)}
_UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", start=1)}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_PT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


def export(
    file: Annotated[
        str,
        typer.Argument(
            help="A .pt file; or a .safetensors file, its .index.json, or a directory with one of them."
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="OUT",
            help="The new file, .pt or .safetensors, or a directory for model.safetensors.",
        ),
    ],
    ema: Annotated[
        bool,
        typer.Option("--ema", help="Export the moving averages in the place of the weights."),
    ] = False,
    no_config: Annotated[
        bool, typer.Option("--no-config", help="Leave out the model's configuration.")
    ] = False,
    max_shard_size: Annotated[
        str,
        typer.Option(
            "--max-shard-size", metavar="SIZE", help="Of safetensors files: 5GB, 500MB, 2GiB..."
        ),
    ] = "5GB",
    threads: Threads = None,
    json: Json = False,
) -> Task:
    """Write the weights of a checkpoint alone, without optimizer and the rest, to new files.

    From .pt to a smaller .pt, or to safetensors as the Hugging Face Hub expects them (sharded where they
    are larger than --max-shard-size); from safetensors back to .pt. What is read of a .pt file is checked
    against its checksums.

    For torch.export, ONNX and TorchScript the model itself is needed: fastckpt.ModelExporter has them in
    Python.
    """
    nbytes = _parse_size(max_shard_size)
    kind = _direction(file, to)
    if kind == "import" and (ema or no_config):
        option = "--ema" if ema else "--no-config"
        raise typer.BadParameter(f"{option} is for exports from a .pt file")
    options = _Options(ema, no_config, nbytes, threads)
    return partial(_export, kind, file, to, options, as_json=json)


class _Options:
    """What was asked for besides the files."""

    def __init__(
        self, ema: bool, no_config: bool, max_shard_nbytes: int, threads: int | None
    ) -> None:
        self.use_ema = ema
        self.include_config = not no_config
        self.max_shard_nbytes = max_shard_nbytes
        self.threads = threads


def _parse_size(text: str) -> int:
    """Return bytes; units of a thousand (GB) and of 1024 (GiB)."""
    found = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or float(found[1]) * unit < 1:
        raise typer.BadParameter(f"--max-shard-size {text!r} is no size: 5GB, 500MB or 2GiB is one")
    return int(float(found[1]) * unit)


def _direction(file: str, to: str) -> str:
    """Say what kind of export this is: "inference", "safetensors" or "import"."""
    is_import = file.endswith((".safetensors", ".safetensors.index.json")) or os.path.isdir(file)
    if to.endswith(_PT_SUFFIXES):
        return "import" if is_import else "inference"
    is_directory = os.path.isdir(to) or not os.path.splitext(os.path.basename(to))[1]
    if not (to.endswith(".safetensors") or is_directory):
        raise typer.BadParameter(
            f"--to {to!r}: expected a .pt file, a .safetensors file or a directory"
        )
    if is_import:
        raise typer.BadParameter(f"{file} is safetensors already: --to takes a .pt file then")
    return "safetensors"


def _export(kind: str, file: str, to: str, options: _Options, *, as_json: bool) -> int:
    try:
        report, unchecked = _run(kind, file, to, options)
    except (CheckpointError, ImportError, OSError, ValueError) as error:
        status, exit_code, message, hint = _judge(error, to)
        print_message("error", message)
        if hint:
            print_message("hint", hint)
        if as_json:
            document = {"message": message, "hint": hint}
            print_document("export", status, exit_code, error=document)
        return exit_code
    if as_json:
        print_document("export", "exported", 0, report=report_document(report))
    else:
        print_lines(report_lines(report))
    for text in unchecked:
        print_message("warning", printable(text))
    for kind_of_message, text in messages(report):
        print_message(kind_of_message, text)
    return 0


def _run(kind: str, file: str, to: str, options: _Options) -> tuple[ExportReport, list[str]]:
    """Do it; return the report, and warnings that the checkpoint has no checksums."""
    from fastckpt.export import ModelExporter
    from fastckpt.export.hub import files_of_directory
    from fastckpt.export.publishing import refuse_existing

    outputs = files_of_directory(to) if os.path.isdir(to) and kind == "safetensors" else [to]
    refuse_existing(outputs)
    with warnings.catch_warnings(record=True) as caught, progress_bar("exporting") as progress:
        warnings.simplefilter("always", MissingChecksumWarning)
        if kind == "import":
            report = ModelExporter.import_safetensors(file, to, progress=progress)
        elif kind == "inference":
            report = ModelExporter.export_inference_checkpoint(
                file,
                to,
                options.include_config,
                use_ema=options.use_ema,
                threads=options.threads,
                progress=progress,
            )
        else:
            report = ModelExporter.export_safetensors(
                file,
                to,
                max_shard_nbytes=options.max_shard_nbytes,
                include_config=options.include_config,
                use_ema=options.use_ema,
                threads=options.threads,
                progress=progress,
            )
    return report, [str(entry.message) for entry in caught]


def _judge(error: Exception, to: str) -> tuple[str, int, str, str | None]:
    """Return status, exit code, message and hint of what went wrong."""
    message = printable(str(error))
    if isinstance(error, ImportError):
        if error.name == "torch":
            return "usage", exit_codes.USAGE, "export needs torch", "pip install torch"
        text, _, hint = message.partition(": ")
        return "usage", exit_codes.USAGE, text, hint or None
    if isinstance(error, FileExistsError):
        message = (
            f"{printable(str(error.filename))} exists already, and export only writes new files"
        )
        return "usage", exit_codes.USAGE, message, "name something else after --to"
    if isinstance(error, IncompleteCheckpointError):
        return "incomplete", exit_codes.INCOMPLETE, message, None
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        message = f"{printable(str(error.filename))}: {error.strerror}"
        return "not_found", exit_codes.NOT_FOUND, message, None
    if isinstance(error, OSError):
        return "io_error", exit_codes.IO_ERROR, message, None
    if isinstance(error, ChecksumError):
        hint = "fastckpt repair salvages what is good in it"
        return "damaged", exit_codes.DAMAGED, message, hint
    return "unusable", exit_codes.DAMAGED, message, None
