"""Pickles that call, build or claim what no checkpoint does: refused, and nothing has run."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.archives import data_pkl, torch_bytes
from tests.faults.forgery import with_pickle
from tests.specimens import assert_same, quiet

import fastckpt

CANARY = f"/tmp/fastckpt-canary-{os.getpid()}"
COMMAND = f"touch {CANARY}"
_MAX_SECONDS = 5.0
# What running foreign code would have to raise: the modules it imports, the programs it starts.
_WATCHED = ("import", "exec", "compile", "os.", "subprocess.", "socket.", "shutil.", "ctypes.")
_HARMLESS = ("os.listdir", "os.scandir")

watching = False
events: list[tuple[str, str]] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if watching and event.startswith(_WATCHED) and event not in _HARMLESS:
        events.append((event, repr(arguments)[:100]))


sys.addaudithook(_watch)


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """GLOBAL module name, the arguments, REDUCE."""
    return f"c{module}\n{name}\n(".encode() + b"".join(arguments) + b"tR"


def pid(
    key: str = "0", dtype: str = "FloatStorage", numel: bytes = b"K\x03", location: str = "cpu"
) -> bytes:
    """What stands for a storage: BINPERSID of a tuple."""
    return (
        b"("
        + text("storage")
        + f"ctorch\n{dtype}\n".encode()
        + text(key)
        + text(location)
        + numel
        + b"tQ"
    )


def tensor(
    storage: bytes = b"", offset: bytes = b"K\0", size: bytes = b"K\x03", stride: bytes = b"K\x01"
) -> bytes:
    storage = storage or pid()
    return call(
        "torch._utils",
        "_rebuild_tensor_v2",
        storage,
        offset,
        b"(" + size + b"t",
        b"(" + stride + b"t",
        b"\x89",
        b"ccollections\nOrderedDict\n)R",
    )


def long1(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


SYSTEM = text(COMMAND)

# They call something, or make something that is no checkpoint's.
CALLS = {
    "reduce": call("os", "system", SYSTEM),
    "reduce_posix": call("posix", "system", SYSTEM),
    "reduce_builtin": call("__builtin__", "eval", text("1+1")),
    "exec": call("builtins", "exec", text("import os")),
    "import": call("builtins", "__import__", text("os")),
    "getattr": call("builtins", "getattr", tensor(), text("numpy")),
    "open": call("builtins", "open", text(CANARY), text("w")),
    "popen": call("subprocess", "Popen", SYSTEM),
    "stack_global": short("os") + short("system") + b"\x93(" + SYSTEM + b"tR",
    "inst": b"(" + SYSTEM + b"ios\nsystem\n",
    "obj": b"(cos\nsystem\n" + SYSTEM + b"o",
    "newobj": b"csubprocess\nPopen\n(" + SYSTEM + b"t\x81",
    "newobj_ex": b"csubprocess\nPopen\n(" + SYSTEM + b"t}\x92",
    "dotted_name": short("torch") + short("os.system") + b"\x93(" + SYSTEM + b"tR",
    "module_of_torch": call("torch.serialization", "os.system", SYSTEM),
    "nested_load": call("torch.storage", "_load_from_bytes", b"C\x04abcd"),
    "load": call("torch", "load", text("/etc/passwd")),
    "hub": call("torch.hub", "load", text("a/b"), text("c")),
    "partial": call("functools", "partial", b"cos\nsystem\n", SYSTEM),
    "reconstructor": call("copy_reg", "_reconstructor", b"cos\nsystem\n", b"cos\nsystem\n", b"N"),
    "only_named": b"cos\nsystem\n",
    "call_of_a_string": text("os.system") + b"(" + SYSTEM + b"tR",
    "call_of_a_storage": pid() + b")R",
    "rebuild_with_a_callable": call("torch._utils", "_rebuild_parameter", b"cos\nsystem\n"),
    "type_from_a_string": call(
        "torch._tensor", "_rebuild_from_type_v2", SYSTEM, SYSTEM, b"N", b"N"
    ),
    "build_on_a_tensor": tensor() + b"}" + text("data") + b"K\x01sb",
    "build_on_a_list": b"](" + text("x") + b"K\x01tb",
    "build_with_slots": b"ccollections\nOrderedDict\n)RN}" + text("x") + b"K\x01s\x86b",
    "extension_1": b"\x82\x01",
    "extension_2": b"\x83\x01\x00",
    "extension_4": b"\x84\x01\x00\x00\x00",
    "persid_in_text": b"Pos.system\n",
}
# torch's restricted unpickler takes these, and so do we: they can do no harm.
HARMLESS = {
    "newobj_of_a_dict": b"ccollections\nOrderedDict\n)\x81",
    "build_of_attributes": b"ccollections\nOrderedDict\n)R}" + text("__class__") + b"K\x01sb",
}
# BUILD of a tensor is Tensor.set_. These ask for more than the storage holds, which is nothing or
# three elements: with a storage that can grow, they would see memory that nobody has filled.
_EMPTY = pid(key="1", numel=b"K\0")
GROWTHS = {
    f"grown_to_{name}_{kind}": tensor() + b"(" + storage + b"K\0(" + size + b"t(K\x01t" + b"tb"
    for name, size in {"1000": b"M\xe8\x03", "2_40": long1(1 << 40)}.items()
    for kind, storage in {"from_3": pid(), "from_nothing": _EMPTY}.items()
}
# CVE-2026-24747: SETITEM(S) and APPEND(S) write wherever the index says.
WRITES = {
    "setitem_on_a_tensor": tensor() + b"K\x00K\x07s",
    "setitems_on_a_tensor": tensor() + b"(K\x00K\x07K\x01K\x08u",
    "setitem_far_outside": tensor() + long1(1 << 40) + b"K\x07s",
    "setitem_on_a_list": b"]K\x01aK\x00K\x07s",
    "setitem_on_a_storage": pid() + b"K\x00K\x07s",
    "append_to_a_dict": b"}K\x01a",
    "append_to_a_tensor": tensor() + b"K\x01a",
    "appends_to_a_tuple": b")(K\x01K\x02e",
}
# They say of a storage what its record is not (12 bytes).
SIZES = {
    "storage_too_long": tensor(pid(numel=b"M\xe8\x03"), size=b"M\xe8\x03"),
    "storage_too_short": tensor(pid(numel=b"K\x01"), size=b"K\x01"),
    "storage_of_other_width": tensor(pid(dtype="DoubleStorage")),
    "storage_2_62": tensor(pid(numel=long1(1 << 62))),
    "storage_2_64": tensor(pid(numel=long1(1 << 64))),
    "storage_negative": tensor(pid(numel=b"J\xff\xff\xff\xff")),
    "tensor_longer_than_its_storage": tensor(size=b"M\xe8\x03"),
    "offset_outside": tensor(offset=b"K\x09"),
    "offset_negative": tensor(offset=b"J\xff\xff\xff\xff"),
    "size_negative": tensor(size=b"J\xff\xff\xff\xff"),
    "size_2_63": tensor(size=long1(1 << 63)),
    "stride_negative": tensor(stride=b"J\xff\xff\xff\xff"),
    "stride_outside": tensor(stride=b"M\xe8\x03"),
    "stride_that_overflows": tensor(stride=long1((1 << 63) - 1)),
    "sizes_that_overflow": tensor(size=long1(1 << 32) + long1(1 << 32), stride=b"K\x00K\x00"),
    "fewer_strides": tensor(size=b"K\x01K\x01"),
    "record_that_is_not_there": tensor(pid(key="7")),
    "record_that_climbs": tensor(pid(key="../data.pkl")),
    "storage_of_no_type": tensor(pid(dtype="NoStorage")),
    "two_claims_on_one_record": b"(" + tensor() + tensor(pid(numel=b"M\xe8\x03")) + b"t",
    "persid_no_tuple": text("0") + b"Q",
    "persid_too_short": b"(" + text("storage") + b"tQ",
    "persid_of_another_kind": b"(" + text("module") + b"K\x01K\x02K\x03K\x04tQ",
}
# They are no pickle, or cost more than their bytes.
BROKEN = {
    "nested_100_000_deep": b"]" * 100_000 + b"a" * 99_999,
    "tuples_nested_deep": b")" + b"\x85" * 100_000,
    "marks": b"(" * 100_000,
    "text_of_4_gb": b"X\xff\xff\xff\xff",
    "text_of_2_63": b"\x8d" + b"\xff" * 7 + b"\x7f",
    "bytes_of_4_gb": b"B\xff\xff\xff\xff",
    "long_of_2_gb": b"\x8b\xff\xff\xff\x7f",
    "memo_far_away": b"Nr\xff\xff\xff\xffj\xfe\xff\xff\xff",
    "memo_never_put": b"h\x09",
    "frame_too_long": b"\x95" + b"\xff" * 8,
    "stack_empty": b"0",
    "append_to_nothing": b"a",
    "tuple_without_mark": b"t",
    "reduce_of_nothing": b"R",
    "odd_setitems": b"}(K\x01u",
    "unhashable_key": b"}]K\x01s",
    "text_not_utf8": b"X\x02\0\0\0\xff\xfe",
    "unknown_opcode": b"\xff",
    "nothing": b"",
}
WHOLE = {
    "bytes_after_stop": program(tensor()) + b"cos\nsystem\n",
    "second_pickle": program(b"N") + program(call("os", "system", SYSTEM)),
    "no_stop": b"\x80\x02N",
    "no_protocol": b"",
    "protocol_9": b"\x80\x09N.",
    "cut_off": data_pkl(torch_bytes({"w": torch.ones(3)}))[:-20],
    "real_reduce": pickle.dumps(
        type("E", (), {"__reduce__": lambda _: (os.system, (COMMAND,))})(), 2
    ),
}
PICKLES = {
    name: program(body)
    for group in (CALLS, GROWTHS, WRITES, SIZES, BROKEN)
    for name, body in group.items()
} | WHOLE
# Where the rules allow every part, and yet no object comes of it, the file is bad, not unsafe.
TYPED = (fastckpt.UnsafePickleError, fastckpt.FormatError)
NOT_BUILT = {"type_from_a_string", "build_on_a_tensor", "build_with_slots", *GROWTHS, *SIZES}
RECORDS = (("data/0", bytes(range(1, 13))), ("data/1", b""))


@contextmanager
def nothing_runs() -> Iterator[None]:
    """Assert that no module is imported, no program started and no file made meanwhile."""
    global watching
    with quiet():
        _load_everything_that_a_refusal_needs()
        events.clear()
        watching = True
        try:
            yield
        finally:
            watching = False
    assert events == []
    assert not os.path.exists(CANARY)


def _load_everything_that_a_refusal_needs() -> None:
    """Let the modules that loads import be there: the watch is for those of the pickle."""
    for body in (b"cos\nsystem\n", tensor(), b"ccollections\nCounter\n)R"):
        archive = with_pickle(program(body), ("data/0", bytes(12)))
        with contextlib.suppress(fastckpt.CheckpointError):
            fastckpt.load(io.BytesIO(archive))


def test_the_tensor_without_lies_loads(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(with_pickle(program(tensor()), ("data/0", struct.pack("<3f", 1, 2, 3))))
    assert torch.equal(fastckpt.load(path), torch.tensor([1.0, 2.0, 3.0]))


def test_the_watch_sees_what_runs(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(with_pickle(PICKLES["reduce"]))
    try:
        with pytest.raises(AssertionError), nothing_runs():
            fastckpt.load(path, weights_only=False)
        assert os.path.exists(CANARY)
    finally:
        os.unlink(CANARY)


@pytest.mark.parametrize("name", PICKLES)
def test_refused_and_nothing_has_run(name: str, tmp_path: Path) -> None:
    path = tmp_path / "malicious.pt"
    path.write_bytes(with_pickle(PICKLES[name], *RECORDS))
    expected = TYPED if name in NOT_BUILT else fastckpt.UnsafePickleError
    ways: list[dict[str, Any]] = [{}, {"mmap": True}, {"verify": False}]
    if name not in GROWTHS:  # on the meta device there is no memory to see
        ways.append({"map_location": "meta"})
    for options in ways:
        began = time.monotonic()
        with nothing_runs(), pytest.raises(expected) as refusal:
            fastckpt.load(path, **options)
        assert time.monotonic() - began < _MAX_SECONDS
        assert str(path) in str(refusal.value)


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_ones_give_what_torch_gives(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(with_pickle(program(HARMLESS[name])))
    with nothing_runs():
        found = fastckpt.load(path)
    expected = torch.load(path)
    assert_same(found, expected)
    assert vars(found) == vars(expected)


@pytest.mark.parametrize("name", PICKLES)
def test_verify_runs_nothing_either(name: str, tmp_path: Path) -> None:
    """The bytes are those that were written, so the file is good; one damaged tensor is named."""
    path = tmp_path / "malicious.pt"
    data = bytearray(with_pickle(PICKLES[name], *RECORDS))
    path.write_bytes(data)
    fastckpt.verify(path)
    data[data.index(bytes(range(1, 13)))] ^= 1
    path.write_bytes(data)
    with nothing_runs():
        assert not fastckpt.verify(path).ok


@pytest.mark.parametrize("width", [2, 200])
def test_memo_bombs_are_not_expanded(width: int, tmp_path: Path) -> None:
    """Thirty lists, each of which holds the one before many times: 200**30 items, if copied."""
    body = b"]q\0"
    for number in range(30):
        again = b"h" + bytes([number])
        body = b"](" + body + again * (width - 1) + b"eq" + bytes([number + 1])
    path = tmp_path / "bomb.pt"
    path.write_bytes(with_pickle(program(body)))
    began = time.monotonic()
    found = fastckpt.load(path)
    assert time.monotonic() - began < _MAX_SECONDS
    for _ in range(30):
        assert len(found) == width
        assert all(item is found[0] for item in found)
        found = found[0]
    assert found == []
