"""What the caller of a resume has chosen."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Choices:
    """What is restored, and how strictly.

    Attributes:
        strict: Whether everything has to fit. If not, what fits is restored, and the rest is listed.
        keep: Settings of the optimizer's groups that stay the script's: "lr", "weight_decay", ...
        load_optimizer: Whether optimizer, scheduler and scaler are restored.
        load_rng_state: Whether the random number generators are restored.
    """

    strict: bool = True
    keep: Collection[str] = ()
    load_optimizer: bool = True
    load_rng_state: bool = True

    def __post_init__(self) -> None:
        """Refuse a string in the place of a collection of strings."""
        if isinstance(self.keep, str) or not all(isinstance(one, str) for one in self.keep):
            raise TypeError(f"keep must be names of settings, such as ('lr',), not {self.keep!r}")
