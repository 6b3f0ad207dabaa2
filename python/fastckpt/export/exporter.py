"""The class that has every export."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from fastckpt._archive.save import save

from . import hub, programs
from .optional import require
from .publishing import sizes
from .report import ExportReport, log_export
from .weights import read_weights

_Path = str | os.PathLike[str]
_Progress = Callable[[int, int], None]


class ModelExporter:
    """Export a model: its weights from a checkpoint, or the model itself as a program.

    Every file is written out of sight and becomes visible when it is whole and durable; an error or a kill
    leaves what was there before. What is read of a checkpoint is checked against its checksums.
    """

    @staticmethod
    def export_inference_checkpoint(
        checkpoint_path: _Path,
        output_path: _Path,
        include_config: bool = True,
        *,
        use_ema: bool = False,
        threads: int | None = None,
        progress: _Progress | None = None,
    ) -> ExportReport:
        """Write the weights of a checkpoint alone to a .pt file.

        The file holds a dict with the state dict under ``"model_state_dict"`` and, where there is one, the
        configuration under ``"model_config"``; plain torch.load reads it. Tensors are on the CPU and
        have the names of the bare model, without what torch.compile and DistributedDataParallel put
        in front. A tensor that is a slice of a large storage is copied out of it; shared tensors stay
        shared. The optimizer's state is not even read.

        Args:
            checkpoint_path: A .pt file with a state dict: itself, or under the first of the keys
                model_state_dict, model_state, state_dict, model that holds one.
            output_path: The new file. It may be `checkpoint_path`.
            include_config: Whether to write what the checkpoint has under ``"model_config"``.
            use_ema: Write the averages under ``"ema_state_dict"`` (of an `EMAModel`, of
                ``swa_utils.AveragedModel``, or a plain dict of tensors) in the place of the weights,
                in the weights' dtypes.
            threads: Number of threads; None chooses.
            progress: Called with bytes done and bytes in all, for reading and then for writing.

        Returns:
            The report; `.source_nbytes` and `.nbytes` are the sizes before and after, in bytes.

        Raises:
            OSError: A file could not be read or written.
            FormatError: No such state dict, or no averages that fit it.
            ChecksumError: The checkpoint has changed since it was written.
            UnsafePickleError: It asks for something that ``weights_only=True`` does not allow.

        Example:
            >>> import torch, fastckpt
            >>> fastckpt.save(
            ...     {"model": {"w": torch.ones(2)}, "optimizer": torch.ones(99)}, "/tmp/c.pt"
            ... )
            >>> report = fastckpt.ModelExporter.export_inference_checkpoint(
            ...     "/tmp/c.pt", "/tmp/i.pt"
            ... )
            >>> torch.load("/tmp/i.pt")
            {'model_state_dict': {'w': tensor([1., 1.])}}
        """
        weights = read_weights(
            checkpoint_path,
            use_ema=use_ema,
            include_config=include_config,
            threads=threads,
            progress=progress,
        )
        saved: dict[str, Any] = {"model_state_dict": weights.state, **weights.configs}
        save(saved, output_path, threads=threads, progress=progress)
        report = ExportReport(
            source=weights.source,
            outputs=(os.fspath(output_path),),
            source_nbytes=weights.source_nbytes,
            nbytes=sizes([os.fspath(output_path)]),
            tensors=len(weights.state),
            config_keys=tuple(weights.configs),
            notes=tuple(weights.notes),
        )
        log_export(report)
        return report

    @staticmethod
    def export_safetensors(
        checkpoint_path: _Path,
        output: _Path,
        *,
        max_shard_nbytes: int = hub.MAX_SHARD_NBYTES,
        include_config: bool = True,
        use_ema: bool = False,
        threads: int | None = None,
        progress: _Progress | None = None,
    ) -> ExportReport:
        """Write the weights of a checkpoint as safetensors files, as the Hugging Face Hub expects them.

        Where they fit into one shard there is one file; else ``...-00001-of-00002.safetensors`` and so on
        and, last, ``....safetensors.index.json``. Of names that share memory one is stored; the metadata
        map the others to it. The configuration goes into the metadata as JSON, under
        ``"fastckpt.model_config"``.

        Args:
            checkpoint_path: As for `export_inference_checkpoint`.
            output: A file with the suffix .safetensors, or a directory, which is made if it is missing and
                gets ``model.safetensors``. A file is replaced; several files replace nothing.
            max_shard_nbytes: Largest size of the tensors of a shard, in bytes; a tensor that is larger has
                a shard of its own.
            include_config: As for `export_inference_checkpoint`.
            use_ema: As for `export_inference_checkpoint`.
            threads: Number of threads that read; None chooses.
            progress: Called with bytes done and bytes in all, for reading.

        Raises:
            FileExistsError: The new files would be mixed with older ones that belong together.
            ImportError: safetensors is not installed.
            ValueError: The state dict has what the format cannot hold; the message names it.

        And what `export_inference_checkpoint` raises. The library writes through the page cache; each file
        is fsynced before it becomes visible.
        """
        if max_shard_nbytes < 1:
            raise ValueError(f"max_shard_nbytes must be at least 1, not {max_shard_nbytes}")
        require("safetensors.torch", "a .safetensors file")
        weights = read_weights(
            checkpoint_path,
            use_ema=use_ema,
            include_config=include_config,
            threads=threads,
            progress=progress,
        )
        report = hub.write_safetensors(weights, output, max_shard_nbytes)
        log_export(report)
        return report

    @staticmethod
    def import_safetensors(
        path: _Path, output: _Path, *, progress: _Progress | None = None
    ) -> ExportReport:
        """Write the .pt file of a safetensors file, or of all shards of an index.

        It holds what `export_inference_checkpoint` writes. Names that the metadata map to another one
        share its memory again. Shards are compared with the index; safetensors files have no checksums,
        so damage to tensors cannot be found.

        Args:
            path: A .safetensors file, a .safetensors.index.json, or a directory with a
                ``model.safetensors`` or its index.
            output: The new .pt file.
            progress: Called with bytes done and bytes in all, for writing.

        Raises:
            IncompleteCheckpointError: A shard is missing (it is a FileNotFoundError too).
            FormatError: A file is damaged, or the index and its shards are not of one export.
            ValueError: `path` is one shard of several.
            ImportError: safetensors is not installed.
            OSError: A file could not be read or written.
        """
        return hub.import_safetensors(path, output, progress=progress)

    @staticmethod
    def export_program(
        model: nn.Module,
        example_inputs: Any,
        output: _Path,
        *,
        example_kwargs: Mapping[str, Any] | None = None,
        dynamic_shapes: Any = None,
        rtol: float | None = None,
        atol: float | None = None,
    ) -> ExportReport:
        """Export a model with torch.export, and check that the program computes the same.

        The model is exported in eval mode; its training flags are put back. The file, a ``.pt2`` of
        ``torch.export.save``, is loaded again and run on the example inputs before it becomes visible.

        Args:
            model: The model; torch.compile and DistributedDataParallel around it are taken off.
            example_inputs: A tuple of positional arguments, or the only one.
            output: The new file.
            example_kwargs: Keyword arguments.
            dynamic_shapes: As for ``torch.export.export``: which dimensions may vary.
            rtol: Relative tolerance of the comparison; None: that of ``torch.testing.assert_close`` for the
                output's dtype, 1.3e-6 for float32.
            atol: Absolute tolerance; None likewise: 1e-5 for float32. Give both or neither.

        Returns:
            The report, with `.max_difference`.

        Raises:
            RuntimeError: The program computes something else; nothing is written.
            OSError: It could not be written.

        And whatever torch.export raises for a model that it cannot export.
        """
        job = programs.Job(model, example_inputs, example_kwargs, rtol, atol)
        return job.run(programs.TorchExport(dynamic_shapes), output)

    @staticmethod
    def export_onnx(
        model: nn.Module,
        example_inputs: Any,
        output: _Path,
        *,
        example_kwargs: Mapping[str, Any] | None = None,
        dynamic_shapes: Any = None,
        rtol: float = programs.ONNX_RTOL,
        atol: float = programs.ONNX_ATOL,
    ) -> ExportReport:
        """Export a model to ONNX by way of torch.export, and check that it computes the same.

        As `export_program`; the result passes ``onnx.checker`` and is run by onnxruntime or, where that is
        not installed, by onnx's reference evaluator. Weights beyond 2 GB go to a second file,
        ``<output>.data``; then neither may exist.

        Args:
            model: As for `export_program`.
            example_inputs: As for `export_program`.
            output: The new .onnx file.
            example_kwargs: As for `export_program`.
            dynamic_shapes: As for `export_program`.
            rtol: Relative tolerance: other kernels add in another order.
            atol: Absolute tolerance.

        Raises:
            ImportError: onnx or onnxscript is not installed.
            RuntimeError, OSError: As for `export_program`.
        """
        job = programs.Job(model, example_inputs, example_kwargs, rtol, atol)
        return job.run(programs.Onnx(dynamic_shapes), output)

    @staticmethod
    def export_torchscript(
        model: nn.Module,
        example_inputs: Any,
        output: _Path,
        *,
        example_kwargs: Mapping[str, Any] | None = None,
        rtol: float | None = None,
        atol: float | None = None,
    ) -> ExportReport:
        """Trace a model with torch.jit.trace, and check that the trace computes the same.

        As `export_program`. torch has deprecated TorchScript and says so in a warning: it is for programs
        that load nothing else.

        Args:
            model: As for `export_program`.
            example_inputs: As for `export_program`.
            output: The new file.
            example_kwargs: As for `export_program`; not together with positional arguments.
            rtol: As for `export_program`.
            atol: As for `export_program`.

        Raises:
            NotImplementedError: This torch has no TorchScript any more.
            RuntimeError, OSError: As for `export_program`.
        """
        job = programs.Job(model, example_inputs, example_kwargs, rtol, atol)
        return job.run(programs.TorchScript(), output)
