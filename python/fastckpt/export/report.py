"""What an export did."""

from __future__ import annotations

from dataclasses import dataclass

from fastckpt._verdict import Judged


@dataclass(frozen=True)
class ExportReport(Judged):
    """What an export did. All its files are in place and durable.

    Attributes:
        source: The file or index that was read; None where a model was exported.
        outputs: The files that were written, in the order in which they became visible.
        source_nbytes: Size of what was read, in bytes: all shards, where it is an index.
        nbytes: Size of what was written, in bytes.
        tensors: Number of names in the state dict; of a program, of its parameters and buffers.
        has_config: Whether the model's configuration was written.
        notes: What else there is to know, in sentences.
        max_difference: Of an exported program, the largest difference of an output from the model's.
        checked_with: What ran the exported program, e.g. "onnxruntime 1.31.1".
    """

    source: str | None
    outputs: tuple[str, ...]
    source_nbytes: int | None
    nbytes: int
    tensors: int
    has_config: bool = False
    notes: tuple[str, ...] = ()
    max_difference: float | None = None
    checked_with: str | None = None

    @property
    def status(self) -> str:
        """The verdict, "exported": what goes wrong is raised."""
        return "exported"
