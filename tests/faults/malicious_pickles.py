"""Pickles that call, build, claim or cost what no checkpoint does, by what they are after."""

from __future__ import annotations

import itertools
import os
import pickle
import struct

from tests.archives import data_pkl, torch_bytes
from tests.faults.opcodes import (
    ORDERED_DICT,
    attributes,
    call,
    long1,
    named,
    new,
    pid,
    program,
    real,
    setting,
    short,
    tensor,
    text,
)

CANARY = f"/tmp/fastckpt-canary-{os.getpid()}"
COMMAND = f"touch {CANARY}"
SYSTEM = text(COMMAND)
_OS_SYSTEM = named("os", "system")

# What stands in the archives around the pickles: three floats, and nothing.
RECORDS = (("data/0", struct.pack("<3f", 1, 2, 3)), ("data/1", b""))
_EMPTY = pid(key="1", numel=b"K\0")
_THOUSAND = b"M\xe8\x03"
# One element, seen 16 million times: gigabytes for whoever makes an object of each.
_ENDLESS = tensor(size=long1(1 << 24), stride=b"K\0")

# They call something, or make something that is no checkpoint's.
CALLS = {
    "reduce": call("os", "system", SYSTEM),
    "reduce_posix": call("posix", "system", SYSTEM),
    "reduce_builtin": call("__builtin__", "eval", text("1+1")),
    "exec": call("builtins", "exec", text("import os")),
    "compile": call("builtins", "compile", text("1"), text("x"), text("eval")),
    "import": call("builtins", "__import__", text("os")),
    "import_module": call("importlib", "import_module", text("this")),
    "getattr": call("builtins", "getattr", tensor(), text("numpy")),
    "getattr_of_a_module": call("builtins", "getattr", named("os", "path"), text("os")),
    "apply": call("__builtin__", "apply", _OS_SYSTEM, b"(" + SYSTEM + b"t"),
    "map": call("builtins", "map", _OS_SYSTEM, b"]" + SYSTEM + b"a"),
    "open": call("builtins", "open", text(CANARY), text("w")),
    "print": call("builtins", "print", text("hello")),
    "type": call("builtins", "type", text("T"), b")", b"}"),
    "popen": call("subprocess", "Popen", SYSTEM),
    "pty": call("pty", "spawn", SYSTEM),
    "runpy": call("runpy", "run_path", text("/tmp/a.py")),
    "pdb": call("pdb", "run", text("1")),
    "timeit": call("timeit", "timeit", text("1")),
    "pydoc": call("pydoc", "pipepager", text("a"), SYSTEM),
    "pickle": call("pickle", "loads", b"C\x04abcd"),
    "marshal": call("marshal", "loads", b"C\x04abcd"),
    "code": call("types", "CodeType", b"K\0"),
    "attrgetter": call("operator", "attrgetter", text("system")),
    "methodcaller": call("operator", "methodcaller", text("system"), SYSTEM),
    "partial": call("functools", "partial", _OS_SYSTEM, SYSTEM),
    "reduce_of_functools": call("functools", "reduce", _OS_SYSTEM, b"]" + SYSTEM + b"a"),
    "ctypes": call("ctypes", "CDLL", text("libc.so.6")),
    "numpy_load": call("numpy", "load", text("/tmp/a.npy")),
    "nested_load": call("torch.storage", "_load_from_bytes", b"C\x04abcd"),
    "load": call("torch", "load", text("/etc/passwd")),
    "hub": call("torch.hub", "load", text("a/b"), text("c")),
    "jit_load": call("torch.jit", "load", text("/tmp/a.pt")),
    "ops_load": call("torch.ops", "load_library", text("/tmp/a.so")),
    "dynamo": call("torch._dynamo.guards", "GuardBuilder.get", text("1")),
    "run_of_torch": call("torch.distributed.run", "main", b"]"),
    "fastckpt_itself": call("fastckpt", "load", text("/etc/passwd")),
    "reconstructor": call("copy_reg", "_reconstructor", _OS_SYSTEM, _OS_SYSTEM, b"N"),
    "newobj_of_copyreg": call("copyreg", "__newobj__", named("subprocess", "Popen"), SYSTEM),
    "add_extension": call("copyreg", "add_extension", text("os"), text("system"), b"K\x01"),
    "safe_globals": call("torch.serialization", "add_safe_globals", b"]" + _OS_SYSTEM + b"a"),
    "stack_global": short("os") + short("system") + b"\x93(" + SYSTEM + b"tR",
    "inst": b"(" + SYSTEM + b"ios\nsystem\n",
    "obj": b"(cos\nsystem\n" + SYSTEM + b"o",
    "newobj": new("subprocess", "Popen", SYSTEM),
    "newobj_ex": named("subprocess", "Popen") + b"(" + SYSTEM + b"t}\x92",
    "dotted_name": short("torch") + short("os.system") + b"\x93(" + SYSTEM + b"tR",
    "module_of_torch": call("torch.serialization", "os.system", SYSTEM),
    "name_with_a_space": call("torch._utils ", "_rebuild_tensor_v2", pid()),
    "name_in_another_case": call("torch._Utils", "_rebuild_tensor_v2", pid()),
    "name_with_a_nul": call("torch._utils", "_rebuild_tensor_v2\0", pid()),
    "module_split_elsewhere": call("torch", "_utils._rebuild_tensor_v2", pid()),
    "name_of_nothing": call("", "", pid()),
    "only_named": _OS_SYSTEM,
    "call_of_a_string": text("os.system") + b"(" + SYSTEM + b"tR",
    "call_of_a_storage": pid() + b")R",
    "call_of_a_tensor": tensor() + b")R",
    "call_of_a_dtype": named("torch", "float32") + b")R",
    "call_without_a_tuple": named("collections", "OrderedDict") + b"]R",
    "rebuild_with_a_callable": call("torch._utils", "_rebuild_parameter", _OS_SYSTEM),
    "type_from_a_string": call(
        "torch._tensor", "_rebuild_from_type_v2", SYSTEM, SYSTEM, b"N", b"N"
    ),
    "type_from_a_function": call(
        "torch._tensor", "_rebuild_from_type_v2", _OS_SYSTEM, named("torch", "Tensor"), b"N", b"}"
    ),
    "hooks_that_call": call(
        "torch._utils", "_rebuild_tensor_v2", pid(), b"K\0", b")", b")", b"\x88", _OS_SYSTEM
    ),
    "build_on_a_tensor": tensor() + setting(attributes(data=b"K\x01")),
    "build_on_a_storage": pid() + setting(attributes(x=b"K\x01")),
    "build_on_a_list": b"](" + text("x") + setting(b"K\x01t"),
    "build_on_a_dtype": named("torch", "float32") + setting(attributes(x=b"K\x01")),
    "build_on_a_function": named("torch._utils", "_rebuild_tensor_v2")
    + setting(attributes(__code__=b"K\x01")),
    "build_on_a_class": named("collections", "OrderedDict")
    + setting(attributes(__reduce__=b"K\x01")),
    "build_with_setstate": tensor() + setting(attributes(__setstate__=_OS_SYSTEM)),
    "build_with_slots": ORDERED_DICT + setting(b"N" + attributes(x=b"K\x01") + b"\x86"),
    "extension_1": b"\x82\x01",
    "extension_2": b"\x83\x01\x00",
    "extension_4": b"\x84\x01\x00\x00\x00",
    "persid_in_text": b"Pos.system\n",
    "next_buffer": b"\x97",
    "readonly_buffer": b"K\x01\x98",
}
# torch's restricted unpickler takes these, and so do we: they can do no harm.
HARMLESS = {
    "newobj_of_a_dict": b"ccollections\nOrderedDict\n)\x81",
    "build_of_attributes": ORDERED_DICT + setting(attributes(__class__=b"K\x01")),
    "build_of_a_method": ORDERED_DICT + setting(attributes(__setstate__=b"K\x01")),
}
# BUILD of a tensor is Tensor.set_. These ask for more than the storage holds, which is nothing or
# three elements: with a storage that can grow, they would see memory that nobody has filled.
GROWTHS = {
    f"grown_to_{name}_{kind}": tensor() + setting(b"(" + storage + b"K\0(" + size + b"t(K\x01tt")
    for name, size in {"1000": _THOUSAND, "2_40": long1(1 << 40)}.items()
    for kind, storage in {"from_3": pid(), "from_nothing": _EMPTY}.items()
}
# Tensors and storages that come from no record: their memory is what somebody else left there.
_NEW_TENSOR = new("torch", "FloatTensor")
UNFILLED = {
    f"{kind}_of_{module}_{name}": make(module, name, _THOUSAND)
    for kind, make in {"call": call, "newobj": new}.items()
    for module, name in (
        ("torch", "Tensor"),
        ("torch", "FloatTensor"),
        ("torch.sparse", "FloatTensor"),
        ("torch.storage", "UntypedStorage"),
        # torch joins the two, and finds the same.
        ("torch", "storage.UntypedStorage"),
    )
} | {
    "tensor_by_its_type": call(
        "torch._tensor",
        "_rebuild_from_type_v2",
        named("torch", "FloatTensor"),
        named("torch", "Tensor"),
        b"(" + _THOUSAND + b"t",
        b"}",
    ),
    "tensor_over_a_new_tensor": _NEW_TENSOR
    + setting(b"(" + _NEW_TENSOR + b"K\0(" + _THOUSAND + b"t(K\x01tt"),
    "tensor_over_a_new_storage": _NEW_TENSOR
    + setting(b"(" + call("torch.storage", "UntypedStorage") + b"K\0(" + _THOUSAND + b"t(K\x01tt"),
    "tensor_over_a_new_parameter": _NEW_TENSOR
    + setting(b"(" + new("torch.nn.parameter", "Parameter") + b"K\0(" + _THOUSAND + b"t(K\x01tt"),
    "parameter_over_a_new_parameter": new("torch.nn.parameter", "Parameter")
    + setting(b"(" + new("torch.nn.parameter", "Parameter") + b"K\0(" + _THOUSAND + b"t(K\x01tt"),
    "tensor_over_a_converted_one": tensor()
    + setting(
        b"("
        + call(
            "torch._utils",
            "_rebuild_device_tensor_from_cpu_tensor",
            tensor(),
            named("torch", "float64"),
            text("cpu"),
            b"\x89",
        )
        + b"K\0("
        + _THOUSAND
        + b"t(K\x01tt"
    ),
    "loaded_tensor_over_a_new_storage": tensor()
    + setting(b"(" + call("torch.storage", "UntypedStorage") + b"K\0(" + _THOUSAND + b"t(K\x01tt"),
}
# A few bytes that want gigabytes, or hours: through functions that a checkpoint may call, with
# arguments that none has.
EXPENSIVE = {
    "bytes_from_a_number": call("__builtin__", "bytearray", long1(1 << 33)),
    "bytes_by_the_type": call(
        "torch._tensor",
        "_rebuild_from_type_v2",
        named("__builtin__", "bytearray"),
        named("torch", "Tensor"),
        b"(" + long1(1 << 33) + b"t",
        b"}",
    ),
    "slow_codec": call(
        "_codecs", "encode", text("".join(map(chr, range(0x4E00, 0x9E00))) * 8), text("punycode")
    ),
    "copy_of_an_endless_tensor": call(
        "torch._utils",
        "_rebuild_device_tensor_from_cpu_tensor",
        _ENDLESS,
        named("torch", "float64"),
        text("cpu"),
        b"\x89",
    ),
    "codec_to_be_imported": call("_codecs", "encode", text("a"), text("no_such_codec")),
} | {
    f"{name}_of_an_endless_tensor": call(module, name, _ENDLESS)
    for module, name in (
        ("__builtin__", "set"),
        ("__builtin__", "bytearray"),
        ("collections", "Counter"),
        ("collections", "OrderedDict"),
        ("torch", "Size"),
        ("torch", "FloatTensor"),
    )
}
# CVE-2026-24747: SETITEM(S) and APPEND(S) write wherever the index says.
WRITES = {
    "setitem_on_a_tensor": tensor() + b"K\x00K\x07s",
    "setitems_on_a_tensor": tensor() + b"(K\x00K\x07K\x01K\x08u",
    "setitem_far_outside": tensor() + long1(1 << 40) + b"K\x07s",
    "setitem_on_a_parameter": call("torch._utils", "_rebuild_parameter", tensor(), b"\x88", b"}")
    + b"K\x00K\x07s",
    "setitem_on_a_list": b"]K\x01aK\x00K\x07s",
    "setitem_on_a_tuple": b"K\x01\x85K\x00K\x07s",
    "setitem_on_none": b"NK\x00K\x07s",
    "setitem_on_a_storage": pid() + b"K\x00K\x07s",
    "setitems_on_a_storage": pid() + b"(K\x00K\x07u",
    "setitem_on_bytes": call("__builtin__", "bytearray") + b"K\x00K\x07s",
    "setitem_on_a_class": named("collections", "OrderedDict") + b"K\x00K\x07s",
    "append_to_a_dict": b"}K\x01a",
    "append_to_a_tensor": tensor() + b"K\x01a",
    "append_to_a_storage": pid() + b"K\x01a",
    "append_to_bytes": call("__builtin__", "bytearray") + b"K\x01a",
    "appends_to_a_tuple": b")(K\x01K\x02e",
    "additems": b"\x8f(K\x01\x90",
}
# They say of a storage what its record is not (12 bytes).
SIZES = {
    "storage_too_long": tensor(pid(numel=_THOUSAND), size=_THOUSAND),
    "storage_too_short": tensor(pid(numel=b"K\x01"), size=b"K\x01"),
    "storage_of_other_width": tensor(pid(dtype="DoubleStorage")),
    "storage_2_62": tensor(pid(numel=long1(1 << 62))),
    "storage_2_64": tensor(pid(numel=long1(1 << 64))),
    "storage_negative": tensor(pid(numel=b"J\xff\xff\xff\xff")),
    "storage_of_text": tensor(pid(numel=text("3"))),
    "storage_of_a_fraction": tensor(pid(numel=real(3.0))),
    "storage_of_none": tensor(pid(numel=b"N")),
    "tensor_longer_than_its_storage": tensor(size=_THOUSAND),
    "offset_outside": tensor(offset=b"K\x09"),
    "offset_negative": tensor(offset=b"J\xff\xff\xff\xff"),
    "offset_2_63": tensor(offset=long1((1 << 63) - 1)),
    "size_negative": tensor(size=b"J\xff\xff\xff\xff"),
    "size_2_63": tensor(size=long1(1 << 63)),
    "size_of_text": tensor(size=text("3")),
    "stride_negative": tensor(stride=b"J\xff\xff\xff\xff"),
    "stride_outside": tensor(stride=_THOUSAND),
    "stride_that_overflows": tensor(stride=long1((1 << 63) - 1)),
    "sizes_that_overflow": tensor(size=long1(1 << 32) + long1(1 << 32), stride=b"K\x00K\x00"),
    "sizes_that_overflow_to_3": tensor(
        size=long1(1 << 62) + b"K\x04" + b"K\x03", stride=b"K\x01K\x01K\x01"
    ),
    "fewer_strides": tensor(size=b"K\x01K\x01"),
    "more_strides": tensor(stride=b"K\x01K\x01"),
    "record_that_is_not_there": tensor(pid(key="7")),
    "record_that_climbs": tensor(pid(key="../data.pkl")),
    "record_with_a_nul": tensor(pid(key="0\0")),
    "storage_of_no_type": tensor(pid(dtype="NoStorage")),
    "storage_of_a_tensor_type": tensor(pid(dtype="FloatTensor")),
    "two_claims_on_one_record": b"(" + tensor() + tensor(pid(numel=_THOUSAND)) + b"t",
    "tensor_without_arguments": call("torch._utils", "_rebuild_tensor_v2"),
    "tensor_of_too_many_arguments": call("torch._utils", "_rebuild_tensor_v2", pid(), b"K\0" * 20),
    "tensor_of_a_dict": tensor(b"}"),
    "tensor_of_a_tensor": tensor(tensor()),
    "size_that_is_a_number": call(
        "torch._utils", "_rebuild_tensor_v2", pid(), b"K\0", b"K\x03", b"K\x01", b"\x89", b"}"
    ),
    "parameter_of_text": call("torch._utils", "_rebuild_parameter", SYSTEM, b"\x89", b"}"),
    "quantized_over_floats": call(
        "torch._utils",
        "_rebuild_qtensor",
        pid(),
        b"K\0(K\x03t(K\x01t",
        b"(" + named("torch", "per_tensor_affine") + real(1.0) + b"K\0t",
        b"\x89",
        ORDERED_DICT,
    ),
    "persid_no_tuple": text("0") + b"Q",
    "persid_number": b"K\x07Q",
    "persid_none": b"NQ",
    "persid_list": b"](" + text("storage") + b"eQ",
    "persid_empty": b")Q",
    "persid_too_short": b"(" + text("storage") + b"tQ",
    "persid_too_long": pid()[:-2] + b"K\x01tQ",
    "persid_of_a_persid": pid() + b"Q",
    "persid_of_another_kind": b"(" + text("module") + b"K\x01K\x02K\x03K\x04tQ",
    "persid_with_a_function": b"("
    + text("storage")
    + _OS_SYSTEM
    + text("0")
    + text("cpu")
    + b"K\x03tQ",
    "persid_with_a_number_as_key": b"("
    + text("storage")
    + named("torch", "FloatStorage")
    + b"K\0"
    + text("cpu")
    + b"K\x03tQ",
    "device_out_of_range": call("torch", "device", text("cuda:99999999999")),
    "device_of_nowhere": call("torch", "device", text("nowhere")),
}
# They are no pickle, or cost more than their bytes.
BROKEN = {
    "nested_100_000_deep": b"]" * 100_000 + b"a" * 99_999,
    "dicts_nested_deep": b"}" + b"K\x01}" * 100_000 + b"s" * 100_000,
    "tuples_nested_deep": b")" + b"\x85" * 100_000,
    "tuples_that_are_a_key": b"}" + b")" + b"\x85" * 100_000 + b"K\x01s",
    "key_that_doubles": b"})q\0"
    + b"".join(b"h%c\x86q%c" % (n, n + 1) for n in range(60))
    + b"K\x01s",
    "marks": b"(" * 100_000,
    "text_of_4_gb": b"X\xff\xff\xff\xff",
    "text_of_2_63": b"\x8d" + b"\xff" * 7 + b"\x7f",
    "bytes_of_4_gb": b"B\xff\xff\xff\xff",
    "bytes_of_2_63": b"\x8e" + b"\xff" * 7 + b"\x7f",
    "bytearray_of_2_63": b"\x96" + b"\xff" * 7 + b"\x7f",
    "string_of_2_gb": b"T\xff\xff\xff\x7f",
    "string_of_negative_length": b"T\xff\xff\xff\xff",
    "long_of_2_gb": b"\x8b\xff\xff\xff\x7f",
    "number_of_a_million_digits": b"L" + b"9" * 1_000_000 + b"L\n",
    "memo_far_away": b"Nr\xff\xff\xff\xffj\xfe\xff\xff\xff",
    "memo_in_text": b"Np99999999\n",
    "memo_never_put": b"h\x09",
    "frame_too_long": b"\x95" + b"\xff" * 8,
    "stack_empty": b"0",
    "append_to_nothing": b"a",
    "tuple_without_mark": b"t",
    "mark_as_a_value": b"(.",
    "reduce_of_nothing": b"R",
    "build_of_nothing": b"Nb",
    "odd_setitems": b"}(K\x01u",
    "unhashable_key": b"}]K\x01s",
    "text_not_utf8": b"X\x02\0\0\0\xff\xfe",
    "name_not_utf8": b"c\xff\xfe\nx\n",
    "name_without_end": b"cos\nsystem",
    "unknown_opcode": b"\xff",
    "nothing": b"",
}
WHOLE = {
    "bytes_after_stop": program(tensor()) + b"cos\nsystem\n",
    "second_pickle": program(b"N") + program(call("os", "system", SYSTEM)),
    "zeros_after_stop": program(tensor()) + bytes(64),
    "no_stop": b"\x80\x02N",
    "no_protocol": b"",
    "protocol_9": b"\x80\x09N.",
    "protocol_twice": b"\x80\x02\x80\x09N.",
    "zip_in_the_pickle": b"PK\3\4" + bytes(60),
    "real_reduce": pickle.dumps(
        type("E", (), {"__reduce__": lambda _: (os.system, (COMMAND,))})(), 2
    ),
} | {
    f"real_reduce_of_protocol_{protocol}": pickle.dumps(
        type("E", (), {"__reduce__": lambda _: (os.system, (COMMAND,))})(), protocol
    )
    for protocol in (0, 1, 3, 4, 5)
}


def _cut_off() -> dict[str, bytes]:
    import torch

    whole = data_pkl(torch_bytes({"w": torch.ones(3)}))
    return {f"cut_{n}_bytes_short": whole[:-n] for n in (1, 2, 20, len(whole) - 1)}


WHOLE |= _cut_off()
# Where the rules allow every part, and yet no object comes of it, the file is bad, not unsafe.
NOT_BUILT = {
    "module_split_elsewhere",
    "type_from_a_string",
    "build_on_a_tensor",
    "build_with_setstate",
    "build_with_slots",
    *GROWTHS,
    *UNFILLED,
    *EXPENSIVE,
    *SIZES,
}
GROUPS = (CALLS, GROWTHS, UNFILLED, EXPENSIVE, WRITES, SIZES, BROKEN)
PICKLES = {
    name: program(body)
    for name, body in itertools.chain.from_iterable(group.items() for group in GROUPS)
} | WHOLE
assert len(PICKLES) == sum(map(len, (*GROUPS, WHOLE)))
