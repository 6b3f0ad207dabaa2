"""Damage of more than one bit: scattered bytes, bursts, and sectors lost, moved or of another file."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tests.faults.damage import Judge, file_of, of_size
from tests.faults.harness import Tally

# What disks write at once.
SECTORS_NBYTES = (512, 4096)
# Most cases in small files: there, a sector hits headers and directories more often.
_SIZES_NBYTES = (2_000, 24_000, 24_000, 200_000)
_SECTORS_AT_MOST = 4
_BYTES_AT_MOST = 64


@dataclass(frozen=True)
class Specimen:
    """A file, and one of another save whose records have the same names, sizes and places."""

    obj: dict[str, torch.Tensor]
    data: bytes
    of_another_save: bytes


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Damage files at random; what is left must be found damaged, and never load as another object."""
    generator = random.Random(seed)
    writer = generator.choice(["torch", "fastckpt"])
    specimens = [_specimen(nbytes, writer) for nbytes in _SIZES_NBYTES]
    path = directory / "model.pt"
    tally = Tally()
    judges = [Judge(path, specimen.obj, tally) for specimen in specimens]
    for case in range(cases):
        number = generator.randrange(len(specimens))
        specimen = specimens[number]
        kind = generator.choice(list(DAMAGES))
        damaged = bytearray(specimen.data)
        where = DAMAGES[kind](damaged, specimen, generator)
        # A sector of zeros that gets zeros; a small file that is the other one as a whole.
        if damaged in (specimen.data, specimen.of_another_save):
            tally.count("nothing changed")
            continue
        path.write_bytes(damaged)
        judges[number].look(
            f"seed {seed}, case {case}: {kind} in {len(damaged)} bytes by {writer}: {where}"
        )
        tally.outcomes[kind] += 1
    path.unlink(missing_ok=True)
    return tally


def _specimen(nbytes: int, writer: str) -> Specimen:
    obj = of_size(nbytes)
    other = {name: tensor.roll(1) for name, tensor in obj.items()}
    data, of_another_save = file_of(obj, writer), file_of(other, writer)
    assert len(data) == len(of_another_save)
    return Specimen(obj, data, of_another_save)


def _bytes_changed(damaged: bytearray, specimen: Specimen, generator: random.Random) -> str:
    count = generator.randint(1, min(_BYTES_AT_MOST, len(damaged)))
    positions = generator.sample(range(len(damaged)), count)
    for position in positions:
        damaged[position] ^= generator.randint(1, 255)
    return f"at {sorted(positions)}"


def _bits_flipped(damaged: bytearray, specimen: Specimen, generator: random.Random) -> str:
    bits = generator.sample(range(8 * len(damaged)), generator.randint(2, _BYTES_AT_MOST))
    for bit in bits:
        damaged[bit // 8] ^= 1 << bit % 8
    return f"bits {sorted(bits)}"


def _burst(damaged: bytearray, specimen: Specimen, generator: random.Random) -> str:
    nbytes = generator.randint(1, _BYTES_AT_MOST)
    start = generator.randrange(len(damaged) - nbytes)
    damaged[start : start + nbytes] = generator.randbytes(nbytes)
    return f"{nbytes} bytes at {start}"


def _sector_zeroed(damaged: bytearray, specimen: Specimen, generator: random.Random) -> str:
    sectors = _sectors(len(damaged), generator)
    for sector in sectors:
        damaged[sector] = bytes(len(damaged[sector]))
    return _describe(sectors)


def _sector_of_junk(damaged: bytearray, specimen: Specimen, generator: random.Random) -> str:
    sectors = _sectors(len(damaged), generator)
    for sector in sectors:
        damaged[sector] = generator.randbytes(len(damaged[sector]))
    return _describe(sectors)


def _sectors_swapped(damaged: bytearray, specimen: Specimen, generator: random.Random) -> str:
    one, two = _pair(len(damaged), generator)
    damaged[one], damaged[two] = damaged[two], damaged[one]
    return _describe([one, two])


def _sector_duplicated(damaged: bytearray, specimen: Specimen, generator: random.Random) -> str:
    one, two = _pair(len(damaged), generator)
    damaged[two] = damaged[one]
    return _describe([one, two])


def _sector_of_another_save(
    damaged: bytearray, specimen: Specimen, generator: random.Random
) -> str:
    sectors = _sectors(len(damaged), generator)
    for sector in sectors:
        damaged[sector] = specimen.of_another_save[sector]
    return _describe(sectors)


DAMAGES: dict[str, Callable[[bytearray, Specimen, random.Random], str]] = {
    "bytes changed": _bytes_changed,
    "bits flipped": _bits_flipped,
    "burst": _burst,
    "sectors zeroed": _sector_zeroed,
    "sectors of junk": _sector_of_junk,
    "sectors swapped": _sectors_swapped,
    "sector duplicated": _sector_duplicated,
    "sectors of another save": _sector_of_another_save,
}


def _sectors(nbytes: int, generator: random.Random) -> list[slice]:
    """Choose some sectors; the last of a file may be a part of one."""
    sector_nbytes = generator.choice(SECTORS_NBYTES)
    starts = range(0, nbytes, sector_nbytes)
    chosen = generator.sample(starts, min(len(starts), generator.randint(1, _SECTORS_AT_MOST)))
    return [slice(start, min(start + sector_nbytes, nbytes)) for start in sorted(chosen)]


def _pair(nbytes: int, generator: random.Random) -> tuple[slice, slice]:
    """Choose two whole sectors."""
    sector_nbytes = generator.choice([size for size in SECTORS_NBYTES if 2 * size <= nbytes])
    one, two = generator.sample(range(nbytes // sector_nbytes), 2)
    return (
        slice(one * sector_nbytes, (one + 1) * sector_nbytes),
        slice(two * sector_nbytes, (two + 1) * sector_nbytes),
    )


def _describe(sectors: list[slice]) -> str:
    return ", ".join(f"bytes {sector.start} to {sector.stop}" for sector in sectors)
