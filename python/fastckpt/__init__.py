"""Checkpoint I/O for PyTorch: torch's own files, written at disk speed and checked when read.

    import fastckpt

    fastckpt.save(model.state_dict(), "model.pt")  # the file that torch.save writes
    state = fastckpt.load("model.pt")              # what torch.load returns, each byte checked
    report = fastckpt.verify("model.pt")           # reads every byte, without torch

`save_checkpoint`, `load_checkpoint` and their relatives are nanochat's functions of the same
names. Names are imported when they are first used: ``import fastckpt`` alone imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    CheckpointError,
    ChecksumError,
    CommitUnknownError,
    FormatError,
    IncompleteCheckpointError,
    MissingChecksumWarning,
    StateMismatchError,
    UnsafePickleError,
)

if TYPE_CHECKING:
    from ._archive.load import load
    from ._archive.save import save
    from ._average.average import AverageReport, average_checkpoints, average_files
    from ._copy.copy import CopyReport, copy_checkpoint
    from ._diff.diff import DiffReport, diff, diff_steps
    from ._gc.gc import GcReport, collect_garbage
    from ._inspect.report import FileContents
    from ._inspect.run_report import DirectoryContents
    from ._inspect.runs import inspect
    from ._native import __version__
    from ._prune.prune import PruneReport, prune
    from ._repair.repair import repair
    from ._repair.report import RepairReport
    from ._verify.verify import FileReport, StepReport, VerifyReport, verify
    from .ema import EMAModel
    from .export import ExportReport, ModelExporter
    from .nanochat import (
        barrier_commit,
        build_model,
        find_largest_model,
        find_last_good_step,
        find_last_step,
        load_checkpoint,
        load_model,
        load_model_from_dir,
        load_optimizer_state,
        save_checkpoint,
    )
    from .selection import ModelSelector
    from .training import CheckpointConfig, CheckpointManager, resume_training

__all__ = [
    "AverageReport",
    "CheckpointConfig",
    "CheckpointError",
    "CheckpointManager",
    "ChecksumError",
    "CommitUnknownError",
    "CopyReport",
    "DiffReport",
    "DirectoryContents",
    "EMAModel",
    "ExportReport",
    "FileContents",
    "FileReport",
    "FormatError",
    "GcReport",
    "IncompleteCheckpointError",
    "MissingChecksumWarning",
    "ModelExporter",
    "ModelSelector",
    "PruneReport",
    "RepairReport",
    "StateMismatchError",
    "StepReport",
    "UnsafePickleError",
    "VerifyReport",
    "__version__",
    "average_checkpoints",
    "average_files",
    "barrier_commit",
    "build_model",
    "collect_garbage",
    "copy_checkpoint",
    "diff",
    "diff_steps",
    "find_largest_model",
    "find_last_good_step",
    "find_last_step",
    "inspect",
    "load",
    "load_checkpoint",
    "load_model",
    "load_model_from_dir",
    "load_optimizer_state",
    "prune",
    "repair",
    "resume_training",
    "save",
    "save_checkpoint",
    "verify",
]

# Where each name that is imported on first use lives.
_MODULES = {
    "__version__": "_native",
    "FileContents": "_inspect.report",
    "ModelSelector": "selection",
    "DirectoryContents": "_inspect.run_report",
    "inspect": "_inspect.runs",
    "EMAModel": "ema",
    "load": "_archive.load",
    "repair": "_repair.repair",
    "RepairReport": "_repair.report",
    "save": "_archive.save",
    **dict.fromkeys(("ExportReport", "ModelExporter"), "export"),
    **dict.fromkeys(("CopyReport", "copy_checkpoint"), "_copy.copy"),
    **dict.fromkeys(("AverageReport", "average_checkpoints", "average_files"), "_average.average"),
    **dict.fromkeys(("DiffReport", "diff", "diff_steps"), "_diff.diff"),
    **dict.fromkeys(("GcReport", "collect_garbage"), "_gc.gc"),
    **dict.fromkeys(("PruneReport", "prune"), "_prune.prune"),
    **dict.fromkeys(("FileReport", "StepReport", "VerifyReport", "verify"), "_verify.verify"),
    **dict.fromkeys(
        (
            "barrier_commit",
            "build_model",
            "find_largest_model",
            "find_last_good_step",
            "find_last_step",
            "load_checkpoint",
            "load_model",
            "load_model_from_dir",
            "load_optimizer_state",
            "save_checkpoint",
        ),
        "nanochat",
    ),
    **dict.fromkeys(("CheckpointConfig", "CheckpointManager", "resume_training"), "training"),
}


def __getattr__(name: str) -> Any:
    try:
        module = _MODULES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
