"""Options that several commands have, and what a command returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

#: The work of a command, done once its options are parsed; returns the exit code.
Task = Callable[[], int]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, help="Threads to work with; as many as fit the machine without it."
    ),
]
