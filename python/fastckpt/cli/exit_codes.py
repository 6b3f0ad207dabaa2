"""Exit codes of the command, the same for all commands, and the line that each help text ends with.

docs/README.md has them in a table. Every other non-zero code is a failure too.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastckpt._verdict import EXIT_CODES

DAMAGED = EXIT_CODES["damaged"]
USAGE = 2
INCOMPLETE = EXIT_CODES["incomplete"]
NOT_FOUND = EXIT_CODES["not_found"]
# A file that cannot be looked into, as `verify --strict` has it for a file that cannot be checked.
UNCOVERED = EXIT_CODES["unchecked"]
IO_ERROR = EXIT_CODES["io_error"]
# EX_SOFTWARE of sysexits.h. Not 1, Python's own for a traceback: that would read as "damaged".
INTERNAL = 70
# 128 + SIGINT, as shells report it.
INTERRUPTED = 130
# 128 + SIGPIPE, likewise.
CLOSED_PIPE = 141

_COMMON = {USAGE: "wrong usage", IO_ERROR: "I/O error", INTERRUPTED: "interrupted"}


def epilog(meanings: Mapping[int, str]) -> str:
    """Return the end of a help text: what each exit code means."""
    words = {**_COMMON, **meanings}
    codes = ", ".join(f"{code} {words[code]}" for code in sorted(words))
    return f"Exit codes: {codes}. Any other code but 0 is a failure too."
