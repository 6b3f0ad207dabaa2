"""The result of an export."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from fastckpt._verdict import Judged

logger = logging.getLogger("fastckpt.export")
_MB = 1e6


@dataclass(frozen=True)
class ExportReport(Judged):
    """The result of an export. All its files are in place and durable.

    Attributes:
        source: The file or index that was read; None if a model was exported.
        outputs: The files that were written, in the order in which they became visible.
        source_nbytes: Size of the source in bytes; for an index, of all its shards.
        nbytes: Size of the outputs in bytes.
        tensors: Number of names in the state dict; for a program, of parameters and buffers.
        config_keys: The keys of the configurations that were written, e.g. ``("model_config",)``.
        notes: Further remarks, in sentences.
        max_difference: The largest difference between an output of an exported program and the model's.
        checked_with: The software that ran the exported program, e.g. "onnxruntime 1.31.1".
    """

    source: str | None
    outputs: tuple[str, ...]
    source_nbytes: int | None
    nbytes: int
    tensors: int
    config_keys: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    max_difference: float | None = None
    checked_with: str | None = None

    @property
    def has_config(self) -> bool:
        """Whether the model's configuration was written."""
        return bool(self.config_keys)

    @property
    def status(self) -> str:
        """The verdict, "exported": what goes wrong is raised."""
        return "exported"


def log_export(report: ExportReport) -> None:
    """Log sizes, reduction and configuration of an export from a checkpoint."""
    if not report.source_nbytes:
        return
    logger.info("Exported inference checkpoint: %s", ", ".join(report.outputs))
    logger.info("  Original: %.1f MB", report.source_nbytes / _MB)
    logger.info("  Inference: %.1f MB", report.nbytes / _MB)
    logger.info("  Reduction: %.1f%%", (1 - report.nbytes / report.source_nbytes) * 100)
    logger.info("  Configuration: %s", ", ".join(report.config_keys) or "not found, or left out")
