"""A run of the guide's own CheckpointManager, seen by all that only looks at checkpoints or copies them."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import guide_manager
from tests.archives import records, with_records
from tests.specimens import assert_same

import fastckpt

STEPS, LOSSES = (10, 20, 30, 40), (2.0, 1.25, 0.5, 1.75)
# Numbers as scripts have them: Python's own, numpy's means, a loss on which nobody called .item().
NUMBERS: dict[str, Callable[[float], Any]] = {
    "float": float,
    "float64": np.float64,
    "float32": np.float32,
    "array": np.array,
    "tensor": torch.tensor,
}
MODEL_CONFIG = {"width": 3, "dropout": np.float64(0.1), "sizes": np.arange(4)}


@pytest.fixture(params=NUMBERS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    """Return the checkpoints of a short run of the guide's manager."""
    number = NUMBERS[request.param]
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    scaler = torch.amp.GradScaler("cpu")
    config = guide_manager.CheckpointConfig(str(tmp_path / "run"))
    manager = guide_manager.CheckpointManager(config, model, optimizer, scheduler, scaler)
    paths = []
    for epoch, (step, loss) in enumerate(zip(STEPS, LOSSES, strict=True)):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        scheduler.step()
        metrics = {"val_loss": number(loss), "bleu": number(10 * loss)}
        path = manager.save(epoch, step, metrics, MODEL_CONFIG, {"seen": np.int64(step)})
        assert path is not None
        paths.append(path)
    return paths


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the model's weights, as the guide loads them."""
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=False)["model_state_dict"]
    return state


def test_load_returns_what_the_guide_loads(saved: list[Path]) -> None:
    for path in saved:
        assert_same(fastckpt.load(path), torch.load(path, weights_only=False))


def test_inspect_shows_step_epoch_and_metrics(saved: list[Path]) -> None:
    for epoch, (path, step, loss) in enumerate(zip(saved, STEPS, LOSSES, strict=True)):
        contents = fastckpt.inspect_checkpoint(path)
        assert isinstance(contents, fastckpt.FileContents)
        assert (contents.step, contents.epoch, contents.problem) == (step, epoch, None)
        assert contents.metrics["val_loss"] == loss
        assert contents.metrics["bleu"] == 10 * loss
        assert contents.values["model_config.dropout"] == 0.1
        assert contents.omitted["model_config.sizes"] == 4
        assert contents.values["extra_state.seen"] == step
        assert contents.omitted["rng_states.numpy.1"] == 624
    directory = fastckpt.inspect_checkpoint(saved[0].parent)
    assert isinstance(directory, fastckpt.DirectoryContents)
    (found,) = directory.runs
    rows = {row.name: row for row in found.checkpoints}
    assert rows.keys() == {*(path.name for path in saved), "best_model.pt"}
    for path, loss in zip(saved, LOSSES, strict=True):
        row = rows[path.name]
        assert (row.state.value, row.problem) == ("whole", None)
        assert row.metrics["val_loss"] == loss


@pytest.mark.parametrize(("mode", "order"), [("min", [2, 1, 3, 0]), ("max", [0, 3, 1, 2])])
def test_the_metric_ranks_them(saved: list[Path], mode: Any, order: list[int]) -> None:
    expected = [saved[place] for place in order]
    chosen = fastckpt.ModelSelector.select_top_k_by_metric(saved, "val_loss", mode, 4)
    assert chosen == expected
    best = [ranked.path for ranked in fastckpt.top(saved[0].parent, "val_loss", mode=mode)]
    # The copy of the best has its numbers, too.
    assert [path for path in best if path.name != "best_model.pt"] == expected


def test_they_are_averaged(saved: list[Path], tmp_path: Path) -> None:
    fastckpt.average_files(saved[:2], tmp_path / "average.pt")
    averaged = fastckpt.load(tmp_path / "average.pt")
    first, second = weights(saved[0]), weights(saved[1])
    for name, value in first.items():
        mean = (value.double() + second[name].double()) / 2
        assert torch.equal(averaged[name], mean.float())


