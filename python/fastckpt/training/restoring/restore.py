"""Put the states of a checkpoint back into the objects of a training run: all of them, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from fastckpt._wording import class_name
from fastckpt.errors import StateMismatchError
from fastckpt.training.parts import (
    CLASS_NAMES_KEY,
    PARAM_NAMES_KEY,
    STATE_KEYS,
    Parts,
    form_of,
    is_several,
    member_states,
    members,
    named_parameters,
)
from fastckpt.training.rng import RngPlan, RngSnapshot, plan_rng

from . import snapshot
from .averages import beginning_of, is_state, plan_average
from .choices import Choices
from .model import plan_model
from .optimizer import SavedOptimizer, Surroundings, plan_optimizer
from .rank_states import rng_states_of_rank
from .report import Report
from .restoration import Restoration, load_all
from .scheduler import plan_scheduler

_NO_STATE = "the checkpoint has no state for it"


def restore(
    contents: Mapping[str, Any], path: str, parts: Parts, choices: Choices | None = None
) -> Report:
    """Put what a checkpoint holds into the parts of a run.

    Everything is compared before anything is changed. Objects whose own code may refuse a state come first,
    and are put back if one does.

    Args:
        contents: What the checkpoint holds, as a manager's.
        path: The file, for messages and for the files of other ranks beside it.
        parts: The objects.
        choices: What the caller wants; everything by default.

    Returns:
        What was restored, what was not, and what was done to it.

    Raises:
        StateMismatchError: A state does not fit its object. Nothing was changed then.
        Exception: What an object's own load_state_dict raises; what it has changed was put back.
    """
    plan = _Plan(contents, path, parts, choices or Choices())
    plan.make()
    before = RngSnapshot(parts.generators)
    load_all(plan.restorations, before.put_back)
    for begin in plan.beginnings:
        begin()
    report = plan.report
    # In the order of the parts, whatever order they were loaded in.
    report.restored = [*plan.in_order(), *plan.set_rng()]
    report.log(path)
    return report


class _Plan:
    """What will be loaded into what; made completely before anything is loaded."""

    def __init__(
        self, contents: Mapping[str, Any], path: str, parts: Parts, choices: Choices
    ) -> None:
        self.report = Report()
        self.restorations: list[Restoration] = []
        self.beginnings: list[Callable[[], None]] = []
        self._contents, self._path, self._parts, self._choices = contents, path, parts, choices
        self._rng: RngPlan | None = None
        self._complete: list[str] = []

    def make(self) -> None:
        """Compare everything; raise, or note, what does not fit."""
        if self._choices.load_rng_state:
            self._plan_rng()
        self._plan_each("model", self._plan_model, may_be_empty=True)
        if self._choices.load_optimizer:
            self._plan_each("optimizer", self._plan_optimizer)
            self._plan_schedulers()
            self._plan_scalers()
        else:
            for what in ("optimizer", "scheduler", "scaler"):
                self.report.skip(what, "load_optimizer=False", expected=True)
        self._plan_averages()
        if not self._choices.load_rng_state:
            self.report.skip("RNG", "load_rng_state=False", expected=True)

    def in_order(self) -> list[str]:
        """Return what is loaded: a part by its name where all of it is, else its members."""
        return self._complete

    def set_rng(self) -> tuple[str, ...]:
        """Set the random number generators; return which."""
        return () if self._rng is None else self._rng.apply()

    def _state(self, what: str) -> Any:
        return self._contents.get(STATE_KEYS[what])

    def _plan_rng(self) -> None:
        states = rng_states_of_rank(self._contents, self._path, self.report)
        if states is None:
            return
        try:
            self._rng = plan_rng(states, self._parts.generators)
        except ValueError as error:
            if self._choices.strict:
                raise StateMismatchError(
                    f"{self._path} has a random number state that cannot be restored, and nothing was "
                    f"changed: {error}. load_rng_state=False leaves the generators as they are"
                ) from error
            self.report.skip("RNG", str(error))
            return
        for what, reason in self._rng.skipped.items():
            self.report.skip(what, reason)

    def _plan_each(
        self,
        what: str,
        plan: Callable[[int, str, Any, Any], Restoration | None],
        *,
        may_be_empty: bool = False,
    ) -> None:
        """Plan each object of a part; nothing is to be said of what is on neither side.

        An empty state counts as none unless it `may_be_empty`: a model without parameters has one, and a
        scaler that is disabled.
        """
        part, states = getattr(self._parts, what), self._state(what)
        is_there = is_state(states) or (may_be_empty and states is not None)
        if part is None or not is_there:
            if part is not None and what == "model":
                raise StateMismatchError(f"{self._path} has no state of the model")
            if part is not None:
                self.report.skip(what, _NO_STATE)
            elif is_state(states):
                self.report.skip(what, f"the checkpoint has its state, but no {what} was given")
            return
        pairs = member_states(part, states)
        if pairs is None:
            reason = f"{what}: the checkpoint has {form_of(states)}, and the script {form_of(part)}"
            if self._choices.strict or what == "model":
                raise StateMismatchError(f"{self._path} does not fit. {reason}")
            self.report.skip(what, reason)
            return
        planned = []
        names = [name for name, _ in members(what, part)]
        for number, (name, (member, state)) in enumerate(zip(names, pairs, strict=True)):
            restoration = plan(number, name, member, state)
            if restoration is not None:
                planned.append(restoration)
        self.restorations += planned
        self._complete += [what] if len(planned) == len(pairs) else [one.what for one in planned]

    def _plan_model(self, number: int, name: str, model: Any, state: Any) -> Restoration | None:
        return plan_model(name, model, state, self._path, self._choices, self.report)

    def _plan_optimizer(
        self, number: int, name: str, optimizer: Any, state: Any
    ) -> Restoration | None:
        saved = SavedOptimizer(
            state,
            self._told(PARAM_NAMES_KEY, "optimizer", number),
            self._class("optimizer", number),
        )
        model = self._parts.model
        around = Surroundings(
            {parameter: name for name, parameter in named_parameters(model)},
            None if is_several(model) else model,
            self._state("model"),
            self._path,
        )
        return plan_optimizer(name, optimizer, saved, around, self._choices, self.report)

    def _plan_schedulers(self) -> None:
        optimizer, scheduler = self._parts.optimizer, self._parts.scheduler
        lost = optimizer is not None and "optimizer" not in self._complete
        if scheduler is not None and is_state(self._state("scheduler")) and lost:
            # The learning rates that it continues from stand in the optimizer's groups.
            self.report.skip(
                "scheduler",
                "its learning rates are in the optimizer's state, which is not restored",
            )
            return
        if scheduler is not None and "scheduler" in self._choices.keep:
            self.report.skip("scheduler", "kept as the script has it", expected=True)
            return
        self._plan_each("scheduler", self._plan_scheduler)

    def _plan_scheduler(
        self, number: int, name: str, scheduler: Any, state: Any
    ) -> Restoration | None:
        return plan_scheduler(
            name,
            scheduler,
            state,
            self._class("scheduler", number),
            self._path,
            self._choices,
            self.report,
        )

    def _plan_scaler(self, number: int, name: str, scaler: Any, state: Any) -> Restoration | None:
        # A scaler that is disabled has an empty state, and takes any without a word.
        is_off = hasattr(scaler, "state_dict") and not scaler.state_dict()
        if is_off or not state:
            if not is_off:
                reason = "it was disabled when the checkpoint was saved, and stays as it is"
                self.report.skip(name, reason, expected=True)
            elif state:
                self.report.skip(name, "it is disabled, and stays as it is", expected=True)
            return None
        load = partial(scaler.load_state_dict, state)
        may_refuse = not class_name(type(scaler)).startswith("torch.")
        return Restoration(name, load, partial(snapshot.of_object, scaler), may_refuse=may_refuse)

    def _plan_scalers(self) -> None:
        scaler, state = self._parts.scaler, self._state("scaler")
        all_off = all(
            hasattr(one, "state_dict") and not one.state_dict()
            for _, one in members("scaler", scaler)
        )
        if not is_state(state) and all_off:
            return
        self._plan_each("scaler", self._plan_scaler, may_be_empty=True)

    def _plan_averages(self) -> None:
        ema = self._parts.ema
        if ema is None or is_state(self._state("ema")):
            self._plan_each("ema", self._plan_average)
            return
        for (name, member), model in zip(members("ema", ema), self._models_of(ema), strict=True):
            self._begin(name, member, model)

    def _plan_average(self, number: int, name: str, ema: Any, state: Any) -> Restoration | None:
        planned = plan_average(name, ema, state, self._path, self._choices, self.report)
        if planned is None:
            reason = self.report.skipped[name]
            self._begin(name, ema, list(self._models_of(self._parts.ema))[number], reason)
        return planned

    def _begin(self, name: str, ema: Any, model: Any, reason: str = _NO_STATE) -> None:
        begin = beginning_of(ema, model)
        if begin is not None:
            self.beginnings.append(begin)
            reason += ": it begins at the weights that were loaded"
        self.report.skip(name, reason)

    def _models_of(self, ema: Any) -> Iterator[Any]:
        """Yield the model of each average: the one at the same place, or the only one."""
        model = self._parts.model
        pairs = member_states(ema, model) if is_several(ema) and is_several(model) else None
        for number, (_, _) in enumerate(members("ema", ema)):
            if pairs is not None:
                yield pairs[number][1]
            else:
                yield None if is_several(model) else model

    def _told(self, key: str, what: str, number: int) -> Any:
        """Return what the checkpoint says, beside the states, of one object of a part."""
        return self._of_member(self._contents.get(key), what, number)

    def _class(self, what: str, number: int) -> Any:
        names = self._contents.get(CLASS_NAMES_KEY)
        return self._of_member(
            names.get(what) if isinstance(names, Mapping) else None, what, number
        )

    def _of_member(self, told: Any, what: str, number: int) -> Any:
        pairs = member_states(getattr(self._parts, what), told)
        return None if pairs is None else pairs[number][1]
