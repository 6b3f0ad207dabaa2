"""What to say when a file of a step is not there."""

import errno
import os

from fastckpt.errors import IncompleteCheckpointError

from .discovery import StepPaths, list_shard_ranks, list_steps

# A message names this many of the other steps, the newest.
_STEPS_NAMED = 5


def check_presence(paths: StepPaths, rank: int | None) -> None:
    """Check that a step has its model, the optimizer shard of `rank` unless that is None, and its meta.

    Raises:
        FileNotFoundError: For the first that is missing, with its path as `filename`; an
            IncompleteCheckpointError where other files of the step are there.
    """
    if not _is_present(paths.model):
        raise _missing_model(paths)
    if rank is not None and not _is_present(paths.optimizer(rank)):
        raise _missing_shard(paths, rank)
    if not _is_present(paths.meta):
        message = (
            f"{paths.meta} is missing: step {paths.step} has a model but no meta "
            f"(fastckpt.load reads the model by itself; {name_other_steps(paths)})"
        )
        raise IncompleteCheckpointError(message, path=paths.meta)


def name_other_steps(paths: StepPaths) -> str:
    """Name the steps beside this one that have a model, newest first."""
    steps = [step for step in list_steps(paths.directory) if step != paths.step]
    if not steps:
        return "there is no other step here"
    named = ", ".join(map(str, steps[: -_STEPS_NAMED - 1 : -1]))
    more = len(steps) - _STEPS_NAMED
    return f"other steps here, newest first: {named}" + (f" and {more} more" if more > 0 else "")


def _missing_model(paths: StepPaths) -> FileNotFoundError:
    directory = os.fspath(paths.directory)
    if not os.path.isdir(directory):
        message = f"no checkpoint of step {paths.step}, since there is no directory {directory}"
        return FileNotFoundError(errno.ENOENT, message, paths.model)
    others = name_other_steps(paths)
    if _is_present(paths.meta) or list_shard_ranks(directory, paths.step):
        message = f"{paths.model} is missing: step {paths.step} was not saved to its end ({others})"
        return IncompleteCheckpointError(message, path=paths.model)
    message = f"no checkpoint of step {paths.step} ({others})"
    return FileNotFoundError(errno.ENOENT, message, paths.model)


def _missing_shard(paths: StepPaths, rank: int) -> IncompleteCheckpointError:
    ranks = list_shard_ranks(paths.directory, paths.step)
    if ranks:
        hint = f"ranks that have one: {', '.join(map(str, ranks))}"
    else:
        hint = "no rank has one, so load it with load_optimizer=False"
    path = paths.optimizer(rank)
    message = f"{path} is missing: step {paths.step} has no optimizer state of rank {rank} ({hint})"
    return IncompleteCheckpointError(message, path=path)


def _is_present(path: str) -> bool:
    # Not os.path.exists, which calls a file in a directory without permission absent.
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True
