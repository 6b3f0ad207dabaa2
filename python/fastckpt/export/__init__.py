"""Export a model: weights-only .pt, safetensors, or a program of torch.export, ONNX or TorchScript."""

from .exporter import ModelExporter
from .report import ExportReport

__all__ = ["ExportReport", "ModelExporter"]
