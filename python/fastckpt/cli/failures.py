"""Why a command has no result: from exception to status, exit code and hint, for all commands.

A command raises what its function raises, and `app` asks this table. Damage is said only where a checksum or
the structure of a file says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastckpt.cli import exit_codes
from fastckpt.cli.output import printable
from fastckpt.errors import (
    ChecksumError,
    ContentsError,
    FormatError,
    IncompleteCheckpointError,
    TorchScriptError,
    UncoveredFormatError,
    UnknownMetricError,
    UnsafePickleError,
)


@dataclass(frozen=True)
class Failure:
    """What is said of a failure, and what the process exits with.

    Attributes:
        status: One word for programs.
        exit_code: What the process exits with.
        message: What happened, and where.
        hint: What to do, if that is known.
    """

    status: str
    exit_code: int
    message: str
    hint: str | None = None


def judge(error: Exception, command: str | None) -> Failure | None:
    """Return what to say of an exception; None for one that only a bug can raise."""
    row = next((row for row in _TABLE if row.matches(error)), None)
    if row is None:
        return None
    hint = row.hint(error, command)
    exit_code = _OWN_CODES.get((command, row.status), row.exit_code)
    message = _message(error, command)
    return Failure(row.status, exit_code, printable(message), hint and printable(hint))


# What is said.


def _message(error: Exception, command: str | None) -> str:
    if isinstance(error, ImportError):
        if error.name == "torch":
            return f"{command} needs torch"
        return str(error).partition(": ")[0]
    if isinstance(error, OSError) and error.filename and error.strerror:
        if isinstance(error, FileExistsError):
            return f"{_name(error)} exists already, and {command} only writes new files"
        return f"{_name(error)}: {error.strerror}"
    return str(error) or type(error).__name__


def _name(error: OSError) -> str:
    name = error.filename
    return name if isinstance(name, str) else str(name)


def _path(error: Exception) -> str | None:
    path = getattr(error, "path", None)
    return path if isinstance(path, str) else None


# What to do.


def _nothing(error: Exception, command: str | None) -> str | None:
    return None


def _install(error: Exception, command: str | None) -> str | None:
    if isinstance(error, ImportError) and error.name == "torch":
        return "pip install torch"
    return str(error).partition(": ")[2] or None


def _another_destination(error: Exception, command: str | None) -> str:
    return "name another destination after --to"


def _own_hint(error: Exception, command: str | None) -> str | None:
    return getattr(error, "hint", "") or None


def _which_paths(error: Exception, command: str | None) -> str | None:
    return PATHS.get(command or "")


def _repair(error: Exception, command: str | None) -> str | None:
    path = _path(error)
    if path is None:
        return None
    return (
        f"`fastckpt verify {path}` lists what is damaged, "
        f"`fastckpt repair {path} --to NEW` recovers the rest"
    )


def _verify(error: Exception, command: str | None) -> str | None:
    path = _path(error)
    return None if path is None else f"`fastckpt verify {path}` says what is wrong"


def _less_memory(error: Exception, command: str | None) -> str:
    return "free some memory, or use fewer threads (--threads 1)"


def _trust(error: Exception, command: str | None) -> str:
    return (
        "the file is not damaged: it asks for objects that torch.load(weights_only=True) does not build. "
        "If you trust its author, load it with weights_only=False and save what you need"
    )


def _metric(error: Exception, command: str | None) -> str:
    available = getattr(error, "available", [])
    if available:
        return f"try --metric {available[0]}"
    return "`fastckpt inspect` shows what the checkpoints hold"


def _usage(error: Exception, command: str | None) -> str | None:
    if "does not go with" in str(error):
        return "`fastckpt diff` shows how two checkpoints differ"
    return f"try `fastckpt {command} --help`"


#: What a command takes, said where it was given a path that leads nowhere.
PATHS = {
    "verify": "give a .pt file, a step (runs/d12@1200), a checkpoint directory or a parent of one",
    "inspect": "give a .pt file, a step (runs/d12@1200), a checkpoint directory or a parent of one",
    "top": "give checkpoint directories, steps (runs/d12@1200) or files",
    "diff": "give two files or steps (runs/d12@1200)",
    "average": "give .pt files or steps (runs/d12@1200)",
    "copy": "give a run's directory, a step of it (runs/d12@1200), or a .pt file",
    "export": "give a .pt file, a step (runs/d12@1200) or a .safetensors file",
}


@dataclass(frozen=True)
class _Row:
    kinds: tuple[type[Exception], ...]
    status: str
    exit_code: int
    hint: Callable[[Exception, str | None], str | None] = _nothing

    def matches(self, error: Exception) -> bool:
        if self.kinds == (ValueError,):
            # Its subclasses are raised by what works with data: they are not said to be wrong usage.
            return type(error) is ValueError
        if self.kinds == (ImportError,):
            # Else it is a bug: a module that is ours cannot be imported.
            return isinstance(error, ImportError) and (
                error.name == "torch" or "pip install" in str(error)
            )
        return isinstance(error, self.kinds)


# The first row that fits counts: subclasses stand before what they are subclasses of.
_TABLE = (
    _Row((ImportError,), "usage", exit_codes.USAGE, _install),
    _Row((FileExistsError,), "usage", exit_codes.USAGE, _another_destination),
    _Row((IncompleteCheckpointError,), "incomplete", exit_codes.INCOMPLETE),
    _Row((FileNotFoundError, NotADirectoryError), "not_found", exit_codes.NOT_FOUND, _which_paths),
    _Row((UnknownMetricError,), "not_found", exit_codes.NOT_FOUND, _metric),
    _Row((UncoveredFormatError, TorchScriptError), "uncovered", exit_codes.UNCOVERED, _own_hint),
    _Row((UnsafePickleError,), "refused", exit_codes.UNCOVERED, _trust),
    _Row((ContentsError,), "unusable", exit_codes.DAMAGED),
    _Row((ChecksumError,), "damaged", exit_codes.DAMAGED, _repair),
    _Row((FormatError,), "damaged", exit_codes.DAMAGED, _verify),
    _Row((OSError,), "io_error", exit_codes.IO_ERROR),
    _Row((MemoryError,), "io_error", exit_codes.IO_ERROR, _less_memory),
    _Row((ValueError,), "usage", exit_codes.USAGE, _usage),
)
# The one exception: 1 is "different" there, as in diff(1), so damage must not be.
_OWN_CODES: dict[tuple[str | None, str], int] = {
    ("diff", "damaged"): exit_codes.IO_ERROR,
    ("diff", "unusable"): exit_codes.IO_ERROR,
}
