"""Options that several commands have, and what a command returns."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Annotated, Any

import typer

#: The work of a command, done once its options are parsed; returns the exit code.
Task = Callable[[], int]


class Mode(str, enum.Enum):
    """Which values of a metric are better."""

    MIN = "min"
    MAX = "max"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Quiet = Annotated[
    bool,
    typer.Option(
        "-q", "--quiet", help="Print only errors and warnings; the exit code says the rest."
    ),
]
DryRun = Annotated[
    bool, typer.Option("-n", "--dry-run", help="Say what would be deleted; delete nothing.")
]
# The name that the argument has in Python; the help has room for one.
MetricName = Annotated[str | None, typer.Option("--metric-name", metavar="NAME", hidden=True)]
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=1, help="Number of threads [default: automatic]"),
]


def to_option(metavar: str, description: str | None = None) -> Any:
    """Return the option --to, for an argument that is called `metavar`."""
    words = description or f"{metavar}, as an option."
    return typer.Option("--to", "--output", "-o", metavar=metavar, help=words)


def destination(argument: str | None, option: str | None, metavar: str) -> str:
    """Return where to write: the last argument, or --to.

    Raises:
        typer.BadParameter: It is missing, or there are two.
    """
    if argument is not None and option is not None:
        raise typer.BadParameter(
            f"{metavar} is named twice, {argument!r} and {option!r}: name it once, last or after --to"
        )
    found = option if argument is None else argument
    if found is None:
        raise typer.BadParameter(f"Missing {metavar}: name it last or after --to")
    return found
