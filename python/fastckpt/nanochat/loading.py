"""Load the files of one step, all of one save, and find the steps that can be loaded."""

import errno
import operator
import os
from collections.abc import Callable
from typing import Any, Literal

import torch

from fastckpt._archive import load
from fastckpt._steps.parts import Part
from fastckpt._steps.saves import StepSave, read_save
from fastckpt._steps.survey import StepFiles, survey_step, survey_steps
from fastckpt._verify.verify import Status
from fastckpt._verify.verify import verify as verify_paths
from fastckpt.errors import CheckpointError, IncompleteCheckpointError

from .discovery import StepPaths
from .meta import decode_meta
from .world_size import shards_check

_Path = str | os.PathLike[str]


def load_checkpoint(
    checkpoint_dir: _Path,
    step: int,
    device: str | torch.device,
    load_optimizer: bool = False,
    rank: int = 0,
    *,
    world_size: int | None = None,
) -> tuple[Any, Any, dict[str, Any]]:
    """Load the files of a step, as nanochat (92d63d4) does, with every byte of them checked.

    All parts are of one save. With `load_optimizer` the step must be whole: every rank's shard is there,
    so that all ranks load the same save or none does. If a save of the step was interrupted while it
    replaced an older one, the older one is loaded.

    Each rank loads its own shard, so as many ranks must resume as have saved. One process without a
    process group counts as one rank; a rank above 0 without a process group is taken for a tool that
    reads one shard, and gets it.

    The tensors lie in private memory of their own: they may be trained in place, and the files may be
    overwritten or removed. The RNG is not touched.

    Args:
        checkpoint_dir: Directory of the run.
        step: Number of the step; numpy integers work.
        device: Where the tensors go: "cpu", "cuda:0", "meta", or a torch.device.
        load_optimizer: Whether to load the optimizer shard of `rank` too.
        rank: Whose optimizer shard to load.
        world_size: How many shards the step has [default: as many as there are ranks]. With this, the
            shard of `rank` is returned as it is, whoever loads it.

    Returns:
        (model_data, optimizer_data, meta_data); optimizer_data is None unless `load_optimizer`.

    Raises:
        FileNotFoundError: There are no files of this step.
        IncompleteCheckpointError: A file of the step is missing or of another save; it is a
            FileNotFoundError too. Names the file and the newest good step.
        ChecksumError: The bytes of a tensor or of the meta are not those that were written.
        FormatError: A file is not what its name says.
        UnsafePickleError: A file asks for more than torch.load(weights_only=True) allows.
        StateMismatchError: The step was saved by another number of ranks than load it, or than
            `world_size` says; it is a ValueError too. Names both numbers. The step itself is good.

    Example:
        >>> import fastckpt, torch
        >>> fastckpt.save_checkpoint("runs/d12", 100, {"w": torch.ones(2)}, None, {"step": 100})
        >>> model_data, optimizer_data, meta = load_checkpoint("runs/d12", 100, "cpu")
        >>> model_data["w"], optimizer_data, meta
        (tensor([1., 1.]), None, {'step': 100})
    """
    step = operator.index(step)
    directory = os.fspath(checkpoint_dir)
    check = shards_check(directory, step, world_size=world_size, may_be_alone=rank > 0)
    try:
        if load_optimizer:
            save = open_save(directory, step, optimizer=True, rank=rank, check_shards=check)
        else:
            save = open_save(directory, step, optimizer=False)
        model_data = load_part(save.model, device)
        optimizer_data = None if save.shard is None else load_part(save.shard, device)
        return model_data, optimizer_data, decode_meta(save.meta_bytes, save.meta)
    except (CheckpointError, FileNotFoundError) as error:
        add_advice(error, directory, step)
        raise


def open_save(
    directory: str,
    step: int,
    *,
    optimizer: bool,
    rank: int | None = None,
    check_shards: Callable[[int], None] | None = None,
) -> StepSave:
    """Open the newest whole save of a step; see `read_save`, whose errors it raises."""
    try:
        # Not os.path.isdir, which calls a directory absent that cannot be read.
        os.stat(directory)
    except FileNotFoundError as error:
        path = StepPaths(directory, step).model
        message = f"no checkpoint of step {step}, since there is no directory {directory}"
        raise FileNotFoundError(errno.ENOENT, message, path) from error
    return read_save(directory, step, optimizer=optimizer, rank=rank, check_shards=check_shards)


def load_part(part: Part, device: str | torch.device) -> Any:
    """Load one archive to a device; every archive of a step comes through here."""
    archive = part.archive
    if archive is None or archive.kind == "torchscript":
        return load.load(part.path, map_location=device)
    return load.load_archive(archive, device)


