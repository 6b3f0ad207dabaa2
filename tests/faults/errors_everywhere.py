"""Saves and loads of which every file operation fails once, or from then on for ever, with each errno.

The exception says what failed and where, the old checkpoint is as it was, and the next save works.
"""

from __future__ import annotations

import errno
import os
import random
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.harness import Tally
from tests.faults.shim.reading import ReadScene, read_scenes
from tests.faults.shim.scenes import DEAD_TEMP, StepScene, save_scenes, temporary_files
from tests.faults.shim.shim import INTERRUPTIBLE, Operation, Plan
from tests.faults.shim.stage import Play, Stage, play_all
from tests.faults.shim.zygote import shared

# As many as it takes for ranks to wait for each other's files.
_RANKS = 2
_ERRNOS = (
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
)

#: What a save says that it was doing when an operation of this kind failed.
_KEEPING = "keeping the file that is replaced"
_PHASES = {
    "allocate": ["reserving disk space"],
    "chmod": ["creating the temporary file"],
    "create": ["creating the temporary file"],
    "fcntl": ["creating the temporary file"],
    "flock": ["creating the temporary file"],
    "fsync": ["flushing the file to disk (fsync)"],
    "fsync of a directory": ["flushing the directory to disk (fsync)"],
    "getxattr": ["creating the temporary file"],
    "link": [_KEEPING],
    "mkdir": ["creating the directory"],
    "open": [_KEEPING, "opening the file"],
    "open directory": ["opening the directory", "creating the directory"],
    "opendir": ["listing the directory", _KEEPING],
    "read": [_KEEPING, "reading"],
    "readdir": ["listing the directory", _KEEPING],
    "rename": ["renaming the temporary file"],
    "setxattr": ["creating the temporary file"],
    "stat": [
        "looking at the destination",
        "creating the temporary file",
        "flushing the directory to disk (fsync)",
        "opening the file",
        "reading",
        "renaming the temporary file",
        _KEEPING,
    ],
    "truncate": ["setting the file size"],
    "unlink": [_KEEPING],
    "write": ["writing"],
}

