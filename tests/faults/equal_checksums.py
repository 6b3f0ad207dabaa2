"""Other bytes with the same CRC-32: what no checksum tells from the bytes that were written.

CRC-32 is linear: to flip a bit of the data flips the same bits of the checksum, whatever else is in it.
So a few dozen bits that may be either way are enough to reach any checksum: it is a system of 32
equations over bits.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable


def with_checksum(data: bytes, wanted: int, free: Iterable[int]) -> bytes:
    """Return the data with the lowest bits of some of the bytes at `free` flipped, for a CRC-32.

    Raises:
        ValueError: The bytes at `free` are too few.
    """
    plain = zlib.crc32(data)
    rows: list[tuple[int, frozenset[int]]] = []
    for position in free:
        flipped = bytearray(data)
        flipped[position] ^= 1
        row = (zlib.crc32(flipped) ^ plain, frozenset({position}))
        row = _reduced(row, rows)
        if row[0]:
            rows.append(row)
    missing, positions = _reduced((wanted ^ plain, frozenset()), rows)
    if missing:
        raise ValueError("too few bytes are free")
    found = bytearray(data)
    for position in positions:
        found[position] ^= 1
    return bytes(found)


def _reduced(
    row: tuple[int, frozenset[int]], rows: list[tuple[int, frozenset[int]]]
) -> tuple[int, frozenset[int]]:
    """Take from a row of bits what the rows before it can give, each by its highest bit."""
    bits, positions = row
    for other_bits, other_positions in sorted(rows, key=lambda other: other[0], reverse=True):
        if bits ^ other_bits < bits and bits.bit_length() == other_bits.bit_length():
            bits, positions = bits ^ other_bits, positions ^ other_positions
    return bits, positions
