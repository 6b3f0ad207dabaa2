"""What was restored, what was not, and what was not taken as it stood."""

from __future__ import annotations

from collections.abc import Iterable

from fastckpt.training.log import logger


class Report:
    """Collects what becomes of the parts of a checkpoint.

    Attributes:
        restored: What was restored, e.g. "optimizer".
        skipped: What was not, with the reason for each.
        adjusted: What was restored in another way than it stands in the file, and how.
    """

    def __init__(self) -> None:
        self.restored: list[str] = []
        self.skipped: dict[str, str] = {}
        self.adjusted: dict[str, str] = {}
        # What the caller has asked for, or what is as it should be, needs no warning.
        self._expected: set[str] = set()

    def skip(self, what: str, reason: str, *, expected: bool = False) -> None:
        """Note that something is not restored; `expected` where nobody has to be warned of it."""
        self.skipped[what] = reason
        if expected:
            self._expected.add(what)

    def adjust(self, what: str, notes: Iterable[str]) -> None:
        """Note how something is restored that does not stand so in the file."""
        words = [*([self.adjusted[what]] if what in self.adjusted else []), *notes]
        if words:
            self.adjusted[what] = "; ".join(words)

    def log(self, path: str) -> None:
        """Write it to the log: warnings for what was not restored though nobody asked for that."""
        logger.info("Restored from %s: %s", path, ", ".join(self.restored))
        for what, words in self.adjusted.items():
            logger.info("Adjusted while restoring from %s: %s (%s)", path, what, words)
        for what, reason in self.skipped.items():
            log = logger.info if what in self._expected else logger.warning
            log("Not restored from %s: %s (%s)", path, what, reason)
