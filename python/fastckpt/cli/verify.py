"""`fastckpt verify`: does a checkpoint hold the bytes that were written?"""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import typer

from fastckpt.cli.exit_codes import epilog
from fastckpt.cli.options import Json, Quiet, Task, Threads
from fastckpt.cli.output import Output, print_lines, print_messages, print_report
from fastckpt.cli.progress import progress_bar
from fastckpt.cli.verify_output import (
    messages,
    print_sums,
    report_document,
    report_lines,
    sum_messages,
)

EPILOG = epilog(
    {
        0: "good",
        1: "damaged",
        3: "incomplete",
        4: "not found",
        5: "no checksums to check (with --strict)",
    }
)


def verify(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Files, steps (runs/d12@1200), checkpoint directories, or parents of such directories.",
        ),
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="Check only the structure; do not read the tensors.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail (code 5) if a file has no checksums.")
    ] = False,
    threads: Threads = None,
    quiet: Quiet = False,
    json: Json = False,
    sha256: Annotated[
        bool,
        typer.Option(
            "--sha256",
            help="Print the SHA-256 of each file of the good steps for sha256sum -c; the report goes to "
            "stderr.",
        ),
    ] = False,
) -> Task:
    """Read every byte of a checkpoint and compare it with the checksums in the file.

    Finds any flipped bit of a file that torch.save or fastckpt wrote, files that are missing from
    a step, and meta files that are not valid JSON. Needs neither torch nor a GPU.
    """
    output = Output(json, quiet)
    if sha256:
        _check_sha256(paths, quick=quick, as_json=json)
        return partial(_verify_and_sum, paths[0], strict, threads, output)
    return partial(_verify, paths, quick, strict, threads, output)


def _verify(
    paths: list[str], quick: bool, strict: bool, threads: int | None, output: Output
) -> int:
    from fastckpt._verify.verify import verify as verify_paths

    with progress_bar("verifying", output) as progress:
        report = verify_paths(paths, quick=quick, threads=threads, progress=progress)
    return print_report(
        "verify",
        report,
        lines=report_lines,
        document=report_document,
        messages=messages,
        output=output,
        exit_code=report.status.exit_code(strict=strict),
    )


def _check_sha256(paths: list[str], *, quick: bool, as_json: bool) -> None:
    if quick:
        raise typer.BadParameter(
            "--sha256 and --quick exclude each other: only verified files get a sum"
        )
    if as_json:
        raise typer.BadParameter("--sha256 prints lines for sha256sum: no --json")
    if len(paths) != 1:
        raise typer.BadParameter("--sha256 takes one PATH, to which the names are relative")


def _verify_and_sum(path: str, strict: bool, threads: int | None, output: Output) -> int:
    from fastckpt._verify.sha256 import Snapshot, files_to_sum
    from fastckpt._verify.verify import verify as verify_paths

    snapshot = Snapshot(path)
    with progress_bar("verifying", output) as progress:
        report = verify_paths(path, threads=threads, progress=progress)
    if not output.quiet:
        print_lines(report_lines(report), sys.stderr)
    files, omitted = files_to_sum(report, path)
    with progress_bar("hashing", output) as progress:
        sums = snapshot.sums(files, progress)
    # All of them or, where one cannot be read, none.
    print_sums(sums)
    print_messages((*messages(report), *sum_messages(sums, omitted)), output)
    return report.status.exit_code(strict=strict)
