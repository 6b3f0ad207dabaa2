"""Export a checkpoint to whatever its destination's name says: what `fastckpt export` does."""

from __future__ import annotations

import os
from collections.abc import Callable

from fastckpt._arguments import one_path
from fastckpt._export_kind import export_kind
from fastckpt._named_step import model_file

from . import hub
from .exporter import ModelExporter
from .publishing import refuse_existing
from .report import ExportReport

_Path = str | os.PathLike[str]


def export_checkpoint(
    path: _Path,
    output: _Path,
    *,
    include_config: bool = True,
    use_ema: bool = False,
    max_shard_nbytes: int = hub.MAX_SHARD_NBYTES,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Write the weights of a checkpoint alone to new files; their format follows from the name of `output`.

    From .pt to a smaller .pt (`ModelExporter.export_inference_checkpoint`) or to safetensors
    (`ModelExporter.export_safetensors`), and from safetensors back to .pt
    (`ModelExporter.import_safetensors`). Never writes over a file.

    Args:
        path: A .pt file or a step (``"runs/d12@1200"``); or a .safetensors file, its .index.json, or a
            directory with one of them.
        output: A .pt file, a .safetensors file, or a directory, which gets ``model.safetensors``.
        include_config: Whether to write the model's configuration too.
        use_ema: Write the moving averages in the place of the weights.
        max_shard_nbytes: Largest size of the tensors of a safetensors file, in bytes.
        threads: Number of threads that read; None chooses.
        progress: Called with bytes done and bytes in all.

    Returns:
        The report: `.outputs`, `.nbytes`, `.source_nbytes`, `.notes`.

    Raises:
        FileExistsError: There is something at `output` already.
        ValueError: The two names do not go together, or the format cannot hold what there is.
        FileNotFoundError, OSError: A file could not be read or written.
        FormatError: The file holds no state dict of a model, or is damaged.
        ChecksumError: The checkpoint has changed since it was written.
        ImportError: safetensors is not installed.

    Example:
        >>> import fastckpt, torch
        >>> fastckpt.save({"model": {"w": torch.ones(2)}, "optimizer": torch.ones(99)}, "run.pt")
        >>> fastckpt.export_checkpoint("run.pt", "weights.pt").outputs
        ('weights.pt',)
    """
    source, target = model_file(one_path("path", path)), one_path("output", output)
    kind = export_kind(source, target)
    if kind == "import" and use_ema:
        raise ValueError("use_ema (--ema) is for exports from a .pt file")
    is_directory = kind == "safetensors" and os.path.isdir(target)
    refuse_existing(hub.files_of_directory(target) if is_directory else [target])
    if kind == "import":
        return ModelExporter.import_safetensors(source, target, progress=progress)
    if kind == "inference":
        return ModelExporter.export_inference_checkpoint(
            source, target, include_config, use_ema=use_ema, threads=threads, progress=progress
        )
    return ModelExporter.export_safetensors(
        source,
        target,
        max_shard_nbytes=max_shard_nbytes,
        include_config=include_config,
        use_ema=use_ema,
        threads=threads,
        progress=progress,
    )
