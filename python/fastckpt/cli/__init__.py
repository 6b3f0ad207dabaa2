"""The `fastckpt` command. One module a command; `app` puts them together."""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line in `sys.argv` and exit."""
    try:
        # Ctrl-C while this imports shows no traceback either.
        from fastckpt.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
