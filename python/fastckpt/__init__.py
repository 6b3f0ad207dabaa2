"""Checkpoint I/O for PyTorch: torch's own files, written at disk speed and checked when read.

    import fastckpt

    fastckpt.save(model.state_dict(), "model.pt")  # the file that torch.save writes
    state = fastckpt.load("model.pt")              # what torch.load returns, each byte checked
    report = fastckpt.verify("model.pt")           # reads every byte, without torch

`save_checkpoint`, `load_checkpoint` and their relatives have the names and arguments that they have in
nanochat. Each command of the command line has its function: `verify`, `inspect_checkpoint`, `diff`, `top`,
`average`, `export_checkpoint`, `copy_checkpoint`, `prune`, `collect_garbage`, `repair`. Names are imported
when they are first used: ``import fastckpt`` alone imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    CheckpointError,
    ChecksumError,
    CommitUnknownError,
    ContentsError,
    FormatError,
    IncompleteCheckpointError,
    MissingChecksumWarning,
    MissingMetricError,
    StateMismatchError,
    TorchScriptError,
    UncoveredFormatError,
    UnknownMetricError,
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
    from ._inspect.runs import inspect_checkpoint
    from ._native import __version__
    from ._prune.prune import PruneReport, prune
    from ._repair.repair import repair
    from ._repair.report import RepairReport
    from ._top import top
    from ._verify.verify import FileReport, StepReport, VerifyReport, verify
    from .ema import EMAModel
    from .export import ExportReport, ModelExporter
    from .export.checkpoint import export_checkpoint
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
    from .selection import ModelSelector, RankedCheckpoint
    from .training import CheckpointConfig, CheckpointManager, resume_training

    average = average_files
    copy = copy_checkpoint
    gc = collect_garbage
    inspect = inspect_checkpoint

# `inspect`, `copy` and `gc` are attributes and not in here: a star import must not hide modules of the
# standard library.
__all__ = [
    "AverageReport",
    "CheckpointConfig",
    "CheckpointError",
    "CheckpointManager",
    "ChecksumError",
    "CommitUnknownError",
    "ContentsError",
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
    "MissingMetricError",
    "ModelExporter",
    "ModelSelector",
    "PruneReport",
    "RankedCheckpoint",
    "RepairReport",
    "StateMismatchError",
    "StepReport",
    "TorchScriptError",
    "UncoveredFormatError",
    "UnknownMetricError",
    "UnsafePickleError",
    "VerifyReport",
    "__version__",
    "average",
    "average_checkpoints",
    "average_files",
    "barrier_commit",
    "build_model",
    "collect_garbage",
    "copy_checkpoint",
    "diff",
    "diff_steps",
    "export_checkpoint",
    "find_largest_model",
    "find_last_good_step",
    "find_last_step",
    "inspect_checkpoint",
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
    "top",
    "verify",
]

# Where each name that is imported on first use lives.
_MODULES = {
    "__version__": "_native",
    "FileContents": "_inspect.report",
    "ModelSelector": "selection",
    "RankedCheckpoint": "selection",
    "DirectoryContents": "_inspect.run_report",
    "inspect_checkpoint": "_inspect.runs",
    "EMAModel": "ema",
    "load": "_archive.load",
    "repair": "_repair.repair",
    "RepairReport": "_repair.report",
    "save": "_archive.save",
    "top": "_top",
    "export_checkpoint": "export.checkpoint",
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


# Second names.
_ALIASES = {
    "average": "average_files",
    "copy": "copy_checkpoint",
    "gc": "collect_garbage",
    "inspect": "inspect_checkpoint",
}


def __getattr__(name: str) -> Any:
    try:
        module = _MODULES[_ALIASES.get(name, name)]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(import_module(f".{module}", __name__), _ALIASES.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
