"""ModelSelector and ModelExporter beside the guide's: the same scripts run with either, on either's files."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import guide_classes
from tests.ema_models import bits, change
from torch import nn

import fastckpt
from fastckpt import CheckpointConfig, CheckpointManager

LOSSES = {10: 2.5, 20: 1.75, 30: 3.0, 40: 2.0, 50: 1.5, 60: 2.25, 70: 4.0}
CONFIG = {"width": 4, "rates": [0.5, None]}
Write = Callable[[Path, nn.Module, int, float], Path]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))


def theirs(directory: Path, model: nn.Module, step: int, loss: float) -> Path:
    """Write a checkpoint as the guide's manager does."""
    metrics = {"val_loss": loss, "bleu": np.float64(10 / loss)}
    path = directory / f"checkpoint_epoch{step // 10:04d}_step{step:08d}.pt"
    return guide_classes.checkpoint(path, model, step, metrics=metrics, model_config=CONFIG)


def ours(directory: Path, model: nn.Module, step: int, loss: float) -> Path:
    """Write one with our manager."""
    config = CheckpointConfig(directory, save_total_limit=None)
    manager = CheckpointManager(config, model, torch.optim.AdamW(model.parameters()), None)
    path = manager.save(
        step // 10, step, {"val_loss": loss, "bleu": 10 / loss}, model_config=CONFIG
    )
    assert path is not None
    return path


WRITERS = pytest.mark.parametrize("write", [theirs, ours], ids=["theirs", "ours"])


def run_of(directory: Path, write: Write) -> tuple[nn.Module, list[Path]]:
    model = make_model()
    paths = []
    for step, loss in LOSSES.items():
        change(model, step)
        paths.append(write(directory, model, step, loss))
    return model, paths


@WRITERS
def test_the_best_are_chosen_and_averaged_by_the_guides_lines(write: Write, tmp_path: Path) -> None:
    model, paths = run_of(tmp_path, write)
    before = bits(model.state_dict())
    chosen, averaged = [], []
    for kind in (guide_classes.ModelSelector, fastckpt.ModelSelector):
        selector: Any = kind
        assert selector.select_top_k_by_metric(paths) == [paths[i] for i in (4, 1, 3, 5, 0)]
        best = selector.select_top_k_by_metric(paths, "bleu", "max", 3)
        chosen.append(best)
        state = selector.average_checkpoints(best, model)
        # The model is a reference only.
        assert bits(model.state_dict()) == before
        other = make_model()
        other.load_state_dict(state)
        averaged.append(other.state_dict())
    assert chosen[0] == chosen[1] == [paths[i] for i in (4, 1, 3)]
    assert averaged[0].keys() == averaged[1].keys()
    for name, value in averaged[0].items():
        if value.is_floating_point():
            torch.testing.assert_close(averaged[1][name], value)
    # A counter is not averaged: it is the last one's.
    count = torch.load(paths[3], weights_only=False)["model_state_dict"]["1.num_batches_tracked"]
    assert torch.equal(averaged[1]["1.num_batches_tracked"], count)


@WRITERS
def test_lists_of_strings_are_taken(write: Write, tmp_path: Path) -> None:
    _, paths = run_of(tmp_path, write)
    best = fastckpt.ModelSelector.select_top_k_by_metric([str(path) for path in paths])
    assert best == [paths[i] for i in (4, 1, 3, 5, 0)]
    state = fastckpt.ModelSelector.average_checkpoints(map(str, best))
    assert set(state) == set(make_model().state_dict())


def test_averaging_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, paths = run_of(tmp_path, ours)
    caplog.set_level(logging.INFO)
    said = []
    for kind in (guide_classes.ModelSelector, fastckpt.ModelSelector):
        caplog.clear()
        kind.average_checkpoints(paths[:3], model)
        said.append([record.getMessage() for record in caplog.records])
    assert said[0] == said[1] == ["Averaging 3 checkpoints..."]
    assert caplog.records[0].name == "fastckpt.selection"
    with pytest.raises(TypeError, match="not one path"):
        fastckpt.ModelSelector.average_checkpoints(str(paths[0]))


