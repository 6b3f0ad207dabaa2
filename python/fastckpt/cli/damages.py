"""How commands name what is wrong with a file, and show the damages in it: as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastckpt._verify.report import Damage
from fastckpt.cli.output import Line, printable

# The word, and its colour.
DAMAGED = ("DAMAGED", "bold red")
INCOMPLETE = ("INCOMPLETE", "yellow")
IO_ERROR = ("I/O ERROR", "bold red")
NOT_FOUND = ("NOT FOUND", "red")

# Names of tensors in one record; --json lists all.
_TENSORS_SHOWN = 5


def damage_lines(path: str, damage: Damage) -> Iterator[Line]:
    """Yield the text: a line that names the file, then what is known of the damage."""
    yield Line("")
    yield Line(f"damaged: {printable(path)}", "damaged", "bold red")
    for name, value in _fields(damage):
        yield Line(f"  {name:<9} {printable(value)}")


def _fields(damage: Damage) -> Iterator[tuple[str, str]]:
    yield "what", damage.detail
    if damage.tensors:
        shown = ", ".join(damage.tensors[:_TENSORS_SHOWN])
        hidden = len(damage.tensors) - _TENSORS_SHOWN
        yield "tensor", shown + (f" and {hidden} more" if hidden > 0 else "")
    if damage.record is not None:
        yield "record", damage.record
    if damage.nbytes:
        yield "bytes", f"{damage.offset}-{damage.offset + damage.nbytes - 1}"
    if damage.expected is not None:
        yield "expected", f"0x{damage.expected:08x}"
    if damage.found is not None:
        yield "found", f"0x{damage.found:08x}"


def damage_document(damage: Damage) -> dict[str, Any]:
    """Return a damage as JSON values."""
    return {
        "record": damage.record,
        "tensors": list(damage.tensors),
        "offset": damage.offset,
        "nbytes": damage.nbytes,
        "expected": damage.expected,
        "found": damage.found,
        "detail": damage.detail,
    }
