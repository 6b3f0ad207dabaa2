"""Work in a child that is watched: what it imports, opens and starts, and how much it takes."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.children import run_in_child

# Address space that may be reserved: the stacks of a few threads and malloc's arenas for them.
_RESERVED_MAX_NBYTES = 1 << 30
# Far more than any refusal takes, and far less than a test may.
_CPU_MAX_SECS = 20
# They tell of Python's own doings: attributes looked at, ids, frames, the collector.
_HARMLESS = ("object.__getattr__", "builtins.id", "sys._getframe", "gc.")
# They look at a directory, and no more.
_LISTINGS = ("os.listdir", "os.scandir")


@dataclass(frozen=True)
class Sighting:
    """What was seen of work that came to its end.

    Attributes:
        value: What it returned.
        events: Everything that Python's audit hooks told, but for what is harmless.
        grown_nbytes: How far the resident memory rose at most.
    """

    value: Any
    events: list[str]
    grown_nbytes: int


@dataclass(frozen=True)
class Refusal:
    """An exception, told without a look at the source code: that would open files.

    Attributes:
        kinds: The names of its class and of the classes above it.
        words: Its message.
    """

    kinds: list[str]
    words: str

    def is_a(self, *kinds: type[BaseException]) -> bool:
        """Whether `except` with one of these classes would catch it."""
        return any(kind.__name__ in self.kinds for kind in kinds)


def refusal_by(work: Callable[[], object]) -> dict[str, Any] | None:
    """Run; return the arguments of a `Refusal`, or None where there is none."""
    try:
        work()
    except BaseException as error:
        return {"kinds": [kind.__name__ for kind in type(error).__mro__], "words": str(error)}
    return None


def watched(work: Callable[[], Any], directory: Path) -> Sighting:
    """Do work in a child that may open files in `directory` only, with limits on memory and time.

    Raises:
        AssertionError: The child died: of a signal, of the limit of time, or of an exception.
    """
    outcome = run_in_child(lambda: _watch(work, str(directory)))
    assert outcome.ok, str(outcome)
    return Sighting(**outcome.value)


def _watch(work: Callable[[], Any], directory: str) -> dict[str, Any]:
    events: list[str] = []
    # The hook cannot be removed: it ends with the child.
    watching = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and not _is_harmless(event, arguments, directory):
            events.append(f"{event} {arguments!r}"[:200])

    _limit()
    _reset_peak()
    before = _peak_nbytes()
    sys.addaudithook(hook)
    try:
        value = work()
    finally:
        watching = False
        grown_nbytes = _peak_nbytes() - before
        _lift()
    return {"value": value, "events": events, "grown_nbytes": grown_nbytes}


def _is_harmless(event: str, arguments: tuple[Any, ...], directory: str) -> bool:
    if event.startswith(_HARMLESS):
        return True
    if event in _LISTINGS or event == "open":
        # A number is a file that is open already.
        return isinstance(arguments[0], int) or str(arguments[0]).startswith(directory)
    return False


def _limit() -> None:
    reserved = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _set(resource.RLIMIT_AS, reserved + _RESERVED_MAX_NBYTES)
    _set(resource.RLIMIT_CPU, _CPU_MAX_SECS)


def _lift() -> None:
    """Let the child report."""
    _set(resource.RLIMIT_AS, resource.RLIM_INFINITY)


def _set(limit: int, value: int) -> None:
    _, highest = resource.getrlimit(limit)
    resource.setrlimit(limit, (value if highest < 0 else min(value, highest), highest))


def _reset_peak() -> None:
    """Let the peak of resident memory begin anew: proc(5), clear_refs."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak_nbytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmHWM")
