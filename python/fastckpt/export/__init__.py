"""Export what a checkpoint has learned: weights alone, for other programs or as a program."""

from .exporter import ModelExporter
from .report import ExportReport

__all__ = ["ExportReport", "ModelExporter"]