def test_they_are_exported(saved: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "inference.pt"
    fastckpt.export_checkpoint(saved[1], out)
    exported = torch.load(out, weights_only=False)
    assert_same(exported["model_state_dict"], weights(saved[1]))
    assert_same(exported["model_config"], MODEL_CONFIG)


def test_they_differ_where_they_do(saved: list[Path], tmp_path: Path) -> None:
    assert fastckpt.diff(saved[0], saved[0]).ok
    contents = torch.load(saved[0], weights_only=False)
    contents["rng_states"]["numpy"][1][7] += 1
    contents["model_config"] = {**MODEL_CONFIG, "sizes": np.arange(4.0)}
    torch.save(contents, tmp_path / "other.pt")
    (difference,) = fastckpt.diff(saved[0], tmp_path / "other.pt").files
    assert {value.name for value in difference.values} == {
        "rng_states.numpy.1",
        "model_config.sizes",
    }
    (sizes,) = (value for value in difference.values if value.name == "model_config.sizes")
    assert str(sizes.a).startswith("<numpy array of int64, shape [4] (SHA-256 ")
    assert str(sizes.b).startswith("<numpy array of float64, shape [4] (SHA-256 ")


def test_they_are_verified_copied_pruned_and_repaired(saved: list[Path], tmp_path: Path) -> None:
    directory = saved[0].parent
    assert fastckpt.verify(directory).ok
    assert fastckpt.copy_checkpoint(directory, tmp_path / "copy").ok
    for path in saved:
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()
    data = bytearray(saved[1].read_bytes())
    weight = weights(saved[1])["weight"].numpy().tobytes()
    data[data.index(weight)] ^= 1
    (tmp_path / "damaged.pt").write_bytes(data)
    fastckpt.repair(tmp_path / "damaged.pt", tmp_path / "repaired.pt")
    found, expected = fastckpt.load(tmp_path / "repaired.pt"), fastckpt.load(saved[1])
    assert "weight" not in found["model_state_dict"]
    assert_same(found["rng_states"], expected["rng_states"])
    assert fastckpt.prune(directory, keep=1, keep_best=1, metric="val_loss", mode="min").ok
    left = {path.name for path in directory.iterdir() if path.suffix == ".pt"}
    assert left == {saved[2].name, saved[3].name, "best_model.pt"}


def test_our_manager_takes_the_directory_over(saved: list[Path]) -> None:
    config = fastckpt.CheckpointConfig(saved[0].parent)
    model = torch.nn.Linear(3, 2)
    manager = fastckpt.CheckpointManager(config, model, torch.optim.AdamW(model.parameters()))
    assert manager.checkpoints == saved
    assert manager.best_metric == min(LOSSES)
    assert manager.metrics_history["val_loss"] == list(LOSSES)
    assert manager.metrics_history["bleu"] == [10 * loss for loss in LOSSES]


def metric_file(tmp_path: Path) -> Path:
    path = tmp_path / "a.pt"
    saved = {"step": 3, "model": {"w": torch.ones(2)}, "metrics": {"val_loss": torch.tensor(2.5)}}
    torch.save(saved, path)
    return path


def test_a_damaged_metric_is_said_and_hides_nothing_else(tmp_path: Path) -> None:
    path = metric_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[data.index(np.float32(2.5).tobytes())] ^= 1
    path.write_bytes(data)
    contents = fastckpt.inspect_checkpoint(path)
    assert isinstance(contents, fastckpt.FileContents)
    assert (contents.step, contents.metrics) == (3, {})
    assert contents.problem is not None
    assert "checksum mismatch" in contents.problem
    assert [tensor.name for tensor in contents.tensors] == ["model.w", "metrics.val_loss"]


def test_a_metric_of_a_machine_of_the_other_byte_order(tmp_path: Path) -> None:
    path = metric_file(tmp_path)
    data = path.read_bytes()
    (key,) = (k for k, found in records(data).items() if found == np.float32(2.5).tobytes())
    big: dict[str, bytes | None] = {"byteorder": b"big", key: np.array(2.5, ">f4").tobytes()}
    path.write_bytes(with_records(data, big))
    contents = fastckpt.inspect_checkpoint(path)
    assert isinstance(contents, fastckpt.FileContents)
    assert contents.metrics == {"val_loss": 2.5}
    assert [ranked.metric for ranked in fastckpt.top(tmp_path, "val_loss")] == [2.5]
