"""Which checkpoints may go, by step number alone. Pure: nothing is looked up or deleted here."""

from __future__ import annotations

from collections.abc import Collection, Iterable


def expendable_steps(
    steps: Iterable[int],
    *,
    keep: int | None = None,
    keep_every: int | None = None,
    protected: Collection[int] = (),
) -> list[int]:
    """Return the steps that nothing asks to keep, oldest first.

    Args:
        steps: All steps there are, in any order.
        keep: How many of the newest stay; None keeps all.
        keep_every: Steps that are multiples of this stay too, 0 among them.
        protected: Steps that stay whatever the rest says: the best one, the last good one.

    Raises:
        ValueError: `keep` is negative, or `keep_every` is not positive.

    Example:
        >>> expendable_steps([100, 200, 300, 400], keep=1, keep_every=300, protected=[100])
        [200]
    """
    if keep is not None and keep < 0:
        raise ValueError(f"keep must not be negative, and is {keep}")
    if keep_every is not None and keep_every < 1:
        raise ValueError(f"keep_every must be at least 1, and is {keep_every}")
    ordered = sorted(set(steps))
    if keep is None:
        return []
    newest = set(ordered[max(0, len(ordered) - keep) :])
    periodic = {step for step in ordered if keep_every and step % keep_every == 0}
    return [step for step in ordered if step not in newest | periodic | set(protected)]
