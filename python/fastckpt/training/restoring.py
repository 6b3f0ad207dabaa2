"""Put the states of a checkpoint back into the objects of a training run."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch

from fastckpt import _native
from fastckpt._archive.load import load
from fastckpt._steps.checkpoint_names import CheckpointName
from fastckpt.errors import CheckpointError, FormatError

from .contents import Parts, read_contents
from .history import plain_history
from .log import logger
from .model_state import load_model_state
from .ranks import rank_and_world_size
from .rng import Generator, check_generators, restore_rng

_Path = str | os.PathLike[str]


class Resumed(dict[str, Any]):
    """Where training goes on: epoch, global_step, best_metric, metrics, metrics_history, extra_state.

    Attributes:
        path: The file that was loaded.
        restored: What was restored, in order, e.g. "optimizer".
        skipped: What was not, with the reason for each.
    """

    path: str
    restored: tuple[str, ...]
    skipped: dict[str, str]


def resume_training(
    checkpoint_path: _Path,
    model: Any,
    optimizer: Any,
    scheduler: Any,
    scaler: Any = None,
    *,
    ema: Any = None,
    generators: Mapping[str, Generator] | None = None,
) -> Resumed:
    """Restore all of a training run from one checkpoint, so that it goes on bit for bit.

    The whole file is read and checked before anything is changed. Model and optimizer keep their
    devices: the states are moved to where the parameters are, with the dtypes that they were saved in.
    The random number generators are set last. With torch.distributed, every rank calls it, and gets
    its own RNG states from `..._rank{r}.pt` beside the checkpoint.

    Args:
        checkpoint_path: A checkpoint of a `CheckpointManager`, `best_model.pt` too.
        model: Gets its parameters and buffers.
        optimizer: Gets its state; None for none.
        scheduler: The same.
        scaler: The same; a torch.amp.GradScaler.
        ema: The same; anything with load_state_dict.
        generators: Random number generators beside the global ones, by the names that the manager
            had for them.

    Returns:
        A dict with epoch, global_step, best_metric, metrics, metrics_history and extra_state. Its
        attributes `restored` and `skipped` say what was restored and what not, and why; what was not
        is logged as a warning too.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be read.
        CheckpointError: It is damaged, or no checkpoint of a manager.
        RuntimeError, ValueError, KeyError: A state does not fit its object, in that object's own words.

    Example:
        >>> import fastckpt, torch
        >>> model = torch.nn.Linear(2, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> config = fastckpt.CheckpointConfig("/tmp/example", metric_name=None)
        >>> manager = fastckpt.CheckpointManager(config, model, optimizer, None)
        >>> path = manager.save(epoch=0, step=10, metrics={})
        >>> fastckpt.resume_training(path, model, optimizer, None)["global_step"]
        10
    """
    parts = Parts(model, optimizer, scheduler, scaler, ema, check_generators(generators))
    path = os.fsdecode(checkpoint_path)
    return restore(read_contents(path), path, parts)


def restore(
    contents: Mapping[str, Any],
    path: str,
    parts: Parts,
    *,
    load_optimizer: bool = True,
    load_rng_state: bool = True,
) -> Resumed:
    """Put what a checkpoint holds into the parts of a run; for results see `resume_training`."""
    report = _Report()
    rng = _rng_of_rank(contents, path, report) if load_rng_state else None
    load_model_state(parts.model, contents["model_state_dict"])
    report.restored.append("model")
    if load_optimizer:
        _restore_optimization(contents, parts, report)
    else:
        report.skip(("optimizer", "scheduler", "scaler"), "load_optimizer=False")
    report.restore("EMA", parts.ema, contents.get("ema_state_dict"))
    if rng is not None:
        restored, skipped = restore_rng(rng, parts.generators)
        report.restored += restored
        report.skipped |= skipped
    elif not load_rng_state:
        report.skip(("RNG",), "load_rng_state=False")
    report.log(path)
    resumed = Resumed(
        epoch=contents["epoch"],
        global_step=contents["global_step"],
        best_metric=contents.get("best_metric"),
        metrics=dict(contents.get("metrics") or {}),
        metrics_history=plain_history(contents.get("metrics_history")),
        extra_state=contents.get("extra_state"),
    )
    resumed.path = path
    resumed.restored = tuple(report.restored)
    resumed.skipped = report.skipped
    return resumed


class _Report:
    """What was restored, and what not."""

    def __init__(self) -> None:
        self.restored: list[str] = []
        self.skipped: dict[str, str] = {}
        # What the caller has asked for is no reason to warn.
        self._asked: set[str] = set()

    def skip(self, whats: tuple[str, ...], reason: str) -> None:
        self.skipped |= dict.fromkeys(whats, reason)
        self._asked |= {*whats}

    def restore(self, what: str, target: Any, state: Any) -> None:
        """Restore one part, or note why not; nothing is to be said of what is on neither side."""
        if target is None and not state:
            return
        if target is None:
            self.skipped[what] = f"the checkpoint has its state, but no {what} was given"
        elif not state:
            self.skipped[what] = "the checkpoint has no state for it"
        else:
            target.load_state_dict(state)
            self.restored.append(what)

    def log(self, path: str) -> None:
        logger.info("Restored from %s: %s", path, ", ".join(self.restored))
        for what, reason in self.skipped.items():
            log = logger.info if what in self._asked else logger.warning
            log("Not restored from %s: %s (%s)", path, what, reason)


def _restore_optimization(contents: Mapping[str, Any], parts: Parts, report: _Report) -> None:
    state = contents.get("optimizer_state_dict")
    scheduler_state = contents.get("scheduler_state_dict")
    if parts.optimizer is not None and state is not None:
        _restore_optimizer(parts.optimizer, state)
        report.restored.append("optimizer")
    else:
        report.restore("optimizer", parts.optimizer, state)
    if (
        parts.scheduler is not None
        and scheduler_state
        and parts.optimizer is not None
        and not state
    ):
        # The learning rates that it goes on from stand in the optimizer's groups.
        report.skipped["scheduler"] = (
            "its learning rates are in the optimizer's state, not saved here"
        )
    else:
        report.restore("scheduler", parts.scheduler, scheduler_state)
    # The state of a scaler that is switched off is empty, and so it is where there is none.
    is_off = parts.scaler is not None and not parts.scaler.state_dict()
    scaler_state = contents.get("scaler_state_dict")
    report.restore("scaler", None if is_off and not scaler_state else parts.scaler, scaler_state)


def _restore_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Load an optimizer's state, and undo what torch does to dtypes on the way.

    torch (2.6 to 2.15) casts every tensor of the state to the dtype of its parameter: moments in
    float32 of a parameter in bfloat16 would lose bits, and counters become floats.
    """
    optimizer.load_state_dict(state)
    base = torch.optim.Optimizer
    kind = type(optimizer)
    if kind.load_state_dict is not base.load_state_dict or (
        kind._process_value_according_to_param_policy
        is not base._process_value_according_to_param_policy
    ):
        return  # It knows better.
    numbers = chain.from_iterable(group["params"] for group in state["param_groups"])
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for number, parameter in zip(numbers, parameters, strict=False):
        saved, present = state["state"].get(number), optimizer.state.get(parameter)
        if not isinstance(saved, dict) or not isinstance(present, dict):
            continue
        for key, value in saved.items():
            # Where "step" lives, and as what, torch decides by fused and capturable.
            if isinstance(value, torch.Tensor) and key != "step":
                present[key] = value.to(device=parameter.device)


def _rng_of_rank(
    contents: Mapping[str, Any], path: str, report: _Report
) -> Mapping[str, Any] | None:
    """Return the RNG states of this process's rank; note why, where there are none."""
    rank, world_size = rank_and_world_size()
    states: Mapping[str, Any] | None = contents.get("rng_states")
    if states is None:
        report.skipped["RNG"] = "the checkpoint has no states for it"
        return None
    saved_by = states.get("world_size", 1)
    if saved_by != world_size:
        report.skipped["RNG of all ranks"] = (
            f"{saved_by} ranks have saved, and {world_size} resume: no run of so many ranks would "
            "have gone on with these numbers"
        )
    if rank == 0:
        return states
    name = CheckpointName(contents["global_step"], contents["epoch"], rank)
    own = os.path.join(os.path.dirname(path), str(name))
    try:
        return _read_rank_file(own, path)
    except (FileNotFoundError, CheckpointError) as error:
        report.skipped["RNG"] = f"the states of rank {rank} cannot be had: {error}"
        return None


def _read_rank_file(own: str, path: str) -> Mapping[str, Any]:
    if _save_id(own) != _save_id(path):
        raise FormatError(f"{own} is of another save than {path}", path=own)
    found = load(own, map_location="cpu", weights_only=True)
    states = found.get("rng_states") if isinstance(found, dict) else None
    if not isinstance(states, dict):
        raise FormatError(
            f"{own} has no RNG states: a CheckpointManager did not write it", path=own
        )
    return states


def _save_id(path: str) -> int:
    mark = _native.Archive.open(path).save_mark
    return 0 if mark is None else mark.save_id
