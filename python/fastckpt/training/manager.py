"""`CheckpointManager`: save checkpoints, keep the right ones, find them again, resume."""

from __future__ import annotations

import errno
import math
import operator
import os
import signal
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastckpt._archive.pickling import pickle_object
from fastckpt._steps.checkpoint_names import BEST_NAME, CheckpointName
from fastckpt._steps.save_id import SaveMark, begin_save

from . import rotation
from .best import settle_best
from .config import CheckpointConfig
from .contents import check_contents, checked_key_map, read_contents
from .directory import CheckpointDirectory, Entry
from .history import History, history_in, read_history
from .log import logger
from .metrics import WORST, is_better, metric_of, plain_metrics
from .newest import read_newest
from .parts import Parts
from .preemption import Preemption, agree
from .ranks import any_rank, rank_and_world_size
from .restoring import Choices, restore
from .resume import Resumed, log_position, resumed_from, with_states
from .rng import Generator, check_generators
from .triggers import Triggers
from .writing import write_archive

_Path = str | os.PathLike[str]


class CheckpointManager:
    """Saves the whole state of a training run, keeps the checkpoints that matter, and resumes.

    A new manager on a directory with checkpoints takes history, best and rotation from the files, without
    reading tensors. Damaged files are logged, passed over and left alone.

    With torch.distributed, make it on every rank and call its methods on every rank, with the same
    arguments: rank 0 writes the checkpoint, and each other rank its RNG states beside it. No
    rank waits for another in a save. One manager at a time may save to a directory.

    Args:
        config: What to save, when, and what to keep; copied. Or the directory alone, with the defaults of
            `CheckpointConfig`.
        model: Anything with state_dict and load_state_dict, as all the others. This and the next four
            may each be a list or a dict of objects: the networks of a GAN, AdamW beside Muon.
        optimizer: None for none.
        scheduler: The learning rate scheduler; None for none.
        scaler: A torch.amp.GradScaler; None for none.
        ema: A moving average of the weights; None for none.
        generators: Random number generators beside the global ones (of Python, numpy and torch), by
            names of your choice: random.Random, numpy.random.Generator, torch.Generator.

    Attributes:
        config: A copy of the configuration.
        model: As given, and so are optimizer, scheduler, scaler, ema and generators. A save takes what
            these are then.
        checkpoint_dir: The directory, a Path. It is made if it is not there.
        best_metric: The best value of `metric_name` so far; inf (with metric_mode="max": -inf) while there
            is no value yet.

    Raises:
        OSError: The directory cannot be made or read, or a file in it cannot be read.
        TypeError: One of the objects has no state_dict or load_state_dict, or one of `generators` is of
            an unknown kind.

    Example:
        >>> import fastckpt, torch
        >>> model = torch.nn.Linear(2, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
        >>> config = fastckpt.CheckpointConfig("runs/a", save_total_limit=3)
        >>> manager = fastckpt.CheckpointManager(config, model, optimizer, scheduler)
        >>> manager.save(epoch=1, step=100, metrics={"val_loss": 2.5}).name
        'checkpoint_epoch0001_step00000100.pt'
        >>> manager.load()["global_step"]
        100
    """

    def __init__(
        self,
        config: CheckpointConfig | _Path,
        model: Any,
        optimizer: Any = None,
        scheduler: Any = None,
        scaler: Any = None,
        *,
        ema: Any = None,
        generators: Mapping[str, Generator] | None = None,
    ) -> None:
        if isinstance(config, (str, os.PathLike)):
            config = CheckpointConfig(config)
        # A copy, which is checked once more: fields may have been set since.
        self.config = replace(config)
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.scaler, self.ema = scaler, ema
        self.generators = check_generators(generators)
        self._parts.require("state_dict", "load_state_dict")
        self.checkpoint_dir = Path(self.config.directory)
        self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        self._directory = CheckpointDirectory(self.config.directory)
        self._directory.refresh()
        self.best_metric = self._best_value()
        self._history = read_history(self._directory.entries)
        self._triggers = Triggers(self.config, self._history.last())
        self._preemption: Preemption | None = None
        self._has_asked_for_metrics = False

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints that were there when the directory was last looked at, oldest step first."""
        return [Path(entry.path) for entry in self._directory.entries]

    @property
    def metrics_history(self) -> dict[str, list[float]]:
        """For each metric its value in every save, oldest first; NaN where a save has none.

        A metric that `save_best_only` kept from being saved counts as well.
        """
        return self._history.metrics

    @property
    def history_epochs(self) -> list[int | None]:
        """The epoch of each save in `metrics_history`; None where another program has not written it."""
        return self._history.epochs

    @property
    def history_steps(self) -> list[int | None]:
        """The step of each save in `metrics_history`; None where another program has not written it."""
        return self._history.steps

    def __repr__(self) -> str:
        """Say where it saves, how many checkpoints there are, and what the best is."""
        count = len(self._directory.entries)
        best = f", best {self.config.metric_name} {self.best_metric:g}"
        return (
            f"CheckpointManager({self.config.directory!r}, {count} checkpoint{'' if count == 1 else 's'}"
            f"{best if math.isfinite(self.best_metric) else ''})"
        )

    @property
    def _parts(self) -> Parts:
        return Parts(
            self.model, self.optimizer, self.scheduler, self.scaler, self.ema, self.generators
        )

    def should_save(self, step: int, metrics: Mapping[str, Any] | None = None) -> bool:
        """Say whether to save after this step, by the policies of the configuration.

        Yes if any of `save_every_steps`, `save_every_secs`, `save_when` and `cycle_steps` asks for it, or
        if a signal has been caught by `preemption`. Without any policy: yes, whenever asked; with
        `save_best_only` and no policy: if the metric is there and better than all before. Asked twice
        for the same step and metrics, it answers the same. Nothing is written.

        With several ranks, and `save_every_secs` or within `preemption`, this is a collective, since only
        together they know: every rank has to ask after every step.

        Args:
            step: Optimizer steps that are done.
            metrics: What is known now. `save_when`, and `save_best_only` without another policy, decide by
                them: asked without, they say no, and a warning says so once.

        Raises:
            TypeError, ValueError: As for `save`.
        """
        step = _number("step", step)
        values = plain_metrics(metrics)
        self._ask_for_metrics(values)
        due = self._triggers.due(step, values)
        if not self._triggers.is_any_set:
            due = not self.config.save_best_only or self._improves(values)
        if self._triggers.need_agreement:
            due = any_rank(due)
        is_asked = self._preemption is not None and agree(self._preemption)
        return is_asked or due

    def save(
        self,
        epoch: int,
        step: int,
        metrics: Mapping[str, Any],
        model_config: Any = None,
        extra_state: Any = None,
    ) -> Path | None:
        """Save a checkpoint, then delete those that the configuration does not keep.

        On return the checkpoint is on the disk under its name, `best_model.pt` is a second name of the
        best one, and older checkpoints are deleted. With `verify_before_delete`, whatever is deleted
        or replaced goes only after the file that takes its place was read back from the disk and every
        byte compared. A crash, or an error, at any moment leaves the newest good checkpoint and the best
        one. If a checkpoint cannot be deleted, that is logged; training continues.

        Args:
            epoch: The epoch, 0 or more.
            step: Optimizer steps that are done, over all epochs; 0 or more.
            metrics: Real numbers by name: ints, floats, 0-dim tensors, numpy scalars. They are saved as
                floats. `metric_name` must be among them, NaN if there is no value yet; the save that
                `preemption` asks for may lack it.
            model_config: How the model is built, as plain values.
            extra_state: Whatever else has to be saved, as plain values and tensors: the position in the
                data, say.

        Returns:
            The checkpoint; None where `save_best_only` is set and this is not the best (the metrics go
            into the history nonetheless). On all ranks the same.

        Raises:
            KeyError, ValueError: `metrics` lacks `metric_name` (one exception that is both). ValueError
                also for a negative epoch or step.
            TypeError: A metric is not a real number, or plain ``torch.load(weights_only=True)`` would
                refuse something: the message names the key. Nothing has been written then.
            ChecksumError: The disk does not return what was written. The file was not published, and
                nothing older was touched.
            OSError: Writing failed; nothing older was touched.
            CommitUnknownError: The last fsync failed: the new file is there, but may not survive a
                power cut. Nothing was deleted.
        """
        name = CheckpointName(_number("step", step), _number("epoch", epoch))
        values = plain_metrics(metrics)
        preempted = self._preemption is not None and self._preemption.requested
        self._check_metric(values, is_needed=not preempted)
        improves = self._improves(values)
        history = self._history.with_save(name, values)
        if self.config.save_best_only and not improves and not preempted:
            self._history = history
            return None
        metric = self._metric(values)
        best = metric if improves and metric is not None else self.best_metric
        rank, world_size = rank_and_world_size()
        mark = begin_save(
            self.config.directory, name.step, rank, saves_optimizer=True, world_size=world_size
        )
        proven = False
        if rank == 0:
            contents = {
                "epoch": name.epoch,
                "global_step": name.step,
                **self._capture(world_size),
                "best_metric": best,
                "metrics": values,
                **history.to_contents(),
                "config": self.config.to_dict(),
                "timestamp": datetime.now(timezone.utc).isoformat(),
            }
            given = {"model_config": model_config, "extra_state": extra_state}
            contents |= {key: value for key, value in given.items() if value is not None}
            proven = self._save_checkpoint(name, contents, mark, improves=improves)
        elif self.config.save_rng_state:
            self._save_rng(replace(name, rank=rank), mark, world_size)
        # From here on the checkpoint is there, whatever becomes of the rest.
        self._note_saved(history, best, preempted=preempted)
        if rank == 0:
            self._tidy(name, proven=proven)
        if improves:
            logger.info("New best model! %s: %.4f", self.config.metric_name, best)
        return Path(self._directory.path_of(name))

    def load(
        self,
        checkpoint_path: _Path | None = None,
        load_optimizer: bool = True,
        load_rng_state: bool = True,
        *,
        strict: bool = True,
        keep: Collection[str] = (),
        key_map: Mapping[str, str] | None = None,
    ) -> Resumed:
        """Restore a checkpoint, the newest by step or the one that is named: all of it, or nothing.

        Of the newest, damaged ones are passed over, with a warning for each, down to the newest good
        one. A checkpoint that is refused for another reason is not: the error is raised. It is read,
        checked and compared as a whole before anything is changed; see `resume_training`. The history
        continues from the checkpoint; the best stays what the files say.

        Args:
            checkpoint_path: A checkpoint; None for the newest good one in the directory.
            load_optimizer: Whether to restore optimizer, scheduler and scaler.
            load_rng_state: Whether to restore the random number generators.
            strict: See `resume_training`.
            keep: See `resume_training`.
            key_map: See `resume_training`.

        Returns:
            What `resume_training` returns, and the states too: `model_state_dict`,
            `optimizer_state_dict` and so on. Those of what was restored are the live objects' own, as
            `model.state_dict()` gives them, and not second copies: training goes on in them.

        Raises:
            FileNotFoundError: There is no checkpoint.
            CheckpointError: The one that is named is damaged, or all are, or it is not a manager's.
            UnsafePickleError: It holds an object that weights_only=True does not allow.
            OSError: A file cannot be read. There is no falling back then: a disk that answers with
                errors is not a damaged checkpoint.
            StateMismatchError: A state does not fit its object. Nothing was changed.
            Exception: What an object's own load_state_dict raises. Everything was put back.
        """
        parts = self._parts
        choices = Choices(strict, keep, load_optimizer, load_rng_state)
        if checkpoint_path is None:
            keys = None if key_map is None else checked_key_map(key_map)
            path, contents = read_newest(self._directory, keys)
        else:
            path = os.fsdecode(checkpoint_path)
            contents = read_contents(path, key_map)
        logger.info("Loading checkpoint: %s", path)
        report = restore(contents, path, parts, choices)
        resumed = with_states(resumed_from(contents, path, report), contents, parts)
        self._history = history_in(contents)
        self._triggers = Triggers(self.config, self._history.last())
        log_position(resumed)
        return resumed

    def load_best(
        self, load_optimizer: bool = True, load_rng_state: bool = True, **choices: Any
    ) -> Resumed:
        """Restore the best checkpoint; for arguments, results and errors see `load`.

        Raises:
            FileNotFoundError: No checkpoint has the metric.
        """
        best = self.get_best_checkpoint()
        if best is None:
            raise FileNotFoundError(
                errno.ENOENT,
                f"no checkpoint with a {self.config.metric_name!r} that is a number",
                self.config.directory,
            )
        return self.load(best, load_optimizer, load_rng_state, **choices)

    def get_latest_checkpoint(self) -> Path | None:
        """Return the newest checkpoint by step whose structure is whole; None if there is no checkpoint.

        Raises:
            OSError: The directory, or a file in it, cannot be read.
        """
        self._directory.refresh()
        entries = self._directory.entries
        return Path(entries[-1].path) if entries else None

    def get_best_checkpoint(self) -> Path | None:
        """Return the best checkpoint by `metric_name`; None if no checkpoint has the metric.

        That is `best_model.pt`, unless a crash came between a save and giving it that name: then it is
        the checkpoint itself.

        Raises:
            OSError: The directory, or a file in it, cannot be read.
        """
        self._directory.refresh()
        best, named = self._best_entry(), self._directory.best_model
        if best is None:
            return None
        return Path(named.path if named is not None and named.is_same_save(best) else best.path)

    def preemption(self, signals: Sequence[int] = (signal.SIGTERM,)) -> Preemption:
        """Turn a signal that announces the end into a save at the next step.

            with manager.preemption() as preemption:
                for step in range(first, last):
                    train_step()
                    if manager.should_save(step, metrics):
                        manager.save(epoch, step, metrics)
                    if preemption.requested:
                        break

        After the signal, the next `should_save` says yes, on all ranks at the same step, and that save is
        made even if the metric is missing or not the best. The previous handlers are back on leaving.
        A signal after which nothing was saved is then delivered to them; further ones meanwhile change
        nothing.

        SIGINT is not among the signals unless asked for: Ctrl-C is for ending now, and does so at any
        point of a save without harm. Slurm's `--signal=USR1@60` is: ``signals=[signal.SIGUSR1]``.

        Args:
            signals: Numbers of the signals.

        Raises:
            RuntimeError: On entering: not in the main thread, the only one to which Python delivers
                signals; or a handler that Python could not restore; or already entered.
            ValueError: There is no such signal.
        """
        return Preemption(signals, self._set_preemption)

    def _set_preemption(self, preemption: Preemption | None) -> None:
        if preemption is not None and self._preemption is not None:
            raise RuntimeError("preemption() is entered already: once, around the training loop")
        self._preemption = preemption

    def _metric(self, values: Mapping[str, float]) -> float | None:
        return None if self.config.metric_name is None else values.get(self.config.metric_name)

    def _check_metric(self, values: Mapping[str, float], *, is_needed: bool) -> None:
        if self.config.metric_name is not None and is_needed:
            metric_of(values, self.config.metric_name)

    def _improves(self, values: Mapping[str, float]) -> bool:
        return is_better(self._metric(values), self.best_metric, self.config.metric_mode)

    def _best_entry(self) -> Entry | None:
        return self._directory.best(self.config.metric_name, self.config.metric_mode)

    def _best_value(self) -> float:
        best = self._best_entry()
        if best is None:
            return WORST[self.config.metric_mode]
        return best.metrics[self.config.metric_name or ""]

    def _ask_for_metrics(self, values: Mapping[str, float]) -> None:
        """Warn, once, where a policy cannot say yes since it was not given what it decides by."""
        config = self.config
        by_best = config.save_best_only and not self._triggers.is_any_set
        needed = [*(config.save_when or {}), *([config.metric_name] if by_best else [])]
        if self._has_asked_for_metrics or not needed or any(name in values for name in needed):
            return
        self._has_asked_for_metrics = True
        policy = "save_best_only" if by_best else "save_when"
        logger.warning(
            "should_save() was asked without the metric%s %s, by which %s decides, and says no until it is "
            "given: should_save(step, metrics)",
            "" if len(needed) == 1 else "s",
            ", ".join(map(repr, needed)),
            policy,
        )

    def _capture(self, world_size: int) -> dict[str, Any]:
        return self._parts.capture(
            save_optimizer=self.config.save_optimizer,
            save_rng_state=self.config.save_rng_state,
            world_size=world_size,
        )

    def _save_checkpoint(
        self,
        name: CheckpointName,
        contents: dict[str, Any],
        mark: SaveMark,
        *,
        improves: bool,
    ) -> bool:
        """Write a checkpoint, prove it good where something depends on that, and make it visible.

        Returns:
            Whether it was proven.
        """
        check_contents(contents)
        pickled = pickle_object(contents)
        directory = self._directory
        directory.refresh()
        self._warn_of_later(name)
        proves = self._needs_proof(name, improves=improves)
        write_archive(directory, name, pickled, mark, proves=proves)
        directory.add(name, contents["metrics"], contents["timestamp"])
        return proves

    def _save_rng(self, name: CheckpointName, mark: SaveMark, world_size: int) -> None:
        contents = {
            "epoch": name.epoch,
            "global_step": name.step,
            "rank": name.rank,
            "rng_states": self._parts.capture_rng(world_size),
        }
        check_contents(contents)
        write_archive(self._directory, name, pickle_object(contents), mark, proves=False)

    def _note_saved(self, history: History, best: float, *, preempted: bool) -> None:
        self._history, self.best_metric = history, best
        self._triggers.saved()
        if preempted and self._preemption is not None:
            self._preemption.is_saved = True

    def _tidy(self, newest: CheckpointName, *, proven: bool) -> None:
        """Give the best its second name, then delete what may go."""
        if settle_best(self._directory, self.config, proven=newest if proven else None):
            self.best_metric = self._best_value()
        # What was not foreseen when the newest was written has to wait for one that is proven.
        may_delete = proven or not self.config.verify_before_delete
        gone = self._expendable(newest) if may_delete else []
        rotation.remove(self._directory, gone, saved=newest)

    def _needs_proof(self, name: CheckpointName, *, improves: bool) -> bool:
        """Whether anything is deleted or replaced on account of this save."""
        directory = self._directory
        replaces = os.path.lexists(directory.path_of(name))
        replaces_best = improves and os.path.lexists(os.path.join(directory.path, BEST_NAME))
        return self.config.verify_before_delete and (
            replaces or replaces_best or bool(self._expendable(name, is_best=improves))
        )

    def _expendable(self, newest: CheckpointName, *, is_best: bool = False) -> list[CheckpointName]:
        """Return what may go; `is_best` for a newest that is the best and is not in the directory yet."""
        best = self._best_entry()
        protected = {newest} if best is None or is_best else {newest, best.name}
        names = {entry.name for entry in self._directory.entries} | {newest}
        return rotation.expendable(names, self.config, protected=protected)

    def _warn_of_later(self, name: CheckpointName) -> None:
        later = [entry.name for entry in self._directory.entries if entry.name.step > name.step]
        if later:
            logger.warning(
                "Saving step %d, and %s has checkpoints of later steps, up to %d: load() takes those "
                "first, and they count as the newest. Another directory for another run?",
                name.step,
                self._directory.path,
                later[-1].step,
            )


def _number(name: str, value: Any) -> int:
    number = operator.index(value)
    if number < 0:
        raise ValueError(f"{name} must not be negative, and is {number}")
    return number
