"""The verdict of a report in one word, and the exit code that goes with it: the same for all commands."""

from __future__ import annotations

from types import MappingProxyType

#: The exit code of each verdict.
EXIT_CODES = MappingProxyType(
    {
        "good": 0,
        "same": 0,
        "written": 0,
        "exported": 0,
        "damaged": 1,
        # As `diff` has it.
        "different": 1,
        # Something could have been done, and was not, since it might have been the last good one.
        "blocked": 1,
        # As for wrong usage: something else is where the command was told to write.
        "conflict": 2,
        "incomplete": 3,
        "not_found": 4,
        # Only where a file without checksums is a failure: `verify --strict`.
        "unchecked": 5,
        "io_error": 6,
    }
)


class Judged:
    """A report with a verdict in one word, `status`."""

    @property
    def status(self) -> str:
        """The verdict: one of `EXIT_CODES`."""
        raise NotImplementedError

    @property
    def exit_code(self) -> int:
        """Exit code of the command for this report."""
        return EXIT_CODES[self.status]

    @property
    def ok(self) -> bool:
        """Whether the exit code is 0."""
        return self.exit_code == 0

    def __bool__(self) -> bool:
        """Return `ok`, so that ``if report:`` asks what it seems to."""
        return self.ok
