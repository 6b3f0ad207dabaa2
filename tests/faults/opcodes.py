"""Pickles put together by hand, opcode by opcode: what no pickler writes."""

from __future__ import annotations

import pickle
import struct

ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    """BINUNICODE."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def short(value: str) -> bytes:
    """SHORT_BINUNICODE, of protocol 4."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def real(value: float) -> bytes:
    """BINFLOAT."""
    return b"G" + struct.pack(">d", value)


def long1(value: int) -> bytes:
    """LONG1: an integer of any size."""
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def named(module: str, name: str) -> bytes:
    """GLOBAL: a class or function, not called."""
    return f"c{module}\n{name}\n".encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """GLOBAL, the arguments, REDUCE."""
    return named(module, name) + b"(" + b"".join(arguments) + b"tR"


def new(module: str, name: str, *arguments: bytes) -> bytes:
    """GLOBAL, the arguments, NEWOBJ."""
    return named(module, name) + b"(" + b"".join(arguments) + b"t\x81"


def pid(
    key: str = "0", dtype: str = "FloatStorage", numel: bytes = b"K\x03", location: str = "cpu"
) -> bytes:
    """What stands for a storage: BINPERSID of a tuple."""
    return (
        b"(" + text("storage") + named("torch", dtype) + text(key) + text(location) + numel + b"tQ"
    )


def tensor(
    storage: bytes = b"", offset: bytes = b"K\0", size: bytes = b"K\x03", stride: bytes = b"K\x01"
) -> bytes:
    """A call of _rebuild_tensor_v2 as torch.save writes it, for one dimension or several."""
    return call(
        "torch._utils",
        "_rebuild_tensor_v2",
        storage or pid(),
        offset,
        b"(" + size + b"t",
        b"(" + stride + b"t",
        b"\x89",
        ORDERED_DICT,
    )


def setting(state: bytes) -> bytes:
    """BUILD of what stands on the stack."""
    return state + b"b"


def attributes(**values: bytes) -> bytes:
    """A dict of texts."""
    return b"}" + b"".join(text(name) + value + b"s" for name, value in values.items())


def program(body: bytes) -> bytes:
    """The body between PROTO 2 and STOP."""
    return b"\x80\x02" + body + b"."
