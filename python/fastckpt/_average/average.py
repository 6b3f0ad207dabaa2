"""Average the models of several checkpoints, tensor by tensor, without holding one of them.

The elements are summed in float64 by the core and rounded once. What the inputs hold is known from
their outlines; only the records of the model's state dict are read.
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Iterable, Sequence

import torch

from fastckpt._archive.configuration import DEFAULT_ALIGNMENT
from fastckpt._archive.pickling import pickle_object
from fastckpt._archive.unpickling import host_storage
from fastckpt._arguments import checked_threads, output_path
from fastckpt._native import Commit, archive_nbytes, average
from fastckpt.errors import MissingChecksumWarning

from .inputs import total_weight
from .plan import AveragePlan
from .report import AverageReport

__all__ = ["AverageReport", "average_checkpoints", "average_files"]

_Path = str | os.PathLike[str]
_Progress = Callable[[int, int], None]

# No file is larger.
_NBYTES_MAX = 2**63 - 1


def average_checkpoints(
    checkpoints: Sequence[_Path],
    model: torch.nn.Module | None = None,
    *,
    weights: Sequence[float] | None = None,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> dict[str, torch.Tensor]:
    """Average the models of several checkpoints in memory.

    The model's state dict of a checkpoint is the saved object itself if all its values are tensors, else
    what it holds under "model_state_dict", "model_state", "state_dict" or "model".

    Floating and complex tensors become the weighted mean of their elements: summed in float64 in the
    order of the checkpoints, divided by the sum of the weights, rounded once to their dtype. Integer
    and bool tensors, and extra state, are those of the last checkpoint. Memory is needed for the
    result, and for pieces of the inputs.

    Args:
        checkpoints: At least one .pt file or step (``"runs/d12@100"``). They are only read; each record
            that is read is compared with its CRC-32.
        model: Where to load the result to, strictly, if given.
        weights: A finite number for each checkpoint; they need not add up to 1 [default: all the same]. A
            checkpoint of weight 0 has no part in the means.
        threads: Number of threads; None chooses.
        progress: Called with bytes done and bytes in all of the result, in the calling thread. What
            it raises ends the work.

    Returns:
        The state dict, in the order of the first checkpoint. Its tensors are on the CPU, not parameters,
        and share memory where they do in all the checkpoints.

    Raises:
        ValueError: The checkpoints have different keys, shapes or dtypes, which the message names, or
            the weights cannot be used.
        TypeError: `checkpoints` is not a list of paths.
        FormatError: A file is not a checkpoint or is damaged; `ContentsError` if it holds no state dict,
            or tensors that have no mean (sparse, quantized).
        ChecksumError: A record has changed since it was written; the message names the tensor.
        FileNotFoundError, OSError: A file cannot be read.

    If a file has no checksums, a `MissingChecksumWarning` says so.

    Example:
        >>> import fastckpt, torch
        >>> for step in (1, 2):
        ...     fastckpt.save({"w": torch.full((2,), float(step))}, f"average_{step}.pt")
        >>> average_checkpoints(["average_1.pt", "average_2.pt"])["w"]
        tensor([1.5000, 1.5000])
    """
    plan = AveragePlan.read(checkpoints, weights)
    for path in plan.unchecked:
        message = f"{path} has no checksums: its bytes are averaged unchecked"
        warnings.warn(message, MissingChecksumWarning, stacklevel=2)
    spans = average(plan.archives, plan.weights, plan.tensors(), threads=threads, progress=progress)
    storages = [
        host_storage(span, nbytes)
        for span, nbytes in zip(spans, plan.storage_nbytes(), strict=True)
    ]
    state = plan.build(storages)
    if model is not None:
        model.load_state_dict(state)
    return state


def average_files(
    checkpoints: Sequence[_Path],
    output: _Path | None = None,
    *,
    to: _Path | None = None,
    weights: Sequence[float] | None = None,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> AverageReport:
    """Average the models of several checkpoints into a new file, a piece of one tensor at a time.

    The result is that of `average_checkpoints`, but it is never in memory: its bytes are computed when
    they are written. The new file is a plain state dict that torch.load reads. It becomes visible
    once it is whole and durable, and everything that it was made of has been compared with its CRC-32;
    a crash, a kill or an error before that leaves at most a temporary file, which a later save
    removes.

    Args:
        checkpoints: As for `average_checkpoints`.
        output: The new file; must not exist.
        to: Another name of `output`.
        weights: As for `average_checkpoints`.
        threads: Number of threads; None chooses. Each takes up to 18 MB of memory.
        progress: As for `average_checkpoints`.

    Returns:
        What was written.

    Raises:
        FileExistsError: There is something at `output`.
        ValueError, TypeError, FormatError, ChecksumError, OSError: As for `average_checkpoints`; OSError also
            where the new file cannot be written.

    Example:
        >>> import fastckpt
        >>> report = average_files(["step_1.pt", "step_2.pt"], "mean.pt")  # doctest: +SKIP
    """
    target = output_path(output, to, 'average_files(["a.pt", "b.pt"], "mean.pt")')
    threads = checked_threads(threads)
    _refuse_existing(target)
    plan = AveragePlan.read(checkpoints, weights)
    sizes = plan.storage_nbytes()
    with Commit() as commit:
        # Before memory is reserved for what a file merely claims.
        commit.require_space(os.path.dirname(target), min(sum(sizes), _NBYTES_MAX))
        # Never touched, so never in memory: only their sizes are pickled.
        placeholders = [torch.UntypedStorage(nbytes, device="cpu") for nbytes in sizes]
        pickled = pickle_object(plan.build(placeholders))
        order = _order(pickled.storages, placeholders)
        tensors = plan.tensors()
        nbytes = archive_nbytes(
            target,
            len(pickled.data),
            [sizes[number] for number in order],
            alignment=DEFAULT_ALIGNMENT,
        )
        commit.require_space(os.path.dirname(target), nbytes)
        written = commit.write_average(
            target,
            pickled.data,
            plan.archives,
            plan.weights,
            [tensors[number] for number in order],
            threads=threads,
            progress=progress,
        )
        # Somebody may have been faster.
        _refuse_existing(target)
        commit.publish([target], replace=False)
    total = total_weight(plan.weights)
    return AverageReport(
        path=target,
        checkpoints=tuple(plan.paths),
        weights=tuple(weight / total for weight in plan.weights),
        tensors=len(plan.names),
        averaged=plan.averaged,
        nbytes=written.nbytes,
        unchecked=plan.unchecked,
    )


def _order(
    pickled: Iterable[torch.UntypedStorage], storages: Sequence[torch.UntypedStorage]
) -> list[int]:
    """Return which of our storages each pickled one is."""
    numbers = {storage._cdata: number for number, storage in enumerate(storages)}
    return [numbers[storage._cdata] for storage in pickled]


def _refuse_existing(path: str) -> None:
    if os.path.lexists(path):
        message = "the file exists already, and averages are only written to new files"
        raise FileExistsError(errno.EEXIST, message, path)
