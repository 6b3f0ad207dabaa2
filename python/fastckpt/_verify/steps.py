"""Verify one step: each of its files, and which save of it is whole."""

from __future__ import annotations

import dataclasses
import os

from fastckpt._steps.survey import StepFiles, own_name
from fastckpt.errors import CheckpointError, IncompleteCheckpointError

from .files import FileCheck
from .report import Damage, FileReport, Status, StepReport, worst


def verify_step(directory: str, step: StepFiles, check: FileCheck) -> StepReport:
    """Verify the files of a step, and say whether one save of it is whole."""
    state = _StepState.of(directory, step)
    visible = [os.path.join(directory, name) for name in step.names()]
    kept = [path for path in state.paths if path not in visible]
    files = [state.judge(check(path)) for path in (*visible, *kept)]
    # A dangling link, or a file that was deleted meanwhile, counts as missing; unless a save that was killed has
    # moved it aside, and it is loaded from there.
    aside = {own_name(os.path.basename(path)) for path in kept}
    files = [
        file for file in files if not _is_gone(file) or os.path.basename(file.path) not in aside
    ]
    gone = [os.path.basename(file.path) for file in files if _is_gone(file)]
    missing = tuple(dict.fromkeys((*state.missing, *gone)))
    statuses = [file.status for file in files if not _is_gone(file)]
    if missing or state.torn:
        statuses.append(Status.INCOMPLETE)
    there = [file.path for file in files if file.path in visible]
    extra = [os.path.basename(path) for path in there if state.paths and path not in state.paths]
    return StepReport(
        directory=directory,
        step=step.step,
        status=worst(statuses),
        files=tuple(files),
        ranks=tuple(sorted(step.shards)),
        missing=missing,
        torn=state.torn,
        extra=tuple(extra),
        save_id=state.save_id,
    )


def _is_gone(file: FileReport) -> bool:
    return file.status is Status.NOT_FOUND


@dataclasses.dataclass(frozen=True)
class _StepState:
    """Which save of a step is whole, or why there is no whole one."""

    paths: tuple[str, ...] = ()
    save_id: int | None = None
    missing: tuple[str, ...] = ()
    torn: tuple[str, ...] = ()
    #: A file that is not the one that was saved, and the message about it.
    changed: tuple[str | None, str] = (None, "")

    @classmethod
    def of(cls, directory: str, step: StepFiles) -> _StepState:
        # Here and not at the top: the report's types are of use without the native module.
        from fastckpt._steps.saves import StepSaves

        saves = StepSaves(directory, step)
        # Only the message: an exception in a variable holds what its frames have open.
        changed: tuple[str | None, str] = (None, "")
        torn: tuple[str, ...] = ()
        try:
            save = saves.newest_whole(optimizer=True)
            return cls(tuple(save.paths()), save.save_id or None)
        except IncompleteCheckpointError as error:
            torn = (str(error),)
        except CheckpointError as error:
            changed = (error.path, str(error))
        except OSError:
            pass  # The report of that file says so.
        try:
            problems = saves.problems()
        except CheckpointError as error:
            # In addition to what is torn, a file cannot be opened, or is not the one that was saved.
            changed = (error.path, str(error)) if changed[0] is None else changed
            missing = step.missing()
            return cls(missing=missing, torn=() if missing else torn, changed=changed)
        except OSError:
            return cls(missing=step.missing(), changed=changed)
        missing = tuple(problem.name for problem in problems if problem.missing)
        torn = tuple(problem.message for problem in problems if not problem.missing)
        return cls(missing=missing, torn=torn, changed=changed)

    def judge(self, file: FileReport) -> FileReport:
        """Add what only the other files of the step show: that a file is not the one that was saved."""
        path, words = self.changed
        if path != file.path or file.status is not Status.GOOD:
            return file
        damage = Damage(file.path, None, (), 0, file.nbytes, None, None, words)
        return dataclasses.replace(file, status=Status.DAMAGED, damages=(damage,))
