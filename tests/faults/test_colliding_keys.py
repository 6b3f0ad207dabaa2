"""Dicts and sets whose keys were chosen so that Python looks at all of them for each: refused by name."""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.archives import torch_bytes
from tests.faults.forgery import with_pickle
from tests.faults.opcodes import program
from tests.specimens import quiet

import fastckpt

MODULUS = sys.hash_info.modulus
COUNT = 1_000
# What Python itself builds of them takes a while: enough to be far above any limit.
FEW = 100


KINDS: dict[str, Callable[[int], Any]] = {
    "ints": lambda n: 7 + n * MODULUS,
    "negative ints": lambda n: -7 - n * MODULUS,
    "ints of 250 bytes": lambda n: (1 << 1952) + n * MODULUS,
    "negative ints of 250 bytes": lambda n: -(1 << 1952) - n * MODULUS,
    "floats and ints": lambda n: math.ldexp(1.0, 61 * n) if n < 16 else 1 + n * MODULUS,
    "complex numbers": lambda n: complex(float((n + 2) * 1_000_003), float(-n - 2)),
    "tuples": lambda n: (n * MODULUS, "of texts, too", 3),
    "tuples in tuples": lambda n: ((1, (5 + n * MODULUS,)), None),
    "tuples of -1 and -2": lambda n: tuple(-1 - int(digit) for digit in f"{n:012b}"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_keys_of_one_hash_are_refused_before_a_dict_is_built(kind: str, tmp_path: Path) -> None:
    keys = [KINDS[kind](n) for n in range(COUNT)]
    assert len(set(keys[:FEW])) == FEW
    # Python says what is one hash.
    assert len(set(map(hash, keys))) == 1
    for container in (dict.fromkeys(keys, 0), set(keys), OrderedDict.fromkeys(keys)):
        path = tmp_path / "model.pt"
        path.write_bytes(torch_bytes({"a": [1, {"b": container}]}))
        words = rf"data\.pkl: an? (dict|set|OrderedDict) at a\.1\.b has {COUNT} keys whose hashes"
        with pytest.raises(fastckpt.UnsafePickleError, match=words) as caught:
            fastckpt.load(path)
        assert str(path) in str(caught.value)
        with pytest.raises(fastckpt.FormatError, match=words):
            fastckpt.inspect(path)


def assert_refused(obj: Any, directory: Path) -> None:
    path = directory / "model.pt"
    path.write_bytes(torch_bytes(obj))
    with pytest.raises(fastckpt.UnsafePickleError, match="hashes collide"):
        fastckpt.load(path)


def chained_keys(bits: int, extra: int) -> list[int]:
    """Distinct hashes: half lie in each other's way, the others begin where the chain does.

    Python tries the places `i`, `5 i + 1 + rest of the hash`, ... of a table of 2**bits.
    """
    mask = (1 << bits) - 1
    chain, place = [], 1
    for _ in range((1 << bits) * 5 // 12):
        chain.append(place)
        place = (place * 5 + 1) & mask
    taken = {place: position for position, place in enumerate(chain)}
    late: list[int] = []
    hashed = 1 << bits
    while len(late) < extra:
        place, rest = hashed & mask, hashed
        while place in taken and rest:
            rest >>= 5
            place = (place * 5 + rest + 1) & mask
        if taken.get(place, len(chain)) < len(chain) // 2:
            late.append(hashed)
        hashed += 1
    return chain + late


def test_chains_of_places_are_refused_too(tmp_path: Path) -> None:
    keys = chained_keys(14, 2_000)
    assert len(set(map(hash, keys))) == len(keys)
    assert_refused(dict.fromkeys(keys, 0), tmp_path)
    # Counter copies the dict that it is given, to a table of another size.
    assert_refused(Counter(dict.fromkeys(keys, 1)), tmp_path)


def test_what_is_not_in_the_result_is_refused_as_well(tmp_path: Path) -> None:
    """torch's unpickler builds it before it throws it away: here as the hooks of a tensor."""
    numbers = b"".join(
        b"\x8a\x20" + (n * MODULUS).to_bytes(32, "little") + b"N" for n in range(COUNT)
    )
    path = tmp_path / "model.pt"
    path.write_bytes(
        with_pickle(program(b"ctorch._utils\n_rebuild_parameter\n(N\x88}(" + numbers + b"utR"))
    )
    with pytest.raises(fastckpt.UnsafePickleError, match=rf"a dict.* has {COUNT} keys whose hash"):
        fastckpt.load(path)


ORDINARY: dict[str, Callable[[], Any]] = {
    "the state of an optimizer": lambda: {n: {"step": 1} for n in range(20_000)},
    "negative numbers": lambda: dict.fromkeys(range(-30_000, 0)),
    "multiples": lambda: {n << 40: n for n in range(30_000)},
    "multiples of 2**20": lambda: {n << 20 for n in range(30_000)},
    "hashed names": lambda: {hash(("name", n)) & ((1 << 64) - 1): n for n in range(30_000)},
    "fractions": lambda: {n / 1024: n for n in range(-30_000, 30_000)},
    "powers": lambda: {2.0**n: n for n in range(-1000, 1000)} | {2**n: n for n in range(1000)},
    "places in a grid": lambda: dict.fromkeys(itertools.product(range(-2, 3), repeat=6)),
    "edges": lambda: set(itertools.product(range(-150, 150), repeat=2)),
    "complex": lambda: {complex(a, b) for a in range(-90, 90) for b in range(-90, 90)},
    "texts and numbers": lambda: {
        **dict.fromkeys(map(str, range(20_000))),
        **dict.fromkeys(range(9)),
    },
    "shapes": lambda: {torch.Size((a, b)): a for a in range(100) for b in range(100)},
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_what_people_save_is_not_refused(kind: str, tmp_path: Path) -> None:
    obj = ORDINARY[kind]()
    path = tmp_path / "model.pt"
    path.write_bytes(torch_bytes(obj))
    with quiet():
        assert fastckpt.load(path) == obj


def test_a_few_hundred_of_one_hash_are_built(tmp_path: Path) -> None:
    obj = {n * MODULUS: n for n in range(150)}
    path = tmp_path / "model.pt"
    path.write_bytes(torch_bytes(obj))
    assert fastckpt.load(path) == obj
