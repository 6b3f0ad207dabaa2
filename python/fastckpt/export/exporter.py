"""`ModelExporter`, with one method for each format."""

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
    """Export the weights in a checkpoint, or a model as a program.

    Files become visible when they are complete and durable. An error or a kill leaves the previous files as
    they were. Every byte that is read from a checkpoint is checked against its checksum.
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
        """Write only the weights of a checkpoint to a .pt file.

        The file is a dict: the state dict under ``"model_state_dict"``, and the model's configuration under
        the key that the checkpoint has for it. Plain torch.load reads it. Tensors are on the CPU. Their names
        are those of the bare model, without the prefixes of torch.compile and DistributedDataParallel. A
        slice of a large storage is copied out of it; shared tensors stay shared. The optimizer's state is not
        read. Sizes, reduction and the configuration's key are logged at INFO level.

        Args:
            checkpoint_path: A .pt file that is a state dict, or has one under ``model_state_dict``,
                ``model_state``, ``state_dict`` or ``model``.
            output_path: The new file. It may be `checkpoint_path`.
            include_config: Whether to write the configuration: what the checkpoint has under
                ``model_config``, ``gpt_cfg``, ``config``, ``model_args``, ``args``, ``hyper_parameters``,
                ``hparams`` or ``cfg``. In a checkpoint of a `CheckpointManager` that is ``model_config``
                only.
            use_ema: Write the averages under ``"ema_state_dict"`` instead of the weights, in the weights'
                dtypes. They may be those of an `EMAModel` or ``swa_utils.AveragedModel``, or a dict of
                tensors.
            threads: Number of threads; None: automatic.
            progress: Called with bytes done and total bytes, for reading and then for writing.

        Returns:
            The report. `.source_nbytes` and `.nbytes` are the sizes before and after, `.config_keys` says
            which configuration was written.

        Raises:
            OSError: A file could not be read or written.
            FormatError: The file is damaged, or has no state dict of a model, or no averages that fit it.
            ChecksumError: The checkpoint has changed since it was written.
            UnsafePickleError: The file has an object that ``weights_only=True`` does not allow.

        Example:
            >>> import torch, fastckpt
            >>> fastckpt.save({"model": {"w": torch.ones(2)}, "optimizer": torch.ones(99)}, "c.pt")
            >>> report = fastckpt.ModelExporter.export_inference_checkpoint("c.pt", "i.pt")
            >>> torch.load("i.pt")
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

        Weights that fit into one shard are one file. Others are ``...-00001-of-00002.safetensors`` and so on,
        with ``....safetensors.index.json``. If several names share memory, one is stored, and the metadata
        map the others to it. The configuration goes into the metadata as JSON, e.g. under
        ``"fastckpt.model_config"``.

        Args:
            checkpoint_path: As for `export_inference_checkpoint`.
            output: A file with the suffix .safetensors, which may exist if a single file is written; or a
                directory for ``model.safetensors``, which is made if necessary.
            max_shard_nbytes: Maximum size of the tensors of a shard, in bytes. A larger tensor gets its own
                shard.
            include_config: As for `export_inference_checkpoint`.
            use_ema: As for `export_inference_checkpoint`.
            threads: Number of threads that read; None: automatic.
            progress: Called with bytes done and total bytes, for reading.

        Raises:
            FileExistsError: The new files would be mixed with older ones.
            ImportError: safetensors is not installed.
            ValueError: The format cannot hold a part of the state dict; the message names it.

        It also raises what `export_inference_checkpoint` raises. The safetensors library writes through the
        page cache; each file is fsynced before it becomes visible.
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
        """Convert a safetensors file, or all shards of an index, to a .pt file.

        The file is like one of `export_inference_checkpoint`. Names that the metadata map to another one
        share its memory again. Shards are compared with their index. Damage to tensors cannot be detected,
        since safetensors files have no checksums.

        Args:
            path: A .safetensors file, a .safetensors.index.json, or a directory with a
                ``model.safetensors`` or its index.
            output: The new .pt file.
            progress: Called with bytes done and total bytes, for writing.

        Raises:
            IncompleteCheckpointError: A shard is missing; also a FileNotFoundError.
            FormatError: A file is damaged, or index and shards belong to different exports.
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

        The model is exported in eval mode; its training flags are restored. The file, a ``.pt2`` of
        ``torch.export.save``, is loaded and run on the example inputs before it becomes visible.

        Args:
            model: The model. It is taken out of torch.compile and DistributedDataParallel.
            example_inputs: A tuple of positional arguments, or a single argument.
            output: The new file.
            example_kwargs: Keyword arguments.
            dynamic_shapes: The dimensions that may vary, as for ``torch.export.export``.
            rtol: Relative tolerance of the comparison; None: that of ``torch.testing.assert_close`` for the
                output's dtype, 1.3e-6 for float32.
            atol: Absolute tolerance; None: likewise, 1e-5 for float32. Give both or neither.

        Returns:
            The report, with `.max_difference`.

        Raises:
            RuntimeError: The program's outputs differ; nothing is written.
            OSError: The file could not be written.

        It also raises what torch.export raises for a model that it cannot export.
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

        Like `export_program`. The result passes ``onnx.checker``. onnxruntime runs it, or onnx's reference
        evaluator if onnxruntime is not installed. Weights beyond 2 GB go to a second file,
        ``<output>.data``; then neither file may exist.

        Args:
            model: As for `export_program`.
            example_inputs: As for `export_program`.
            output: The new .onnx file.
            example_kwargs: As for `export_program`.
            dynamic_shapes: As for `export_program`.
            rtol: Relative tolerance, larger than for `export_program`: other kernels add in another order.
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

        Like `export_program`. torch has deprecated TorchScript and warns about it: use it for programs that
        load nothing else.

        Args:
            model: As for `export_program`.
            example_inputs: As for `export_program`.
            output: The new file.
            example_kwargs: As for `export_program`, but not together with positional arguments.
            rtol: As for `export_program`.
            atol: As for `export_program`.

        Raises:
            NotImplementedError: This version of torch has no TorchScript.
            RuntimeError, OSError: As for `export_program`.
        """
        job = programs.Job(model, example_inputs, example_kwargs, rtol, atol)
        return job.run(programs.TorchScript(), output)
