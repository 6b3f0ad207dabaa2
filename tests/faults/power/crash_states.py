"""What a disk may hold after a power cut: all that was flushed, and any part of the rest.

A disk with a cache may write what it holds in any order, and the power may go while it writes:
a sector of 512 bytes is then there or is not, a larger write may be there in part.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tests.faults.power.block_log import BlockLog
from tests.faults.power.recorder import WRITE, ZERO

SECTOR_NBYTES = 512
# Of the unflushed writes, how many are lost at random: few, half, most.
_LOSSES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Tear:
    """A write of which one part is on the disk: up to `nbytes`, or from there on."""

    entry: int
    nbytes: int
    keeps_beginning: bool


@dataclass(frozen=True)
class CrashState:
    """A power cut when the disk had answered `cut` requests; `lost` are those that it forgot."""

    cut: int
    lost: frozenset[int]
    tear: Tear | None = None

    def __str__(self) -> str:
        lost = ", ".join(map(str, sorted(self.lost)))
        return f"cut after {self.cut} requests, of which are lost: [{lost}], torn: {self.tear}"


def unflushed(log: BlockLog, cut: int) -> list[int]:
    """Return which of the first `cut` entries a power cut may take back."""
    candidates = range(log.count_durable(cut), cut)
    return [i for i in candidates if log.entries[i].kind in (WRITE, ZERO)]


def draw_states(
    log: BlockLog,
    marks: Sequence[int],
    count: int,
    generator: random.Random,
    whole: Collection[int] = (),
) -> list[CrashState]:
    """Draw different crash states, in the order in which the disk came to them.

    Args:
        log: What was recorded.
        marks: Numbers of entries at which something was begun or acknowledged; the first and the
            last of them bound the cuts.
        count: How many; a short log may have fewer.
        generator: Decides.
        whole: Offsets of writes that are never torn.
    """
    states: set[CrashState] = set()
    for _ in range(20 * count):
        if len(states) == count:
            break
        states.add(_draw_state(log, _draw_cut(log, marks, generator), generator, whole))
    return sorted(states, key=lambda state: (state.cut, sorted(state.lost), str(state.tear)))


def _draw_cut(log: BlockLog, marks: Sequence[int], generator: random.Random) -> int:
    # From the first block on that was written then, by whomever.
    first = marks[0] + 1
    last = max(first, marks[-1])
    flushes = [i for i in log.flushes if first <= i < last]
    kind = generator.choice(["after a flush", "before a flush", "mark", "mark", "anywhere"])
    if kind == "after a flush" and flushes:
        # At the flush itself nothing can be lost, so some of the next writes are there too.
        cut = generator.choice(flushes) + 1 + generator.choice([0, 1, 2, 5])
    elif kind == "before a flush" and flushes:
        cut = generator.choice(flushes)
    elif kind == "mark":
        cut = generator.choice(marks) + generator.choice([-2, -1, -1, 0, 0, 1, 2])
    else:
        cut = generator.randint(first, last)
    return min(max(cut, first), last)


def _draw_state(
    log: BlockLog, cut: int, generator: random.Random, whole: Collection[int]
) -> CrashState:
    writes = unflushed(log, cut)
    kind = generator.choice(["none", "all", "all", "subset", "subset", "torn", "torn"])
    if kind == "none":
        return CrashState(cut, frozenset(writes))
    if kind == "all":
        return CrashState(cut, frozenset())
    tear = None
    if kind == "torn":
        tear = _draw_tear(log, [i for i in writes if log.entries[i].offset not in whole], generator)
    loss = generator.choice(_LOSSES)
    lost = {i for i in writes if generator.random() < loss}
    if tear is not None:
        lost.discard(tear.entry)
    return CrashState(cut, frozenset(lost), tear)


def _draw_tear(log: BlockLog, writes: list[int], generator: random.Random) -> Tear | None:
    wide = [i for i in writes if log.entries[i].nbytes > SECTOR_NBYTES]
    if not wide:
        return None
    entry = generator.choice(wide)
    sectors = log.entries[entry].nbytes // SECTOR_NBYTES
    return Tear(entry, SECTOR_NBYTES * generator.randrange(1, sectors), generator.random() < 0.5)
