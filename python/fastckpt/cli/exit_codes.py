"""Exit codes of the command that no verdict on a checkpoint decides.

Those of verdicts are in `fastckpt._verify.report.Status`. Every other non-zero code is a failure.
"""

# As for a file that is verified and damaged.
DAMAGED = 1
USAGE = 2
# As for a path that is verified and not there.
NOT_FOUND = 4
# What cannot be looked into, as `verify --strict` has it for what cannot be checked.
UNCOVERED = 5
IO_ERROR = 6
# EX_SOFTWARE of sysexits.h. Not 1, Python's own for a traceback: that would read as "damaged".
INTERNAL = 70
# 128 + SIGINT, as shells report it.
INTERRUPTED = 130
