"""Safetensors files that are changed in all ways: what is read of one is what its own library reads.

Most changes are made to the JSON of the header, its length and the data set right again: others are refused
before anything looks at what the header says.
"""

# mypy: untyped-calls-exclude=safetensors

from __future__ import annotations

import contextlib
import functools
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import safetensors
import safetensors.torch
import torch
from tests.faults.harness import Tally
from tests.property.hostile_cases import described, look_at_refusal, measured
from tests.property.mutation import change_bytes, change_value

import fastckpt
from fastckpt._contents.safetensors_header import SafetensorsHeader, read_safetensors_header
from fastckpt.cli.app import run as run_command

# The commands are slower than the parser, and write files.
_CASES_PER_COMMAND = 16
_LENGTH = struct.Struct("<Q")
_LENGTHS = [
    0,
    1,
    2,
    7,
    8,
    127,
    2**16,
    32 << 20,
    100_000_000,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
]
_ENTRY = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
_WORDS = [
    b"NaN", b"Infinity", b"1e999", b"-0", b"-1", b"0.0", b"1e0", b"01", b"null", b"true", b"9" * 5000,
    b"[" * 3000, b'{"a":' * 3000, b"[]," * 500, b"{}," * 500, b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\u0000"',
    b"\\", b'"', b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", b"\0", b"/*", b",", b":", b"{", b"}", b"[", b"]",
    b" ", b"\n", b"\t", b"    ", b'"__metadata__":{},', b'"__metadata__":null,', b'"dtype":"F32",', b'"shape":[],',
    b'"data_offsets":[0,0],', b'"a":' + _ENTRY + b",", b'"' + b"x" * 3000 + b'":' + _ENTRY + b",", b'"x":1,',
    b"18446744073709551615", b"18446744073709551616", b"9223372036854775808", b"4611686018427387904",
    b"[4611686018427387904,4,0]", b"[0,4611686018427387904,4]",
]  # fmt: skip
_VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 4, 8, 16, 24, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64,
    10**30, 0.0, 1.0, 1e308, float("nan"), float("inf"), "", "U8", "BOOL", "F16", "BF16", "F32", "F64", "I64", "C64",
    "F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ", "U16", "U32", "U64",
    "f32", "F33", "x" * 2000, "\ud800", "a\0b", "line\nline", [], [[]], {}, [0], [0, 0], [0, 4], [4, 0], [0, 2**62, 4],
    [2**32, 2**32], [2**62, 4, 0], [0] * 65, [1] * 70,
]  # fmt: skip


@functools.cache
def _bases() -> list[tuple[bytes, bytes]]:
    """Headers and data as the library itself writes them; each byte of the data tells where it is."""
    files = [
        ({"a": torch.zeros(2, 3), "b": torch.zeros(4)}, {"format": "pt"}),
        ({"h.0.w": torch.zeros(3, 5, dtype=torch.bfloat16), "h.0.b": torch.zeros(5)}, None),
        (
            {"\u00fc\n": torch.zeros(1, dtype=torch.int64), "empty": torch.zeros(0, 7)},
            {"x": "\u2028"},
        ),
        ({f"layer.{i}": torch.zeros(i, dtype=torch.uint8) for i in range(12)}, None),
    ]
    found = []
    for tensors, metadata in files:
        data = safetensors.torch.save(tensors, metadata)
        end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
        found.append((data[_LENGTH.size : end], bytes(i % 251 for i in range(len(data) - end))))
    return found


def file_of(header: bytes, data: bytes, length: int | None = None) -> bytes:
    """Return a file with this header; the length before it is right unless one is given."""
    return _LENGTH.pack(len(header) if length is None else length) + header + data


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Change files in all ways; look at what comes of reading each, and of the commands on some."""
    tally = Tally()
    for number in range(cases):
        random = Random(f"{seed}-{number}")
        data = _hostile(random)
        path = directory / "hostile.safetensors"
        path.write_bytes(data)
        try:
            outcome = measured(of_header, data, path)
            if number % _CASES_PER_COMMAND == 0:
                of_commands(path, is_read=outcome == "read")
            tally.count(outcome)
        except Exception as error:
            tally.fail(described(number, seed, error, data))
    return tally


def of_header(data: bytes, path: Path) -> str:
    """Read the header; returns "read" if the library says the same, or "refused"."""
    try:
        header = read_safetensors_header(str(path))
    except fastckpt.FormatError as error:
        return look_at_refusal(error, path)
    compare_with_library(header, data, path)
    return "read"


def compare_with_library(header: SafetensorsHeader, data: bytes, path: Path) -> None:
    """Require that the library reads the file, with the same names, dtypes, shapes, places and metadata."""
    theirs = dict(safetensors.deserialize(data))
    assert [tensor.name for tensor in header.tensors if tensor.name not in theirs] == []
    assert len(theirs) == len(header.tensors)
    for tensor in header.tensors:
        other = theirs[tensor.name]
        assert tensor.dtype == _torch_name(other["dtype"]), tensor
        assert list(tensor.shape) == other["shape"], tensor
        assert data[tensor.offset : tensor.offset + tensor.nbytes] == bytes(other["data"]), tensor
    with safetensors.safe_open(path, framework="np") as file:
        assert header.metadata == (file.metadata() or {})
    assert header.nbytes == len(data)


def _torch_name(dtype: str) -> str:
    # Where torch has no such dtype, its own way of naming them is kept.
    unknown = {"F4": "float4", "F8_E8M0": "float8_e8m0fnu"}
    known = safetensors.torch._TYPES.get(dtype)
    return (
        unknown.get(dtype, dtype.replace("F6", "float6").lower())
        if known is None
        else str(known)[6:]
    )


def of_commands(path: Path, *, is_read: bool) -> None:
    """Run the commands on a file: exit codes as documented, and an error is one line."""
    output = path.with_suffix(".pt")
    for arguments, codes in (
        (["inspect", str(path)], {0} if is_read else {1}),
        (["diff", str(path), str(path)], {0} if is_read else {6}),
        # The library may read more than we show, and has dtypes that torch lacks.
        (["export", str(path), "--to", str(output)], {0, 1}),
    ):
        code, errors = _run(arguments)
        assert code in codes, (arguments[0], code, errors)
        kinds = [line.partition(": ")[0] for line in errors.splitlines()]
        assert set(kinds) <= {"error", "hint", "note", "warning"}, errors
        assert kinds.count("error") == (arguments[0] != "inspect" or not is_read) * (code != 0), (
            errors
        )
        assert output.exists() == (arguments[0] == "export" and code == 0)
    output.unlink(missing_ok=True)


def _run(arguments: list[str]) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command(arguments)
    return code, err.getvalue()


# Changes


def _hostile(random: Random) -> bytes:
    header, data = random.choice(_bases())
    return random.choice(_WAYS)(random, header, data)


def _bytes(random: Random, header: bytes, data: bytes) -> bytes:
    return random.randbytes(random.choice([0, 1, 7, 8, 9, 100, 5000]))


def _anywhere(random: Random, header: bytes, data: bytes) -> bytes:
    return change_bytes(random, file_of(header, data), _WORDS)


def _length(random: Random, header: bytes, data: bytes) -> bytes:
    length = random.choice([*_LENGTHS, len(header) - 1, len(header) + 1, len(header) + len(data)])
    return file_of(header, data, length)


def _text(random: Random, header: bytes, data: bytes) -> bytes:
    return file_of(change_bytes(random, header, _WORDS), data)


def _values(random: Random, header: bytes, data: bytes) -> bytes:
    document = json.loads(header)
    for _ in range(random.randint(1, 3)):
        change_value(random, document, _VALUES)
    return file_of(json.dumps(document).encode("ascii"), data)


def _names(random: Random, header: bytes, data: bytes) -> bytes:
    """Names that stand twice, or that are odd: an entry more, or another name for one."""
    document = json.loads(header)
    pairs = list(document.items())
    name, value = random.choice(pairs)
    other = random.choice(
        [name, "", "\ud800", "\0", "__metadata__", "x" * 5000, "a\nerror: b", "\u202e"]
    )
    if random.random() < 0.5:
        pairs.insert(random.randrange(len(pairs) + 1), (other, value))
    else:
        pairs = [(other if key == name else key, one) for key, one in pairs]
    text = ",".join(f"{json.dumps(key)}:{json.dumps(one)}" for key, one in pairs)
    return file_of(("{" + text + "}").encode("ascii"), data)


def _shapes(random: Random, header: bytes, data: bytes) -> bytes:
    """Shapes of the same number of elements, of none, or of more than there can be."""
    document = json.loads(header)
    for name, entry in document.items():
        if name != "__metadata__" and random.random() < 0.5:
            shape = entry["shape"]
            at = random.randrange(len(shape) + 1)
            shape[at:at] = [random.choice([0, 1, 1, 1, 2**31, 2**62, 2**63 - 1])] * random.randint(
                1, 3
            )
            if random.random() < 0.3:
                random.shuffle(shape)
    return file_of(json.dumps(document).encode("ascii"), data)


def _offsets(random: Random, header: bytes, data: bytes) -> bytes:
    """Places that overlap, leave gaps, or are the other tensor's."""
    document = json.loads(header)
    entries = [entry for name, entry in document.items() if name != "__metadata__"]
    for entry in random.sample(entries, min(len(entries), random.randint(1, 2))):
        if random.random() < 0.3:
            other = random.choice(entries)
            entry["data_offsets"], other["data_offsets"] = (
                other["data_offsets"],
                entry["data_offsets"],
            )
        else:
            by = random.choice([-8, -4, -1, 1, 4, 8, 2**63])
            entry["data_offsets"][random.randrange(2)] += by
    return file_of(json.dumps(document).encode("ascii"), data)


def _spaces(random: Random, header: bytes, data: bytes) -> bytes:
    """Another layout of the same JSON."""
    text = json.dumps(json.loads(header), indent=random.choice([None, 0, 2]), ensure_ascii=False)
    before, after = (
        random.choice(["", " ", "\n", "\t", " " * 7, "\r", "\x0b", "\x00"]) for _ in "ab"
    )
    return file_of((before + text + after).encode("utf-8"), data)


def _sizes(random: Random, header: bytes, data: bytes) -> bytes:
    more = random.choice([b"", b"\0", b"\0" * 4096])
    return file_of(header, data[: random.randint(0, len(data))] + more)


_WAYS: list[Callable[[Random, bytes, bytes], bytes]] = [
    _bytes, _anywhere, _length, _text, _text, _values, _values, _names, _shapes, _offsets, _spaces, _sizes,
]  # fmt: skip
