"""Exit codes of the command, where no report decides.

Every other non-zero code is a failure.
"""

from fastckpt._verdict import EXIT_CODES

DAMAGED = EXIT_CODES["damaged"]
USAGE = 2
INCOMPLETE = EXIT_CODES["incomplete"]
NOT_FOUND = EXIT_CODES["not_found"]
# What cannot be looked into, as `verify --strict` has it for what cannot be checked.
UNCOVERED = EXIT_CODES["unchecked"]
IO_ERROR = EXIT_CODES["io_error"]
# EX_SOFTWARE of sysexits.h. Not 1, Python's own for a traceback: that would read as "damaged".
INTERNAL = 70
# 128 + SIGINT, as shells report it.
INTERRUPTED = 130
