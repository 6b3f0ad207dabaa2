"""`resume_training`: continue a run from one checkpoint."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from .contents import read_contents
from .history import history_in
from .log import logger
from .metrics import WORST
from .parts import STATE_KEYS, Parts, map_members, members
from .restoring import Choices, restore
from .restoring.report import Report
from .rng import Generator, check_generators

_Path = str | os.PathLike[str]

# What a checkpoint holds beside the states of its parts; what was not saved has no key.
_VALUES = (
    *("epoch", "global_step", "best_metric", "metrics", "model_config", "config", "timestamp"),
    "extra_state",
)


class Resumed(dict[str, Any]):
    """What a checkpoint says of the run that continues from it; a key for each thing that was saved.

    The keys are those of the checkpoint: epoch, global_step, best_metric, metrics, metrics_history (a dict
    from metric to a list of floats, one a save), history_epochs, history_steps, model_config, config,
    timestamp and extra_state.

    Attributes:
        path: The file that was loaded.
        restored: What was restored, in order, e.g. "optimizer".
        skipped: What was not restored, with the reason for each.
        adjusted: What was restored in another way than it stands in the file, and how: parameters in
            another order, settings that were kept, dtypes that were converted.
    """

    path: str
    restored: tuple[str, ...]
    skipped: dict[str, str]
    adjusted: dict[str, str]


def resume_training(
    checkpoint_path: _Path,
    model: Any,
    optimizer: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
    *,
    ema: Any = None,
    generators: Mapping[str, Generator] | None = None,
    strict: bool = True,
    keep: Collection[str] = (),
    key_map: Mapping[str, str] | None = None,
) -> Resumed:
    """Restore a training run from one checkpoint, so that it continues bit for bit: all of it, or nothing.

    The whole file is read and checked, and everything in it compared with the objects, before anything is
    changed: names, shapes and dtypes of the model, the kind of the optimizer, its groups, and which state
    belongs to which parameter. Where something does not fit, an error says what, and model, optimizer,
    scheduler, scaler, average and random numbers are what they were.

    Model and optimizer keep their devices: the states are moved to where the parameters are, with the
    dtypes that they were saved in. The random number generators are set last. With torch.distributed,
    every rank calls it, and gets its own RNG states from `..._rank{r}.pt` beside the checkpoint.

    Args:
        checkpoint_path: A checkpoint of a `CheckpointManager`, `best_model.pt` too, or another script's
            with the same keys, or with `key_map`.
        model: Gets its parameters and buffers. This and the next four may each be a list or a dict of
            objects, as they were when they were saved.
        optimizer: Gets its state; None for none.
        scheduler: The same.
        scaler: The same; a torch.amp.GradScaler. One that is disabled, here or in the checkpoint, stays as it is.
        ema: The same; anything with load_state_dict. Where the checkpoint has no average, it begins at
            the weights that were loaded.
        generators: Random number generators beside the global ones, by the names that the manager
            had for them.
        strict: False: what fits is loaded, and the rest is listed in `skipped`. For a model with a new
            head, say.
        keep: Settings of the optimizer that stay the script's, such as ("lr",) or ("lr", "weight_decay");
            "scheduler" leaves the scheduler as it is. The rest of the optimizer's state is the checkpoint's.
        key_map: Where another script's file has the parts: ``{"model": "net", "optimizer": "opt"}``. Names
            on the left: model, optimizer, scheduler, scaler, ema, rng, and the keys of `Resumed`.

    Returns:
        A dict with what was saved beside the states; see `Resumed`. What was not restored, and was not
        asked for, is logged as a warning too.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be read.
        CheckpointError: It is damaged, or not a checkpoint of a manager.
        UnsafePickleError: It holds an object that weights_only=True does not allow.
        StateMismatchError: A state does not fit its object; it is a RuntimeError and a ValueError.
        ValueError, TypeError: An argument is wrong.
        Exception: What an object's own load_state_dict raises. It was put back, as everything else.

    Example:
        >>> import fastckpt, torch
        >>> model = torch.nn.Linear(2, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> config = fastckpt.CheckpointConfig("runs/a", metric_name=None)
        >>> manager = fastckpt.CheckpointManager(config, model, optimizer)
        >>> path = manager.save(epoch=0, step=10, metrics={})
        >>> fastckpt.resume_training(path, model, optimizer)["global_step"]
        10
    """
    parts = Parts(model, optimizer, scheduler, scaler, ema, check_generators(generators))
    parts.require("load_state_dict")
    choices = Choices(strict=strict, keep=keep)
    path = os.fsdecode(checkpoint_path)
    logger.info("Resuming from %s", path)
    contents = read_contents(path, key_map)
    report = restore(contents, path, parts, choices)
    resumed = resumed_from(contents, path, report)
    log_position(resumed)
    return resumed


def resumed_from(contents: Mapping[str, Any], path: str, report: Report) -> Resumed:
    """Return what a checkpoint holds beside the states of its parts."""
    resumed = Resumed({key: contents[key] for key in _VALUES if contents.get(key) is not None})
    if "metrics" in resumed:
        resumed["metrics"] = dict(resumed["metrics"])
    resumed["best_metric"] = _best_of(contents)
    resumed.update(history_in(contents).to_contents())
    resumed.path = path
    resumed.restored = tuple(report.restored)
    resumed.skipped = report.skipped
    resumed.adjusted = report.adjusted
    return resumed


def with_states(resumed: Resumed, contents: Mapping[str, Any], parts: Parts) -> Resumed:
    """Add the states, as a script expects that has loaded the file itself.

    Of what was restored they are the live objects' own, as `state_dict()` gives them: no tensor is there
    twice. Of what was not they are those of the file.
    """
    for what, key in STATE_KEYS.items():
        part = getattr(parts, what)
        if contents.get(key) is None:
            continue
        is_live = what in resumed.restored and all(
            hasattr(member, "state_dict") for _, member in members(what, part)
        )
        resumed[key] = map_members(part, _state_of) if is_live else contents[key]
    if contents.get("rng_states") is not None:
        resumed["rng_states"] = contents["rng_states"]
    return resumed


def _state_of(member: Any) -> Any:
    return member.state_dict()


def _best_of(contents: Mapping[str, Any]) -> Any:
    """Return the best value so far: infinite while there is none, as far as the file says which way."""
    best, config = contents.get("best_metric"), contents.get("config")
    if best is None and isinstance(config, Mapping) and config.get("metric_mode") in WORST:
        return WORST[config["metric_mode"]]
    return best


def log_position(resumed: Mapping[str, Any]) -> None:
    """Say where training continues."""
    logger.info(
        "Resumed at epoch %s, step %s", resumed.get("epoch", "?"), resumed.get("global_step", "?")
    )
