"""`fastckpt verify`: does a checkpoint hold the bytes that were written?"""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import typer

from fastckpt.cli.options import Json, Task, Threads
from fastckpt.cli.output import print_document, print_lines, print_message
from fastckpt.cli.progress import progress_bar
from fastckpt.cli.verify_output import (
    messages,
    print_sums,
    report_document,
    report_lines,
    sum_messages,
)

EPILOG = (
    "Exit codes: 0 good, 1 damaged, 2 usage, 3 incomplete, 4 not found, "
    "5 no checksums to check (with --strict), 6 I/O error, 130 interrupted. "
    "Any other code but 0 is a failure too."
)


def verify(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Files, checkpoint directories, or directories above them.",
        ),
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="Check the structure only; do not read the tensors.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail (code 5) where a file holds no checksums.")
    ] = False,
    threads: Threads = None,
    json: Json = False,
    sha256: Annotated[
        bool,
        typer.Option(
            "--sha256",
            help="Print the SHA-256 of each file of the good steps, for sha256sum -c; "
            "the report goes to stderr.",
        ),
    ] = False,
) -> Task:
    """Read every byte of a checkpoint and compare it with the checksums in the file.

    Finds any flipped bit of a file that torch.save or fastckpt wrote, files that are missing from
    a step, and meta files that are no JSON. Needs neither torch nor a GPU.
    """
    if sha256:
        _check_sha256(paths, quick=quick, as_json=json)
        return partial(_verify_and_sum, paths[0], strict=strict, threads=threads)
    return partial(_verify, paths, quick=quick, strict=strict, threads=threads, as_json=json)


def _verify(
    paths: list[str], *, quick: bool, strict: bool, threads: int | None, as_json: bool
) -> int:
    from fastckpt._verify.verify import verify as verify_paths

    with progress_bar("verifying") as progress:
        report = verify_paths(paths, quick=quick, threads=threads, progress=progress)
    status = report.status
    exit_code = status.exit_code(strict=strict)
    if as_json:
        print_document("verify", status.value, exit_code, report=report_document(report))
    else:
        print_lines(report_lines(report))
    for kind, text in messages(report):
        print_message(kind, text)
    return exit_code


def _check_sha256(paths: list[str], *, quick: bool, as_json: bool) -> None:
    if quick:
        raise typer.BadParameter("--sha256 is for files whose every byte was verified: no --quick")
    if as_json:
        raise typer.BadParameter("--sha256 prints lines for sha256sum: no --json")
    if len(paths) != 1:
        raise typer.BadParameter("--sha256 takes one PATH, to which the names are relative")


def _verify_and_sum(path: str, *, strict: bool, threads: int | None) -> int:
    from fastckpt._verify.sha256 import Snapshot, files_to_sum
    from fastckpt._verify.verify import verify as verify_paths

    snapshot = Snapshot(path)
    with progress_bar("verifying") as progress:
        report = verify_paths(path, threads=threads, progress=progress)
    print_lines(report_lines(report), sys.stderr)
    files, omitted = files_to_sum(report, path)
    with progress_bar("hashing") as progress:
        sums = snapshot.sums(files, progress)
    # All of them or, where one cannot be read, none.
    print_sums(sums)
    for kind, text in (*messages(report), *sum_messages(sums, omitted)):
        print_message(kind, text)
    return report.status.exit_code(strict=strict)
