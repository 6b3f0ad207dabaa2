"""Which parameter of a saved optimizer is which of this one, by their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from fastckpt._wording import some_names
from fastckpt.training.param_names import Names, bare_names, variants


@dataclass(frozen=True)
class Order:
    """Where the state of each parameter stands in the checkpoint.

    Attributes:
        groups: For each group of this optimizer the number of the saved one.
        places: For each group, and each of its parameters, the place in the saved group; None for a
            parameter that the checkpoint does not have.
        names: The names of this optimizer's parameters.
    """

    groups: list[int]
    places: list[list[int | None]]
    names: Names

    @property
    def is_changed(self) -> bool:
        """Whether the parameters stand in another order than in the checkpoint."""
        return self.groups != [*range(len(self.groups))] or any(
            places != [*range(len(places))] for places in self.places
        )


def order_by_names(saved: Names, present: Names) -> Order | None:
    """Find the saved place of each parameter; None where the names in the groups are not the same."""
    for one, other in _comparable(saved, present):
        order = _order(one, other)
        if order is not None:
            return order
    return None


def order_of_known(saved: Names, present: Names) -> Order | None:
    """Find the saved places of those parameters that are on both sides.

    Each group belongs to the saved one with which it shares the most names. None where that is not one to
    one, or where no name is known on both sides.
    """
    if len(saved) != len(present):
        return None
    ours, theirs = bare_names(present), bare_names(saved)
    groups = []
    for group in ours:
        shared = [len(_known(group) & _known(one)) for one in theirs]
        groups.append(shared.index(max(shared)) if any(shared) else None)
    left = iter(sorted({*range(len(theirs))} - {*groups}))
    filled = [next(left, -1) if number is None else number for number in groups]
    if sorted(filled) != [*range(len(theirs))] or all(number is None for number in groups):
        return None
    places: list[list[int | None]] = [
        [theirs[number].index(name) if name in _known(theirs[number]) else None for name in group]
        for number, group in zip(filled, ours, strict=True)
    ]
    return Order(filled, places, present)


def difference(saved: Names, present: Names) -> str:
    """Say in what the names of two optimizers differ."""
    ours, theirs = (
        {name for group in bare_names(names) for name in group if name is not None}
        for names in (present, saved)
    )
    only_ours, only_theirs = ours - theirs, theirs - ours
    words = []
    if only_theirs:
        words.append(f"only in the checkpoint: {some_names(only_theirs)}")
    if only_ours:
        words.append(f"only here: {some_names(only_ours)}")
    return "; ".join(words) or "its parameters are divided into other groups"


def _comparable(saved: Names, present: Names) -> Iterator[tuple[Names, Names]]:
    for one in variants(saved):
        for other in variants(present):
            yield one, other


def _order(saved: Names, present: Names) -> Order | None:
    if len(saved) != len(present):
        return None
    free = dict(enumerate(saved))
    groups, places = [], []
    for group in present:
        wanted = Counter(group)
        number = next((each for each, names in free.items() if Counter(names) == wanted), None)
        if number is None:
            return None
        groups.append(number)
        places.append(_places(free.pop(number), group))
    return Order(groups, places, present)


def _places(saved: list[str | None], present: list[str | None]) -> list[int | None]:
    """Return where each name stands; those without a name keep their order."""
    where: dict[str | None, list[int]] = {}
    for place, name in enumerate(saved):
        where.setdefault(name, []).append(place)
    return [where[name].pop(0) for name in present]


def _known(group: list[str | None]) -> set[str]:
    return {name for name in group if name is not None}
