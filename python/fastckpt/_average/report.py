"""What `fastckpt.average_files` wrote. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from fastckpt._verdict import Judged


@dataclass(frozen=True)
class AverageReport(Judged):
    """What `average_files` wrote.

    Attributes:
        path: The new file.
        checkpoints: The files that were averaged, in order.
        weights: Their shares, which add up to 1.
        tensors: Names in the new state dict.
        averaged: Those of them that are means; all others are from the last file.
        nbytes: Size of the new file in bytes.
        unchecked: Files whose writer stored no checksums: their bytes were taken as they are.
    """

    path: str
    checkpoints: tuple[str, ...]
    weights: tuple[float, ...]
    tensors: int
    averaged: int
    nbytes: int
    unchecked: tuple[str, ...]

    @property
    def output(self) -> str:
        """Another name of `path`."""
        return self.path

    @property
    def status(self) -> str:
        """The verdict, "written": what goes wrong is raised."""
        return "written"
