"""A signal that ends a job, turned into a save at the next step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from .log import logger
from .ranks import any_rank

if TYPE_CHECKING:
    from typing_extensions import Self


class Preemption:
    """Catches signals while it is entered; see `CheckpointManager.preemption`.

    Attributes:
        requested: Whether to save and end. With several ranks all see it at the same step, in the
            `should_save` that said yes because of it.
        is_saved: Whether a save has succeeded since then.
    """

    def __init__(
        self, signals: Sequence[int], on_change: Callable[[Preemption | None], None]
    ) -> None:
        self.requested = False
        self.is_saved = False
        self._signals = tuple(signal.Signals(number) for number in signals)
        self._on_change = on_change
        self._previous: dict[signal.Signals, Any] = {}
        self._received: int | None = None

    @property
    def received(self) -> int | None:
        """The signal that this process has got; None if none yet."""
        return self._received

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "preemption() works in the main thread only: Python delivers signals to no other. "
                "Enter it there, around the training loop"
            )
        for number in self._signals:
            if signal.getsignal(number) is None:
                raise RuntimeError(
                    f"the handler of {number.name} was not installed by Python, so that it could "
                    "not be restored afterwards: leave that signal out of preemption()"
                )
        self._on_change(self)
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        self._on_change(None)
        # Nobody came to act on it: it goes to whoever would have got it. An exception that is on
        # its way ends the loop as well.
        if self._received is not None and not self.is_saved and kind is None:
            signal.raise_signal(self._received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Only a note: a handler may interrupt anything. A launcher may send it more than once.
        self._received = number


def agree(preemption: Preemption) -> bool:
    """Whether any rank has got the signal and has not saved since; a collective where there are several."""
    if preemption.is_saved:
        return False
    if not preemption.requested and any_rank(preemption.received is not None):
        preemption.requested = True
        logger.warning("Asked to end (signal %s): saving after this step", preemption.received)
    return preemption.requested
