"""Models exported as programs: each computes what the model computes, or is not there."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastckpt import ExportReport, ModelExporter
from fastckpt.export import programs


class Net(nn.Module):
    """Dropout and normalization: what training mode would compute is something else."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        hidden = self.drop(self.norm(self.first(x))).relu()
        return self.last(hidden) * (1.0 if scale is None else scale), hidden.argmax(dim=-1)


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    model = Net()
    model.last.eval()  # One part is frozen in eval mode, and has to stay so.
    return model


X = torch.linspace(-1, 1, 12).view(4, 3)

# torch says so itself, wherever TorchScript is touched.
torchscript = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


def flags(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def expected(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    before = flags(model)
    with torch.no_grad():
        result: tuple[Tensor, Tensor] = model.eval()(*args, **kwargs)
    for name, module in model.named_modules():
        module.training = before[name]
    return result


def assert_report(report: ExportReport, path: Path, ran_by: str) -> None:
    assert report.source is None
    assert report.outputs == (str(path),)
    assert report.nbytes == path.stat().st_size
    assert report.tensors == 9
    assert report.max_difference is not None
    assert report.max_difference < 1e-5
    assert report.checked_with is not None
    assert report.checked_with.startswith(ran_by)
    assert os.listdir(path.parent) == [path.name]


# torch 2.9 reads its own files so.
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
@pytest.mark.slow
def test_a_program_of_torch_export_computes_the_same(model: Net, tmp_path: Path) -> None:
    path, before = tmp_path / "model.pt2", flags(model)
    batch = torch.export.Dim("batch")
    report = ModelExporter.export_program(
        model,
        (X,),
        path,
        example_kwargs={"scale": torch.tensor(2.0)},
        dynamic_shapes={"x": {0: batch}, "scale": None},
    )
    assert flags(model) == before
    assert_report(report, path, f"torch.export of torch {torch.__version__}")
    program = torch.export.load(path).module()
    other = torch.randn(7, 3)
    wanted = expected(model, other, scale=torch.tensor(3.0))
    torch.testing.assert_close(program(other, scale=torch.tensor(3.0)), wanted)


@torchscript
def test_a_trace_computes_the_same(model: Net, tmp_path: Path) -> None:
    path = tmp_path / "model.ts"
    report = ModelExporter.export_torchscript(model, X, path)
    assert_report(report, path, f"TorchScript of torch {torch.__version__}")
    torch.testing.assert_close(torch.jit.load(path)(X), expected(model, X))


@torchscript
def test_wrappers_are_taken_off(model: Net, tmp_path: Path) -> None:
    wrapped: Any = nn.DataParallel(model)
    ModelExporter.export_torchscript(wrapped, X, tmp_path / "model.ts")
    names = [name for name, _ in torch.jit.load(tmp_path / "model.ts").named_parameters()]
    assert names == [name for name, _ in model.named_parameters()]


class Changing(nn.Module):
    """Computes something else each time: what a trace keeps is not what the model does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


@torchscript
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_program_that_computes_something_else_is_not_written(tmp_path: Path) -> None:
    words = (
        r"output 0 of the exported program \(TorchScript of torch .*\) differs from the model's; nothing "
        r"was written\. Tensor-likes are not close!(?s:.*)Greatest absolute difference: [1-9]"
    )
    with pytest.raises(RuntimeError, match=words):
        ModelExporter.export_torchscript(Changing(), X, tmp_path / "model.ts")
    assert os.listdir(tmp_path) == []


@torchscript
def test_the_tolerances_are_those_asked_for(model: Net, tmp_path: Path) -> None:
    class Rounded(programs.TorchScript):
        def run(self, path: str, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, str]:
            (first, second), ran_by = super().run(path, args, kwargs)
            return (first + 1e-3, second), ran_by

    report = programs.Job(model, X, None, 0.0, 2e-3).run(Rounded(), tmp_path / "model.ts")
    assert report.max_difference == pytest.approx(1e-3, rel=1e-3)
    (tmp_path / "model.ts").unlink()
    with pytest.raises(RuntimeError, match=r"differs from the model's; nothing was written"):
        programs.Job(model, X, None, 0.0, 5e-4).run(Rounded(), tmp_path / "model.ts")
    assert os.listdir(tmp_path) == []


def test_an_exporter_that_fails_leaves_what_was_there(model: Net, tmp_path: Path) -> None:
    class Failing(programs.TorchScript):
        def write(self, model: nn.Module, args: tuple[Any, ...], kwargs: Any, path: str) -> None:
            Path(path).write_bytes(b"half a file")
            raise KeyboardInterrupt

    path, before = tmp_path / "model.ts", flags(model)
    path.write_bytes(b"an older one")
    with pytest.raises(KeyboardInterrupt):
        programs.Job(model, X, None, None, None).run(Failing(), path)
    assert path.read_bytes() == b"an older one"
    assert os.listdir(tmp_path) == ["model.ts"]
    assert flags(model) == before


def test_a_program_of_several_files_replaces_nothing(model: Net, tmp_path: Path) -> None:
    class WithWeights(programs.TorchScript):
        def write(self, model: nn.Module, args: tuple[Any, ...], kwargs: Any, path: str) -> None:
            Path(path).write_bytes(b"graph")
            Path(path + ".data").write_bytes(b"weights")

        def run(self, path: str, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, str]:
            return expected(model, X), "nothing"

    path = tmp_path / "a.onnx"
    report = programs.Job(model, X, None, None, None).run(WithWeights(), path)
    # The file that was asked for comes last: without it the other one is nothing.
    assert report.outputs == (str(path) + ".data", str(path))
    assert report.nbytes == len(b"graphweights")
    path.unlink()
    with pytest.raises(FileExistsError, match=r"would be mixed with.*a\.onnx\.data"):
        programs.Job(model, X, None, None, None).run(WithWeights(), path)
    assert os.listdir(tmp_path) == ["a.onnx.data"]


@pytest.mark.slow
@pytest.mark.parametrize("has_runtime", [True, False])
def test_an_onnx_model_computes_the_same(
    has_runtime: bool, model: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    import onnxruntime

    path = tmp_path / "model.onnx"
    if not has_runtime:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    ran_by = f"onnxruntime {onnxruntime.__version__}" if has_runtime else "the reference evaluator"
    batch = torch.export.Dim("batch")
    report = ModelExporter.export_onnx(
        model,
        (X,),
        path,
        example_kwargs={"scale": torch.tensor(2.0)},
        dynamic_shapes={"x": {0: batch}, "scale": None},
    )
    assert_report(report, path, ran_by)
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    other = torch.randn(7, 3)
    assert [node.name for node in session.get_inputs()] == ["x", "scale"]
    feeds = {"x": other.numpy(), "scale": torch.tensor(3.0).numpy()}
    found = [torch.from_numpy(output) for output in session.run(None, feeds)]
    wanted = expected(model, other, scale=torch.tensor(3.0))
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_what_onnx_needs_is_named_with_the_extra(
    missing: str, model: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None if name == missing else sys)
    words = rf"an ONNX export needs {missing}: pip install 'fastckpt\[export\]'"
    with pytest.raises(ImportError, match=words):
        ModelExporter.export_onnx(model, X, tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == []
