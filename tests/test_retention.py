"""Which checkpoints may go, compared with a count by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastckpt._prune.retention import expendable_steps

STEPS = st.lists(st.integers(0, 30), max_size=12)


@given(
    steps=STEPS,
    keep=st.integers(0, 15),
    every=st.one_of(st.none(), st.integers(1, 10)),
    protected=STEPS,
)
def test_what_goes_is_what_nothing_asks_to_keep(
    steps: list[int], keep: int, every: int | None, protected: list[int]
) -> None:
    expected = []
    for step in sorted(set(steps)):
        newer = len({other for other in steps if other > step})
        is_multiple = every is not None and step % every == 0
        if newer >= keep and not is_multiple and step not in protected:
            expected.append(step)
    assert expendable_steps(steps, keep=keep, keep_every=every, protected=protected) == expected


@pytest.mark.parametrize("count", range(8))
def test_fewer_than_are_kept_all_stay(count: int) -> None:
    assert expendable_steps(range(count), keep=count + 1) == []
    assert expendable_steps(range(count), keep=2 * count) == []


def test_without_a_number_all_stay() -> None:
    assert expendable_steps([1, 2, 3], keep_every=2) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": -1}, "keep must not be negative, and is -1"),
        ({"keep_every": 0}, "keep_every must be at least 1, and is 0"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        expendable_steps([1], **options)  # type: ignore[arg-type]
