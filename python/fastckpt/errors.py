"""The exceptions of fastckpt.

Failures of the operating system stay the builtin `OSError` subclasses, with `errno` and
`filename`: a file that is not there is a `FileNotFoundError`, a full disk an `OSError` with
`ENOSPC`. What is wrong with a checkpoint itself is a `CheckpointError`:

=========================== ============================ =======================================
exception                   is also a                    raised for
=========================== ============================ =======================================
`FormatError`               `RuntimeError`               a file that is not a checkpoint, or is
                                                         damaged
`ContentsError`             `FormatError`                a sound file without what was asked for,
                                                         the state dict of a model say
`UncoveredFormatError`      `FormatError`                a sound file in a format that cannot be
                                                         looked into without executing it
`TorchScriptError`          `FormatError`                a TorchScript archive
`ChecksumError`             `RuntimeError`               bytes that have changed since they were
                                                         written
`UnsafePickleError`         `pickle.UnpicklingError`     what ``weights_only=True`` refuses
`IncompleteCheckpointError` `FileNotFoundError`          files of a step that are missing
`CommitUnknownError`        `OSError`                    a save that may or may not survive a
                                                         power cut
=========================== ============================ =======================================

The second column is what torch.load or nanochat raise in the same place (torch.load raises
RuntimeError for most damaged archives), so that code which catches those keeps working.

A metric that is asked for and missing is a `ValueError`: `UnknownMetricError` where no checkpoint has
it, `MissingMetricError` (also a `KeyError`) where a save lacks it.

All of them are names of the package: `fastckpt.FormatError`, and so on. This module imports neither torch
nor the native core.
"""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

__all__ = [
    "CheckpointError",
    "ChecksumError",
    "CommitUnknownError",
    "ContentsError",
    "FormatError",
    "IncompleteCheckpointError",
    "MissingChecksumWarning",
    "MissingMetricError",
    "StateMismatchError",
    "TorchScriptError",
    "UncoveredFormatError",
    "UnknownMetricError",
    "UnsafePickleError",
]

# Enough to see which names there are.
_METRICS_SHOWN = 20


class CheckpointError(Exception):
    """Something is wrong with a checkpoint; the base of all exceptions of fastckpt.

    Args:
        message: What happened, where, and what to do.
        path: The file or directory, if there is one.
    """

    path: str | None

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path

    def _details(self) -> dict[str, Any]:
        """Keyword arguments that make this exception again, for pickling."""
        return {"path": self.path}

    def __reduce__(self) -> tuple[Callable[..., CheckpointError], tuple[Any, ...]]:
        return partial(type(self), **self._details()), self.args


class FormatError(CheckpointError, RuntimeError):
    """The file is not a checkpoint, or its structure is damaged."""


class ContentsError(FormatError):
    """The file is sound, and does not hold what was asked for: the state dict of a model, say."""


class TorchScriptError(FormatError):
    """The file is a TorchScript archive, which only torch.load with ``weights_only=False`` reads."""


class UncoveredFormatError(FormatError):
    """The file is not damaged, and cannot be looked into without executing it.

    Args:
        message: What it is.
        path: The file.
        hint: What to do instead.
    """

    hint: str

    def __init__(self, message: str, *, path: str | None = None, hint: str = "") -> None:
        super().__init__(message, path=path)
        self.hint = hint

    def _details(self) -> dict[str, Any]:
        return {**super()._details(), "hint": self.hint}


class ChecksumError(CheckpointError, RuntimeError):
    """Bytes of a file have changed since they were written, or cannot be checked.

    Args:
        message: What happened, where, and what to do.
        path: The file.
        record: The record in the archive, such as ``data/17``.
        tensors: Names of the tensors that lie in the record.
        offset: First byte of the record in the file.
        nbytes: Length of the record in bytes.
        expected: CRC-32 that the file states for the record.
        found: CRC-32 of the bytes that are there.
    """

    record: str | None
    tensors: list[str]
    offset: int | None
    nbytes: int | None
    expected: int | None
    found: int | None

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        record: str | None = None,
        tensors: Sequence[str] = (),
        offset: int | None = None,
        nbytes: int | None = None,
        expected: int | None = None,
        found: int | None = None,
    ) -> None:
        super().__init__(message, path=path)
        self.record = record
        self.tensors = list(tensors)
        self.offset = offset
        self.nbytes = nbytes
        self.expected = expected
        self.found = found

    def _details(self) -> dict[str, Any]:
        names = ("record", "tensors", "offset", "nbytes", "expected", "found")
        return super()._details() | {name: getattr(self, name) for name in names}


class UnsafePickleError(CheckpointError, pickle.UnpicklingError):
    """The file asks for something that ``weights_only=True`` does not allow.

    A refusal never falls back to ``weights_only=False``: only the caller can ask for that.
    """


class IncompleteCheckpointError(CheckpointError, FileNotFoundError):
    """Files that belong to a checkpoint are missing."""

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message, path=path)
        self.errno = errno.ENOENT
        self.filename = path

    def __str__(self) -> str:
        # OSError would put "[Errno 2]" in front and the file name behind.
        return str(self.args[0])


class CommitUnknownError(CheckpointError, OSError):
    """A file was renamed into place, but its directory could not be made durable.

    The new file is there and whole. It may be gone after a power cut, and the file that it replaced may
    be back.

    Args:
        code: The `errno` of the failure.
        message: What failed.
        path: The file that was published.
    """

    def __init__(self, code: int, message: str, path: str | None = None) -> None:
        # Not CheckpointError.__init__: OSError fills errno, strerror and filename by position.
        OSError.__init__(self, code, message, path)
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., CheckpointError], tuple[Any, ...]]:
        return type(self), (self.errno, self.strerror, self.path)


class StateMismatchError(RuntimeError, ValueError):
    """The state in a checkpoint does not fit the object, or the number of ranks, that was to get it.

    Nothing was changed, and the checkpoint is not damaged. A RuntimeError, as `Module.load_state_dict`
    raises, and a ValueError, as `Optimizer.load_state_dict` does.
    """


class MissingChecksumWarning(UserWarning):
    """A file was loaded unchecked, because its writer had switched checksums off."""


class MissingMetricError(KeyError, ValueError):
    """A save lacks the metric that decides which checkpoint is the best.

    It is a KeyError, since a key is missing, and a ValueError, since many expect that of a wrong
    argument.
    """

    def __str__(self) -> str:
        # KeyError would show the message as a quoted key.
        return str(self.args[0])


class UnknownMetricError(ValueError):
    """No checkpoint has the metric.

    Args:
        metric_name: The metric.
        available: The metrics that there are, the one with the most similar name first.
        where: What was looked through: "runs/d12", or "6 checkpoints".
    """

    metric_name: str
    available: list[str]
    where: str

    def __init__(self, metric_name: str, available: Sequence[str], where: str) -> None:
        self.metric_name = metric_name
        self.available = list(available)
        self.where = where
        shown = ", ".join(self.available[:_METRICS_SHOWN])
        hidden = len(self.available) - _METRICS_SHOWN
        more = f" and {hidden} more" if hidden > 0 else ""
        there = f"available: {shown}{more}" if shown else "there are no metrics at all"
        super().__init__(f"no metric {metric_name!r} in {where} ({there})")

    def __reduce__(self) -> tuple[type[UnknownMetricError], tuple[str, list[str], str]]:
        return type(self), (self.metric_name, self.available, self.where)


# Where a reader of a traceback finds them. Pickles say so too.
for _name in __all__:
    globals()[_name].__module__ = __package__
