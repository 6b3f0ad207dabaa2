"""The progress bar: on stderr, only where that is a terminal, and only where it takes a while."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fastckpt.cli.output import Output

if TYPE_CHECKING:
    from rich.progress import Progress

ProgressFunction = Callable[[int, int], None]

# What is done sooner needs no bar: it would only flicker.
_DELAY_SECS = 0.5


def wants_progress() -> bool:
    """Whether a bar may be shown: a terminal that can redraw a line, and nobody switched it off."""
    return (
        sys.stderr.isatty()
        and os.environ.get("TERM") != "dumb"
        and os.environ.get("FASTCKPT_PROGRESS") != "0"
    )


@contextmanager
def progress_bar(
    description: str, output: Output, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[ProgressFunction | None]:
    """Show a bar with rate and remaining time, after half a second.

    Args:
        description: What is being done.
        output: What the command may show.
        clock: Seconds that pass.

    Yields:
        What to call with (done, total) bytes; None where no bar may be shown.
    """
    if output.quiet or not wants_progress():
        yield None
        return
    bar = _DelayedBar(description, clock)
    try:
        yield bar.update
    finally:
        bar.stop()


class _DelayedBar:
    """A bar that appears with the first news after the delay."""

    def __init__(self, description: str, clock: Callable[[], float]) -> None:
        self._description = description
        self._clock = clock
        self._started = clock()
        self._bar: Progress | None = None

    def update(self, done: int, total: int) -> None:
        """Take note of how far the work has got."""
        if self._bar is None:
            if self._clock() - self._started < _DELAY_SECS:
                return
            self._bar = _new_bar()
            self._bar.start()
            self._bar.add_task(self._description, total=None)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def stop(self) -> None:
        """Remove it: the verdict is what stays on the screen."""
        if self._bar is not None:
            self._bar.stop()


def _new_bar() -> Progress:
    # Imported only here: what is done at once does not wait for it.
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
        # As wide as the other columns leave room for.
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True, expand=True)