@WRITERS
@pytest.mark.parametrize("include_config", [True, False])
def test_the_guides_export_is_ours(
    write: Write, include_config: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    source = write(tmp_path, model, 10, 2.5)
    caplog.set_level(logging.INFO)
    for kind, name in ((guide_classes.ModelExporter, "a.pt"), (fastckpt.ModelExporter, "b.pt")):
        caplog.clear()
        kind.export_inference_checkpoint(str(source), str(tmp_path / name), include_config)
    saved, expected = (torch.load(tmp_path / name, weights_only=True) for name in ("b.pt", "a.pt"))
    assert list(saved) == list(expected)
    assert saved.get("model_config") == expected.get("model_config")
    assert bits(saved["model_state_dict"]) == bits(expected["model_state_dict"])
    make_model().load_state_dict(saved["model_state_dict"])
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("Exported inference checkpoint:")
    assert [one.split(":")[0].strip() for one in said[1:]] == [
        *("Original", "Inference", "Reduction", "Configuration")
    ]
    before, after = source.stat().st_size, (tmp_path / "b.pt").stat().st_size
    assert said[3] == f"  Reduction: {(1 - after / before) * 100:.1f}%"
    named = "model_config" if include_config else "not found, or left out"
    assert said[4] == f"  Configuration: {named}"
    assert {record.name for record in caplog.records} == {"fastckpt.export"}


# Configurations of other names


def exported(root: dict[str, Any], directory: Path) -> tuple[fastckpt.ExportReport, Any]:
    torch.save({"model_state_dict": {"w": torch.ones(2)}, **root}, directory / "c.pt")
    report = fastckpt.ModelExporter.export_inference_checkpoint(
        directory / "c.pt", directory / "i.pt"
    )
    saved = torch.load(directory / "i.pt", weights_only=True)
    assert saved.pop("model_state_dict")["w"].tolist() == [1.0, 1.0]
    assert tuple(saved) == report.config_keys
    return report, saved


@pytest.mark.parametrize(
    "key",
    [
        *("model_config", "gpt_cfg", "config", "model_args", "args", "hyper_parameters"),
        *("hparams", "cfg"),
    ],
)
def test_a_configuration_is_kept_under_the_name_that_it_has(key: str, tmp_path: Path) -> None:
    report, saved = exported({key: CONFIG, "other": 3, "epoch": 1, "global_step": 2}, tmp_path)
    assert saved == {key: CONFIG}
    assert report.config_keys == (key,)
    assert report.has_config
    # Also by way of safetensors.
    pytest.importorskip("safetensors")
    report = fastckpt.ModelExporter.export_safetensors(
        tmp_path / "c.pt", tmp_path / "m.safetensors"
    )
    assert report.config_keys == (key,)
    report = fastckpt.ModelExporter.import_safetensors(
        tmp_path / "m.safetensors", tmp_path / "back.pt"
    )
    assert report.config_keys == (key,)
    assert torch.load(tmp_path / "back.pt", weights_only=True)[key] == CONFIG


def test_of_several_configurations_all_are_kept(tmp_path: Path) -> None:
    root = {"config": {"lr": 0.1}, "model_args": CONFIG, "args": None}
    report, saved = exported(root, tmp_path)
    assert saved == {"config": {"lr": 0.1}, "model_args": CONFIG}
    assert report.config_keys == ("config", "model_args")


@pytest.mark.parametrize("model_config", [None, CONFIG])
def test_the_configuration_of_a_manager_is_not_the_models(
    model_config: Any, tmp_path: Path
) -> None:
    manager = CheckpointManager(CheckpointConfig(tmp_path / "run"), make_model(), None, None)
    path = manager.save(0, 1, {"val_loss": 1.0}, model_config=model_config)
    assert path is not None
    report = fastckpt.ModelExporter.export_inference_checkpoint(path, tmp_path / "i.pt")
    saved = torch.load(tmp_path / "i.pt", weights_only=True)
    expected = {} if model_config is None else {"model_config": CONFIG}
    assert {key: saved[key] for key in saved if key != "model_state_dict"} == expected
    assert report.config_keys == tuple(expected)


# Averages


@pytest.mark.parametrize("kind", [guide_classes.EMAModel, fastckpt.EMAModel])
@pytest.mark.parametrize("wrapper", ["none", "compile", "DataParallel"])
def test_averages_of_either_class_are_exported(kind: Any, wrapper: str, tmp_path: Path) -> None:
    model: Any = make_model()
    if wrapper != "none":
        model = torch.compile(model) if wrapper == "compile" else nn.DataParallel(model)
    options = {"use_buffers": True} if kind is fastckpt.EMAModel else {}
    ema = kind(model, 0.5, **options)
    change(model, 1)
    ema.update()
    saved = {"model_state_dict": model.state_dict(), "ema_state_dict": ema.state_dict()}
    torch.save(saved, tmp_path / "c.pt")
    fastckpt.ModelExporter.export_inference_checkpoint(
        tmp_path / "c.pt", tmp_path / "i.pt", use_ema=True
    )
    state = torch.load(tmp_path / "i.pt", weights_only=True)["model_state_dict"]
    assert list(state) == list(make_model().state_dict())
    for name, value in ema.shadow.items():
        bare = re.sub(r"^(module|_orig_mod)\.", "", name)
        assert torch.equal(state[bare], value)
