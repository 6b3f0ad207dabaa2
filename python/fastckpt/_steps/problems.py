"""Why a save of a step is not whole, in words. Imports no torch."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

from fastckpt.errors import ChecksumError, IncompleteCheckpointError

from .survey import StepFiles, StepName


@dataclass(frozen=True)
class Problem:
    """Why a save is not whole.

    Attributes:
        name: The file.
        missing: Whether the file is not there; otherwise it belongs to another save.
        message: The whole sentence, with the path.
    """

    name: str
    missing: bool
    message: str


class Wording:
    """The sentences about one step.

    Args:
        directory: Where the files are.
        files: Their names.
    """

    def __init__(self, directory: str, files: StepFiles) -> None:
        self._directory = directory
        self._files = files

    def incomplete(self, problem: Problem) -> IncompleteCheckpointError:
        """Return the error for a problem."""
        path = os.path.join(self._directory, problem.name)
        return IncompleteCheckpointError(problem.message, path=path)

    def missing_model(self) -> FileNotFoundError:
        """Return the error for a step without a model."""
        path = self._path(StepName("model", self._files.step))
        if not self._files.names() and not self._files.kept:
            return FileNotFoundError(
                errno.ENOENT, f"no checkpoint of step {self._files.step}", path
            )
        message = f"{path} is missing: step {self._files.step} was not saved to its end"
        return IncompleteCheckpointError(message, path=path)

    def changed_meta(self, manifest: str) -> ChecksumError:
        """Return the error for a meta that its manifest does not describe."""
        path = self._path(StepName("meta", self._files.step))
        return ChecksumError(
            f"{path} is not the file that was saved: its SHA-256 is not the one in {manifest} (if you "
            "changed it yourself, delete the manifest to load it)",
            path=path,
        )

    def problem(self, named: StepName, shards: int = 0, *, is_unmarked: bool = False) -> Problem:
        """Say of a file that the save does not have it.

        Args:
            named: The file.
            shards: How many shards the save counts.
            is_unmarked: Whether the file carries no save id, and the save does.
        """
        path, step = self._path(named), self._files.step
        visible = str(named) in self._files.names()
        if visible and named.role == "optimizer" and (named.rank or 0) >= shards:
            message = f"{path} is left from another save: step {step} {_counted(shards)}"
        elif visible:
            cause = (
                f"it carries no save id (it was saved without a process group, or by torch.save), so step "
                f"{step} is incomplete"
                if is_unmarked
                else f"step {step} was being saved again when it was interrupted"
            )
            message = f"{path} is not of the save that {self._path(StepName('model', step))} is of: {cause}"
        elif named.role == "optimizer":
            message = f"{path} is missing: step {step} {_counted(shards)} ({self._ranks_there()})"
        elif named.role == "meta":
            message = (
                f"{path} is missing: step {step} has a model but no meta (fastckpt.load reads the "
                "model by itself)"
            )
        else:
            message = f"{path} is missing"
        return Problem(str(named), not visible, message)

    def more_shards(self, count: int) -> Problem:
        """Say how many more shards are missing than are named one by one."""
        name = f"optim_{self._files.step:06d}_rank*.pt of {count} more ranks"
        return Problem(name, True, f"{os.path.join(self._directory, name)} are missing")

    def without_model(self) -> Iterator[Problem]:
        """Say which files a step without a model lacks, as far as names tell."""
        for name in self._files.missing():
            yield Problem(name, True, f"{os.path.join(self._directory, name)} is missing")

    def _path(self, name: StepName) -> str:
        return os.path.join(self._directory, str(name))

    def _ranks_there(self) -> str:
        ranks = sorted(self._files.shards)
        if not ranks:
            return "no rank has one, so load it with load_optimizer=False"
        return f"ranks that have one: {', '.join(map(str, ranks))}"


def _counted(shards: int) -> str:
    if shards == 0:
        return "was saved without optimizer state"
    return f"has {shards} optimizer shard{'s' if shards > 1 else ''}"
