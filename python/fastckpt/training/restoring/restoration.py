"""The restoring of several objects as one: all of them, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fastckpt.training.log import logger

from .snapshot import Undo, nothing_to_undo


@dataclass(frozen=True)
class Restoration:
    """One object that gets its state.

    Attributes:
        what: What it is called in messages.
        load: Gives it its state.
        remember: Takes a snapshot, and returns what puts it back.
        may_refuse: Whether code that is not torch's or ours decides whether the state fits.
    """

    what: str
    load: Callable[[], None]
    remember: Callable[[], Undo] = nothing_to_undo
    may_refuse: bool = False


def load_all(restorations: Iterable[Restoration], put_back_last: Callable[[], None]) -> None:
    """Load all states; where one of them raises, put back every object that was touched.

    Those that may refuse come first, and last those of which it is known that they will not: nothing is
    copied for them.

    Args:
        restorations: What to load, in any order.
        put_back_last: Called after the objects were put back: for what loading may change beside them.
    """
    undone_by: list[tuple[str, Undo]] = []
    try:
        for one in sorted(restorations, key=_rank):
            undone_by.append((one.what, one.remember()))
            one.load()
    except BaseException:
        for what, undo in reversed(undone_by):
            try:
                undo()
            except Exception:  # noqa: BLE001 - whatever it is, the others have to be put back
                logger.exception("%s could not be put back: it may be changed in part", what)
        put_back_last()
        raise


def _rank(one: Restoration) -> tuple[bool, bool]:
    return not one.may_refuse, one.remember is nothing_to_undo
