"""Export models as programs with torch's own exporters, and check each by running it."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from fastckpt import _native
from fastckpt._bare_model import unwrap

from .optional import require
from .publishing import publish, sizes, staging
from .report import ExportReport

# The kernels of another runtime add in another order: the output of a deep model differs in more than the last
# digits of a float32.
ONNX_RTOL = 1e-3
ONNX_ATOL = 1e-4


class Exporter(Protocol):
    """One way to export."""

    def write(self, model: nn.Module, args: tuple[Any, ...], kwargs: Any, path: str) -> None:
        """Export the model to a file, and possibly to others whose names begin with its name."""

    def run(self, path: str, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, str]:
        """Load and run the file; return the outputs and the name of what ran it."""


class Job:
    """One export of one model."""

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        example_kwargs: Mapping[str, Any] | None,
        rtol: float | None,
        atol: float | None,
    ) -> None:
        self._model = unwrap(model)
        self._args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
        self._kwargs = dict(example_kwargs or {})
        self._rtol, self._atol = rtol, atol

    def run(self, exporter: Exporter, output: str | os.PathLike[str]) -> ExportReport:
        """Export, compare, publish."""
        path = os.fspath(output)
        directory, name = os.path.dirname(path), os.path.basename(path)
        nbytes = sum(tensor.nbytes for tensor in self._tensors())
        _native.Commit().require_space(directory or os.curdir, nbytes)
        with _evaluating(self._model), torch.no_grad(), staging(directory) as stage:
            expected = self._model(*self._copied(self._args), **self._copied(self._kwargs))
            staged = os.path.join(stage, name)
            exporter.write(
                self._model, self._copied(self._args), self._copied(self._kwargs), staged
            )
            found, ran_by = exporter.run(
                staged, self._copied(self._args), self._copied(self._kwargs)
            )
            difference = self._compare(expected, found, ran_by)
            # The requested file comes last, since the others are parts of it.
            names = sorted(os.listdir(stage), key=lambda file: (file == name, file))
            outputs = publish(stage, directory, names)
        return ExportReport(
            source=None,
            outputs=tuple(outputs),
            source_nbytes=None,
            nbytes=sizes(outputs),
            tensors=len(self._tensors()),
            max_difference=difference,
            checked_with=ran_by,
        )

    def _tensors(self) -> list[Tensor]:
        return [*self._model.parameters(), *self._model.buffers()]

    def _copied(self, inputs: Any) -> Any:
        # A model may write to its inputs.
        return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)

    def _compare(self, expected: Any, found: Any, ran_by: str) -> float:
        """Return the largest difference; raise RuntimeError beyond the tolerances."""
        ours = [value for value in tree_flatten(expected)[0] if isinstance(value, Tensor)]
        theirs = [value for value in tree_flatten(found)[0] if isinstance(value, Tensor)]
        if len(ours) != len(theirs):
            raise RuntimeError(
                f"the exported program has {len(theirs)} outputs ({ran_by}), the model {len(ours)}; nothing "
                "was written"
            )
        largest = 0.0
        for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            try:
                torch.testing.assert_close(
                    other.to(mine.device), mine, rtol=self._rtol, atol=self._atol
                )
            except AssertionError as error:
                raise RuntimeError(
                    f"output {i} of the exported program ({ran_by}) differs from the model's; nothing was "
                    f"written. {error}"
                ) from error
            if mine.numel():
                wide = torch.complex128 if mine.is_complex() else torch.float64
                distance = (other.cpu().to(wide) - mine.cpu().to(wide)).abs()
                # The distance of equal infinities is NaN.
                largest = max(largest, float(distance.nan_to_num(nan=0.0).max()))
        return largest


class TorchExport:
    """torch.export."""

    def __init__(self, dynamic_shapes: Any) -> None:
        self._dynamic_shapes = dynamic_shapes

    def write(self, model: nn.Module, args: tuple[Any, ...], kwargs: Any, path: str) -> None:
        """Export and save."""
        program = torch.export.export(
            model, args, kwargs or None, dynamic_shapes=self._dynamic_shapes
        )
        # torch.export.save refuses paths with another suffix than .pt2, but not open files.
        with open(path, "wb") as file:
            torch.export.save(program, file)

    def run(self, path: str, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, str]:
        """Load and run."""
        with open(path, "rb") as file:
            program = torch.export.load(file)
        return program.module()(*args, **kwargs), f"torch.export of torch {torch.__version__}"


class TorchScript:
    """torch.jit.trace."""

    def write(self, model: nn.Module, args: tuple[Any, ...], kwargs: Any, path: str) -> None:
        """Trace and save."""
        if not hasattr(torch.jit, "trace"):
            raise NotImplementedError(
                f"torch {torch.__version__} has no TorchScript: use export_program"
            )
        if args and kwargs:
            raise ValueError("torch.jit.trace takes positional or keyword arguments, not both")
        inputs = {"example_kwarg_inputs": kwargs} if kwargs else {"example_inputs": args}
        # torch's own check would run the model twice more, and the saved file is compared anyway.
        torch.jit.save(torch.jit.trace(model, check_trace=False, **inputs), path)

    def run(self, path: str, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, str]:
        """Load and run."""
        return torch.jit.load(path)(*args, **kwargs), f"TorchScript of torch {torch.__version__}"


class Onnx:
    """torch.onnx.export, by way of torch.export."""

    def __init__(self, dynamic_shapes: Any) -> None:
        self._dynamic_shapes = dynamic_shapes
        for module in ("onnx", "onnxscript"):
            require(module, "an ONNX export")

    def write(self, model: nn.Module, args: tuple[Any, ...], kwargs: Any, path: str) -> None:
        """Export, save and check the structure."""
        program = torch.onnx.export(
            model,
            args,
            kwargs=kwargs or None,
            dynamo=True,
            dynamic_shapes=self._dynamic_shapes,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export has returned no program")
        program.save(path)
        # By its path, where the checker finds external data.
        require("onnx", "an ONNX export").checker.check_model(path)

    def run(self, path: str, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, str]:
        """Run with onnxruntime or, if it is not installed, with onnx itself."""
        try:
            runtime = require("onnxruntime", "")
        except ImportError:
            onnx = require("onnx", "an ONNX export")
            evaluator = onnx.reference.ReferenceEvaluator(path)
            outputs = evaluator.run(None, _feeds(evaluator.input_names, args, kwargs))
            ran_by = f"the reference evaluator of onnx {onnx.__version__}"
        else:
            session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
            names = [node.name for node in session.get_inputs()]
            outputs = session.run(None, _feeds(names, args, kwargs))
            ran_by = f"onnxruntime {runtime.__version__}"
        return [torch.from_numpy(output) for output in outputs], ran_by


def _feeds(names: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays by the names of the graph's inputs: keywords by name, the rest in order."""
    by_name = {key: value for key, value in kwargs.items() if key in names}
    rest = {key: value for key, value in kwargs.items() if key not in by_name}
    values = [x for x in tree_flatten((args, rest))[0] if isinstance(x, Tensor)]
    others = [name for name in names if name not in by_name]
    feeds = {**by_name, **dict(zip(others, values, strict=True))}
    return {name: value.cpu().numpy() for name, value in feeds.items()}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and restore the mode of each module afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
