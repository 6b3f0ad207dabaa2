"""All that is done with the files of others, each as one call."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import fastckpt
from fastckpt import ModelExporter, ModelSelector
from fastckpt.selection import UnknownMetricError

#: What a refusal is: said in words, and at once.
REFUSALS = (fastckpt.CheckpointError, ValueError, RuntimeError, OSError, UnknownMetricError)

Verb = Callable[[Path], object]


def _two(directory: Path) -> list[Path]:
    return [directory / "model.pt", directory / "other" / "model.pt"]


def _export(directory: Path, suffix: str) -> None:
    ModelExporter.export_inference_checkpoint(directory / "model.pt", directory / f"out{suffix}")


def _safetensors(directory: Path) -> None:
    ModelExporter.export_safetensors(directory / "model.pt", directory / "out.safetensors")


def lay_out(directory: Path, data: bytes) -> None:
    """Write a file as the verbs for files want it: twice, and as checkpoints of both kinds of names."""
    run = directory / "run"
    run.mkdir(parents=True)
    (directory / "other").mkdir()
    for name in ("model.pt", "other/model.pt"):
        (directory / name).write_bytes(data)
    for step in (1, 2):
        os.link(directory / "model.pt", run / f"checkpoint_epoch0001_step{step:08d}.pt")
        os.link(directory / "model.pt", run / f"model_{step:06d}.pt")
        (run / f"meta_{step:06d}.json").write_text('{"loss": 1.0}')


OF_FILES: dict[str, Verb] = {
    "load": lambda d: fastckpt.load(d / "model.pt"),
    "load mapped": lambda d: fastckpt.load(d / "model.pt", mmap=True),
    "verify": lambda d: fastckpt.verify(d / "model.pt"),
    "inspect": lambda d: fastckpt.inspect(d / "model.pt"),
    "diff": lambda d: fastckpt.diff(*_two(d)),
    "top": lambda d: ModelSelector.rank_by_metric(_two(d), "loss"),
    "average": lambda d: fastckpt.average_files(_two(d), d / "mean.pt"),
    "export": lambda d: _export(d, ".pt"),
    "export to safetensors": _safetensors,
    "prune": lambda d: OF_DIRECTORIES["prune"](d / "run"),
    "gc": lambda d: OF_DIRECTORIES["gc"](d / "run"),
    "copy": lambda d: fastckpt.copy_checkpoint(d / "model.pt", d / "copy"),
    "repair": lambda d: fastckpt.repair(d / "model.pt", to=d / "repaired.pt"),
}
OF_DIRECTORIES: dict[str, Verb] = {
    "verify": fastckpt.verify,
    "inspect": fastckpt.inspect,
    "top": lambda d: ModelSelector.rank_by_metric(d, "loss"),
    "prune": lambda d: fastckpt.prune(d, keep=1, metric="loss", mode="min", dry_run=True),
    "gc": lambda d: fastckpt.collect_garbage(d, dry_run=True),
    "copy": lambda d: fastckpt.copy_checkpoint(d, d.parent / f"{d.name}-copy"),
}


def run(verb: Verb, directory: Path) -> None:
    """Call it; whether it is done or refused is another test's business."""
    with warnings.catch_warnings(), suppress(*REFUSALS):
        warnings.simplefilter("ignore")
        verb(directory)
    for name in ("copy", "mean.pt", "out.pt", "out.safetensors", "repaired.pt"):
        with suppress(FileNotFoundError, NotADirectoryError):
            shutil.rmtree(directory / name)
        with suppress(FileNotFoundError):
            (directory / name).unlink()
    shutil.rmtree(directory.parent / f"{directory.name}-copy", ignore_errors=True)
