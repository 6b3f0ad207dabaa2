"""A state that was saved with one thing around the model loads with another around it, or nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

import fastckpt
from fastckpt.training.restoring import model_names


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)


class Net(nn.Module):
    """Its first part is called as what DataParallel puts in front."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.module = Block()
        self.head = nn.Linear(3, 2)
        self.tied = self.head


def same_values(one: Any, other: Any) -> bool:
    """Whether two models have the same values in the same order, whatever their names."""
    values = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in values)


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


def partly_compiled(model: Any) -> Any:
    model.module = compiled(model.module)
    return model


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "bare": lambda model: model,
    "compiled": compiled,
    "partly": partly_compiled,
    "parallel": DataParallel,
    "distributed": DistributedDataParallel,
    "compiled distributed": lambda model: compiled(DistributedDataParallel(model)),
    "distributed compiled": lambda model: DistributedDataParallel(compiled(model)),
    "partly, distributed": lambda model: DistributedDataParallel(partly_compiled(model)),
}


def load_model_state(model: Any, state: Any) -> None:
    target, renamed = model_names.state_for(model, state)
    target.load_state_dict(renamed)


@pytest.fixture(autouse=True)
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("then", WRAPPERS)
def test_what_one_wrapper_saved_every_other_loads(then: str, tmp_path: Path) -> None:
    config = fastckpt.CheckpointConfig(str(tmp_path / "run"), metric_name=None)
    path = fastckpt.CheckpointManager(config, WRAPPERS[then](Net(1)), None, None).save(0, 1, {})
    assert path is not None
    for wrap in WRAPPERS.values():
        present = Net(2)
        resumed = fastckpt.resume_training(path, wrap(present), None, None)
        assert resumed.restored[0] == "model"
        assert same_values(present, Net(1))


def test_the_versions_keep_to_their_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def note(self: Block, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        seen[prefix] = metadata.get("mark")
        nn.Module._load_from_state_dict(self, state, prefix, metadata, *rest)

    for then, wrap in WRAPPERS.items():
        state = wrap(Net(1)).state_dict()
        for name, versions in state._metadata.items():
            versions["mark"] = name
        with monkeypatch.context() as patch:
            patch.setattr(Block, "_load_from_state_dict", note)
            load_model_state(Net(2), state)
        mark = seen.pop("module.")
        assert mark.replace("_orig_mod", "").strip(".").endswith("module"), then


def test_another_model_is_refused_in_torchs_words() -> None:
    state = compiled(nn.Linear(3, 2)).state_dict()
    model = Net(2)
    before = copy.deepcopy(model)
    with pytest.raises(
        RuntimeError, match=r'Unexpected key\(s\) in state_dict: "_orig_mod.weight"'
    ):
        load_model_state(model, state)
    assert same_values(model, before)


def test_a_model_whose_parts_are_all_called_module_is_itself() -> None:
    saved, present = nn.Module(), nn.Module()
    saved.module, present.module = nn.Linear(2, 2), nn.Linear(2, 2)
    load_model_state(present, saved.state_dict())
    assert torch.equal(present.module.weight, saved.module.weight)
    load_model_state(present.module, saved.state_dict())
    assert torch.equal(present.module.weight, saved.module.weight)