_KEPT = r"(run|big)/\.fastckpt-\d{14}-.+\.kept"
_VISIBLE = r"run/(model|optim|meta|manifest)_.+|big/shard\d"
_DIRECTORY = r"\.|run|big"
_DEAD = re.escape(DEAD_TEMP)
#: Operations without which a save can do, by kind and name of the file.
_ABSORBED = {
    # Everything was fsynced before.
    "close": ".*",
    # What else is in the directory is nothing that the save depends on: leftovers of dead processes
    # and of saves that were replaced stay until the next save.
    "open directory": ".*",
    "opendir": ".*",
    "readdir": ".*",
    "closedir": ".*",
    # The same, and: a save never fails because of the lock of a directory.
    "flock": f"{_DEAD}|{_DIRECTORY}",
    "unlink": f"{_DEAD}|{_KEPT}",
    # The same, and: which files have been replaced is read in them.
    "open": f"{_DEAD}|{_VISIBLE}|{_KEPT}",
    "read": f"{_VISIBLE}|{_KEPT}",
    # The same, and: how much space is free and whether the file system is one of this machine's.
    # Where that is not known, the writing will show, and leftovers stay.
    "stat": rf"{_DEAD}|{_VISIBLE}|{_KEPT}|{_DIRECTORY}|model\.pt",
    "statfs": ".*",
}
#: What has to be followed by an fsync of the directory.
_NAMINGS = ("link", "mkdir", "rename")


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Let operations of saves and loads fail, in a number of cases drawn from all that there are."""
    generator = random.Random(seed)
    tally = Tally()
    while tally.cases < cases:
        with tempfile.TemporaryDirectory(dir=directory) as own:
            drawn = [
                (stage, plan)
                for stage in stages(generator, Path(own))
                for plan in failures(stage.operations, _ERRNOS)
            ]
            generator.shuffle(drawn)
            try_all(drawn[: cases - tally.cases], tally, seed)
    return tally


def stages(generator: random.Random, directory: Path) -> list[Stage]:
    """Return everything that is saved and loaded."""
    scenes = [*save_scenes(generator, _RANKS), *read_scenes()]
    return [Stage(scene, shared(), directory) for scene in scenes]


def failures(operations: Sequence[Operation], errnos: Sequence[int]) -> Iterator[Plan]:
    """Return every way in which one of the operations can fail."""
    for at, operation in enumerate(operations, start=1):
        if operation.kind in INTERRUPTIBLE:
            yield Plan("fail", at, errno.EINTR)
        for error in errnos:
            yield Plan("fail", at, error)
            yield Plan("fail", at, error, for_ever=True)


def try_all(cases: Sequence[tuple[Stage, Plan]], tally: Tally, seed: int) -> Tally:
    """Try cases and count what came of them."""
    return play_all(cases, _judge, tally, f" (seed {seed})")


def _judge(play: Play) -> str:
    ending = play.ending
    assert not ending.hangs, "it hangs"
    assert not ending.signal, f"signal {ending.signal}"
    again = fsyncs_tried_again(ending.operations)
    assert again == [], f"tried again: {', '.join(map(str, again))}"
    if isinstance(play.scene, ReadScene):
        return f"{_judge_read(play)}, {play.judge(finished=True)}"
    injected = [operation for operation in ending.operations if operation.injected]
    if ending.raised is None:
        if play.plan.error == errno.EINTR:
            return f"interrupted, {play.judge(finished=True)}"
        _check_absorbed(ending.operations)
        assert not_kept(play) == [], f"replaced, but not kept: {not_kept(play)}"
        return f"absorbed, {play.judge(finished=True)}"
    # Before the next save, which removes it.
    _check_left(play, injected)
    found = play.judge(finished=False)
    _check_raised(play, injected)
    if ending.raised.is_a(OSError) and "CommitUnknownError" in ending.raised.kinds:
        _check_commit_unknown(ending.operations)
        return f"unknown, {found}"
    assert found == play.scene.before, f"it raised, and the new save is there: {ending.raised}"
    return f"raised, {found}"


def fsyncs_tried_again(operations: Sequence[Operation]) -> list[Operation]:
    """Return the fsyncs of a descriptor, or of a file, after one that failed.

    The kernel forgets which pages it could not write, so the second fsync would report success.
    """
    failed: set[int | str] = set()
    again = []
    for operation in operations:
        if operation.kind in ("create", "open", "open directory"):
            failed.discard(operation.fd)
        elif operation.kind in ("fsync", "fsync of a directory"):
            marks: set[int | str] = {operation.fd}
            if operation.kind == "fsync":
                marks.add(operation.name)
            if failed & marks:
                again.append(operation)
            if operation.error not in (0, errno.EINTR):
                failed |= marks
    return again


def not_kept(play: Play) -> list[str]:
    """Return the files of a step that were replaced and had no second name."""
    if not isinstance(play.scene, StepScene) or not play.scene.replaces:
        return []
    kept: list[str] = []
    missing = []
    for operation in play.ending.operations:
        if operation.kind == "link" and operation.error == 0:
            kept.append(operation.name.removesuffix(".kept"))
        elif operation.kind == "rename" and operation.error == 0:
            name = os.path.basename(operation.name)
            if not any(one.endswith(f"-{name}") for one in kept):
                missing.append(name)
    return missing


def _check_absorbed(operations: Sequence[Operation]) -> None:
    for position, operation in enumerate(operations):
        if operation.injected:
            words = f"nothing was raised for {operation}"
            assert _may_be_absorbed(operation, operations[:position]), words


def _may_be_absorbed(operation: Operation, before: Sequence[Operation]) -> bool:
    if _is_fsync_of_directory(operation, before):
        return not _has_names_to_sync(before)
    pattern = _ABSORBED.get(operation.kind)
    return pattern is not None and re.fullmatch(pattern, operation.name) is not None


def _is_fsync_of_directory(operation: Operation, before: Sequence[Operation]) -> bool:
    """Whether it is one, or the question after it: whether the directory is still well."""
    if operation.kind == "fsync of a directory":
        return True
    asked = operation.kind == "stat" and bool(before)
    return asked and (before[-1].kind, before[-1].name) == ("fsync of a directory", operation.name)


def _has_names_to_sync(operations: Sequence[Operation]) -> bool:
    """Whether names have been given since the directory was fsynced last, and was well after that."""
    for position in reversed(range(1, len(operations))):
        operation, before = operations[position], operations[position - 1]
        synced = (before.kind, before.error) == ("fsync of a directory", 0)
        if synced and operation.kind == "stat" and operation.error == 0:
            return False
        if operation.kind in _NAMINGS and operation.error == 0:
            return True
    return False


def _check_left(play: Play, injected: Sequence[Operation]) -> None:
    left = temporary_files(play.directory)
    # A name is removed only after a look at whose it is.
    could_not = any(
        operation.kind == "unlink"
        or (operation.kind == "stat" and operation.name.rpartition("/")[2] in left)
        for operation in injected
    )
    assert left == [] or could_not, f"left behind: {left}"


def _check_raised(play: Play, injected: Sequence[Operation]) -> None:
    raised = play.ending.raised
    assert raised is not None
    assert play.plan.error != errno.EINTR, f"an interruption is no error: {raised.trace}"
    assert raised.is_a(OSError), raised.trace
    assert raised.errno == play.plan.error, raised.trace
    assert raised.filename in play.scene.destinations(play.directory), raised.trace
    phases = [phase for operation in injected for phase in _PHASES.get(operation.kind, [])]
    assert any(f"while {phase}" in raised.words for phase in phases), raised.trace


def _check_commit_unknown(operations: Sequence[Operation]) -> None:
    renames = [
        position
        for position, operation in enumerate(operations)
        if operation.kind == "rename" and operation.error == 0
    ]
    unsynced = [
        operation
        for position, operation in enumerate(operations)
        if operation.injected
        and (renames and position > renames[0])
        and _is_fsync_of_directory(operation, operations[:position])
    ]
    assert unsynced, "CommitUnknownError, but no fsync failed after a rename"


def _judge_read(play: Play) -> str:
    """An error of the system reaches the caller as it is, or is got around: never anything else."""
    raised, wrong = play.ending.raised, play.ending.wrong
    assert wrong is None, f"a wrong result: {wrong}"
    if raised is None:
        return "right"
    assert play.plan.error != errno.EINTR, f"an interruption is no error: {raised.trace}"
    assert raised.is_a(OSError), raised.trace
    assert raised.errno == play.plan.error, raised.trace
    assert raised.filename, raised.trace
    assert Path(raised.filename).is_relative_to(play.directory), raised.trace
    return "raised"
