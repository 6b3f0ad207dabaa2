"""`fastckpt export`: the weights of a checkpoint alone, as .pt or safetensors, and back."""

from __future__ import annotations

import re
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated

import typer

from fastckpt._export_kind import export_kind
from fastckpt.cli.exit_codes import epilog
from fastckpt.cli.export_output import messages, report_document, report_lines
from fastckpt.cli.options import Json, Quiet, Task, Threads, destination, to_option
from fastckpt.cli.output import Output, print_message, print_report, printable
from fastckpt.cli.progress import progress_bar
from fastckpt.errors import MissingChecksumWarning

EPILOG = epilog(
    {
        0: "exported",
        1: "FILE is damaged or holds nothing to export",
        2: "wrong usage (OUT exists, for instance, or something is not installed)",
        3: "a shard is missing",
        4: "not found",
        5: "FILE asks for objects that are not built",
    }
)

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", start=1)}
_UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", start=1)}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def export(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A .pt file or a step (runs/d12@1200); or a .safetensors file, its .index.json, or a "
            "directory with one of them.",
        ),
    ],
    out: Annotated[
        str | None,
        typer.Argument(
            metavar="[OUT]",
            help="Output file, .pt or .safetensors, or a directory for model.safetensors. Never overwritten.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        str | None,
        to_option("OUT"),
    ] = None,
    ema: Annotated[
        bool,
        typer.Option("--ema", help="Export the moving averages instead of the weights."),
    ] = False,
    no_config: Annotated[
        bool, typer.Option("--no-config", help="Leave out the model's configuration.")
    ] = False,
    max_shard_size: Annotated[
        str,
        typer.Option(
            "--max-shard-size",
            metavar="SIZE",
            help="Largest size of a safetensors file: 500MB, 2GiB, ...",
        ),
    ] = "5GB",
    threads: Threads = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Task:
    """Write only the weights of a checkpoint, without optimizer and the rest, to new files.

    From .pt to a smaller .pt, or to safetensors as the Hugging Face Hub expects them (sharded if they
    are larger than --max-shard-size); from safetensors back to .pt. What is read of a .pt file is checked
    against its checksums.

    For torch.export, ONNX and TorchScript the model itself is needed: use fastckpt.ModelExporter in Python.
    """
    nbytes = _parse_size(max_shard_size)
    target = destination(out, to, "OUT")
    try:
        kind = export_kind(file, target)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if kind == "import" and (ema or no_config):
        option = "--ema" if ema else "--no-config"
        raise typer.BadParameter(f"{option} is for exports from a .pt file")
    options = _Options(ema, not no_config, nbytes, threads)
    return partial(_export, file, target, options, Output(json, quiet))


@dataclass(frozen=True)
class _Options:
    """Arguments of `fastckpt.export_checkpoint`."""

    use_ema: bool
    include_config: bool
    max_shard_nbytes: int
    threads: int | None


def _parse_size(text: str) -> int:
    """Return bytes; units of a thousand (GB) and of 1024 (GiB)."""
    found = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or float(found[1]) * unit < 1:
        raise typer.BadParameter(
            f"--max-shard-size must be a size such as 5GB, 500MB or 2GiB, not {text!r}"
        )
    return int(float(found[1]) * unit)


def _export(file: str, to: str, options: _Options, output: Output) -> int:
    from fastckpt.export.checkpoint import export_checkpoint

    with (
        warnings.catch_warnings(record=True) as caught,
        progress_bar("exporting", output) as progress,
    ):
        warnings.simplefilter("always", MissingChecksumWarning)
        report = export_checkpoint(file, to, **asdict(options), progress=progress)
    for entry in caught:
        print_message("warning", printable(str(entry.message)))
    return print_report(
        "export",
        report,
        lines=report_lines,
        document=report_document,
        messages=messages,
        output=output,
    )