def find_last_good_step(
    checkpoint_dir: _Path,
    *,
    world_size: int | None = None,
    verify: Literal["quick", "full"] = "quick",
) -> int:
    """Find the highest step that is whole: model, meta and every rank's shard, of one save.

    `find_last_step` finds the step that was saved last; this finds the one to resume from. A step whose
    archives carry no save id, as nanochat writes it, is whole if it has a model, a meta, and shards 0 to
    the highest without a gap.

    Args:
        checkpoint_dir: Directory of the run.
        world_size: Take only steps with the shards of exactly this many ranks [default: of any number].
        verify: "quick" checks the structure and size of each file, and which save it is of. "full" also
            reads every byte of the step, at the speed of the disk.

    Returns:
        The step. `load_checkpoint(..., load_optimizer=True)` loads it on as many ranks as saved it.

    Raises:
        FileNotFoundError: The directory does not exist, or has no step.
        IncompleteCheckpointError: No step is whole (and of `world_size` ranks); says why the newest is not.
        OSError: A file cannot be read.

    Example:
        >>> import fastckpt, os, torch
        >>> for step in (100, 200):
        ...     fastckpt.save_checkpoint("runs/d12", step, {"w": torch.ones(2)}, None, {})
        >>> os.remove("runs/d12/meta_000200.json")  # as if the run had been killed while it saved
        >>> find_last_good_step("runs/d12")
        100
    """
    if verify not in ("quick", "full"):
        raise ValueError(f"verify must be 'quick' or 'full', not {verify!r}")
    directory = os.fspath(checkpoint_dir)
    # The words alone: an exception in a variable holds what its frames have open.
    reason = ""
    for step in _steps(directory):
        try:
            _check_step(directory, step, world_size, verify)
        except (CheckpointError, FileNotFoundError) as error:
            reason = reason or str(error)
        else:
            return step
    if not reason:
        raise FileNotFoundError(f"No checkpoints found in {checkpoint_dir}")
    asked = "" if world_size is None else f" and saved by {world_size} ranks"
    message = f"no step in {directory} is whole{asked}; of the newest: {reason}"
    raise IncompleteCheckpointError(message, path=directory)


def newest_good_model(directory: str) -> tuple[int, list[int]]:
    """Return the highest step whose model and meta are whole, and those above it that are not.

    Raises:
        FileNotFoundError: The directory does not exist, or has no step.
        IncompleteCheckpointError: No step has both.
    """
    passed_over: list[int] = []
    reason = ""
    for step in _steps(directory):
        try:
            read_save(directory, step, optimizer=False)
        except (CheckpointError, FileNotFoundError) as error:
            passed_over.append(step)
            reason = reason or str(error)
        else:
            return step, passed_over
    if not reason:
        raise FileNotFoundError(f"No checkpoints found in {directory}")
    message = f"no step in {directory} has a whole model and meta; of the newest: {reason}"
    raise IncompleteCheckpointError(message, path=directory)


def add_advice(error: Exception, directory: str, step: int) -> None:
    """Add to an error from which other step training could resume."""
    advice = _advice(directory, step)
    if isinstance(error, CheckpointError):
        if len(error.args) == 1:  # The message alone.
            error.args = (f"{error}; {advice}",)
    elif isinstance(error, FileNotFoundError) and error.strerror:
        error.strerror = f"{error.strerror} ({advice})"


def _advice(directory: str, step: int) -> str:
    try:
        others = [other for other in _steps(directory) if other != step]
    except FileNotFoundError:
        return "there is no other step here"
    except OSError as error:
        return f"{directory} cannot be listed: {error.strerror}"
    for other in others:
        try:
            _check_step(directory, other, None, "quick")
        except (CheckpointError, OSError):
            continue
        return f"newest good step here: {other}"
    return "no other step here is whole" if others else "there is no other step here"


def has_model(directory: str, step: int) -> bool:
    """Whether there is a model of a step, visible or kept; a directory that is not there has none.

    Raises:
        OSError: The directory cannot be listed.
    """
    try:
        return _has_model(survey_step(directory, step))
    except FileNotFoundError:
        return False


def _steps(directory: str) -> list[int]:
    """Return the steps that have a model, visible or kept, highest first."""
    steps = filter(_has_model, survey_steps(directory).values())
    return sorted((files.step for files in steps), reverse=True)


def _has_model(files: StepFiles) -> bool:
    return files.model is not None or any(kept.model for kept in files.kept.values())


def _check_step(directory: str, step: int, world_size: int | None, verify: str) -> None:
    save = read_save(directory, step, optimizer=True)
    shards = len(save.optimizer)
    if world_size is not None and shards != world_size:
        raise IncompleteCheckpointError(
            f"step {step} in {directory} was saved by {shards} ranks, not {world_size}",
            path=save.model.path,
        )
    decode_meta(save.meta_bytes, save.meta)
    if verify != "full":
        return
    try:
        _verify_files(save)
    except CheckpointError:
        # Its files may have been replaced, or their second names removed, since they were listed.
        again = read_save(directory, step, optimizer=True)
        if (again.save_id, again.paths()) == (save.save_id, save.paths()):
            raise
        _check_step(directory, step, world_size, verify)


def _verify_files(save: StepSave) -> None:
    report = verify_paths(save.paths())
    if not report.ok:
        bad = next(file for file in report.files if file.status is report.status)
        words = bad.damages[0].detail if bad.damages else bad.message
        if bad.status is Status.IO_ERROR:
            # Not damage: the step may be good, and an older one must not be taken for the newest.
            raise OSError(bad.errno, words, bad.path)
        raise CheckpointError(f"{bad.path}: {words}", path=bad.path)
