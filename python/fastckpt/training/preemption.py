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
        requested: Whether to save and end. Several ranks all see it at the same step: the one at which
            `should_save` returned True because of it.
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
        """The signal that this process has received; None before that."""
        return self._received

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "preemption() works in the main thread only, where Python delivers signals: enter it there, "
                "around the training loop"
            )
        for number in self._signals:
            if signal.getsignal(number) is None:
                raise RuntimeError(
                    f"cannot restore the handler of {number.name} afterwards, since Python did not "
                    "install it: leave that signal out of preemption()"
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
        # No save followed, so the previous handler gets the signal. An exception ends the loop anyway.
        if self._received is not None and not self.is_saved and kind is None:
            signal.raise_signal(self._received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Only noted, since a handler may interrupt anything. A launcher may send it more than once.
        self._received = number


def agree(preemption: Preemption) -> bool:
    """Whether any rank has received the signal and has not saved since; a collective with several ranks."""
    if preemption.is_saved:
        return False
    if not preemption.requested and any_rank(preemption.received is not None):
        preemption.requested = True
        logger.warning("Asked to end (signal %s): saving after this step", preemption.received)
    return preemption.requested
