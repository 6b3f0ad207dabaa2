"""The progress bar: on stderr, and only where that is a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ProgressFunction = Callable[[int, int], None]


def wants_progress() -> bool:
    """Whether a bar may be shown: a terminal that can redraw a line, and nobody switched it off."""
    return (
        sys.stderr.isatty()
        and os.environ.get("TERM") != "dumb"
        and os.environ.get("FASTCKPT_PROGRESS") != "0"
    )


@contextmanager
def progress_bar(description: str) -> Iterator[ProgressFunction | None]:
    """Show a bar with rate and remaining time; yields what to call with (done, total) bytes."""
    if not wants_progress():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    # Transient: the verdict is what stays on the screen.
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
