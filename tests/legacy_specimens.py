"""Kinds of files of torch before 1.6: those that older torch wrote, and those that nobody should load."""

from __future__ import annotations

import struct

from tests.faults.opcodes import ORDERED_DICT, call, long1, named, program, text
from tests.legacy_files import legacy_file, persistent_id, stored, view_of

SIX = struct.pack("<6f", *range(6))
# A matrix of two rows over six floats.
_SIZE, _STRIDE = b"K\x02K\x03\x86", b"K\x03K\x01\x86"
EMPTY_TENSOR = named("torch", "FloatTensor") + b")\x81"


def over_six(body: bytes, keys: tuple[str, ...] = ("1",)) -> bytes:
    """Return a file of six floats around the object of a pickle."""
    return legacy_file(program(body), keys, [stored(6, SIX)] * len(keys))


def rebuilt(storage: bytes, size: bytes = _SIZE, stride: bytes = _STRIDE) -> bytes:
    """Call what torch 0.2 and 0.3 rebuilt tensors with."""
    return (
        named("torch._utils", "_rebuild_tensor") + b"(" + storage + b"K\0" + size + stride + b"tR"
    )


def with_state(storage: bytes, size: bytes = _SIZE, stride: bytes = _STRIDE) -> bytes:
    """Make a tensor as torch 0.1 pickled it: an empty one, and its state."""
    return EMPTY_TENSOR + b"(" + storage + b"K\0" + size + stride + b"tb"


def parameter(state: bytes, make: bytes = b"R") -> bytes:
    """Make a parameter as torch before 0.4 pickled it: of a tensor, and its state."""
    tensor = rebuilt(persistent_id("1", 6))
    return named("torch.nn.parameter", "Parameter") + tensor + b"\x85" + make + state + b"b"


# What torch 0.1 to 1.5 wrote, and torch still loads.
OLD_FORMS = {
    "rebuilt_in_torch_0_3": over_six(rebuilt(persistent_id("1", 6))),
    "on_a_gpu_then": over_six(rebuilt(persistent_id("1", 6, module="torch.cuda"))),
    "view": over_six(
        rebuilt(persistent_id("1", 6, view_of("2", 2, 3)), b"K\x03\x85", b"K\x01\x85")
    ),
    "one_view_twice": over_six(
        b"]("
        + rebuilt(persistent_id("1", 6, view_of("2", 2, 3)), b"K\x03\x85", b"K\x01\x85") * 2
        + rebuilt(persistent_id("1", 6))
        + b"e"
    ),
    "tensor_with_a_state": over_six(with_state(persistent_id("1", 6))),
    "parameter_with_a_state": over_six(parameter(b"(\x88\x89" + ORDERED_DICT + b"t")),
    "parameter_without_hooks": over_six(parameter(b"(\x89\x89Nt", make=b"\x81")),
    "strings_of_python_2": legacy_file(
        program(b"}U\x01w" + rebuilt(persistent_id("1", 6).replace(text("1"), b"U\x011")) + b"s"),
        b"\x80\x02]U\x011a.",
        [stored(6, SIX)],
    ),
    "numbers_of_python_2": over_six(
        rebuilt(persistent_id("1", 6), b"\x8a\x01\x02\x8a\x01\x03\x86")
    ),
    "protocol_3": legacy_file(b"\x80\x03}.", pickle_protocol=3),
    "no_tensor": legacy_file(program(b"}")),
}

# Files in which sizes or keys do not agree, and what is said of them.
WRONG_SIZES = {
    "count_too_large": (
        legacy_file(program(rebuilt(persistent_id("1", 6))), ["1"], [stored(7, SIX)]),
        r"storage \"1\" at offset \d+: expected a count of 6 elements, found 7",
    ),
    "count_negative": (
        legacy_file(program(rebuilt(persistent_id("1", 6))), ["1"], [stored(-6, SIX)]),
        "expected a count of 6 elements, found -6",
    ),
    "file_too_short": (
        legacy_file(program(rebuilt(persistent_id("1", 600))), ["1"], [stored(600, SIX)]),
        "should end at byte .*, and the file has",
    ),
    "count_of_2_62": (
        legacy_file(program(rebuilt(persistent_id("1", 1 << 60))), ["1"], [stored(1 << 60, SIX)]),
        "should end at byte .*, and the file has",
    ),
    "key_that_is_not_listed": (
        legacy_file(program(rebuilt(persistent_id("1", 6)))),
        r"list of storage keys lacks \"1\"",
    ),
    "key_that_is_unknown": (
        over_six(rebuilt(persistent_id("1", 6)), ("1", "2")),
        r"does not refer to: \"2\"",
    ),
    "key_that_is_listed_twice": (
        over_six(rebuilt(persistent_id("1", 6)), ("1", "1")),
        r"has twice \"1\"",
    ),
    "keys_that_are_no_list": (
        legacy_file(program(rebuilt(persistent_id("1", 6))), program(text("1")), [stored(6, SIX)]),
        "storage keys are not a list of str",
    ),
    "keys_that_are_numbers": (
        legacy_file(program(rebuilt(persistent_id("1", 6))), program(b"]K\x01a"), [stored(6, SIX)]),
        "storage keys are not a list of str",
    ),
    "two_sizes_of_one_storage": (
        over_six(b"](" + rebuilt(persistent_id("1", 6)) + persistent_id("1", 7) + b"e"),
        r"storage \"1\" has 24 bytes in one place of the object and 28 in another",
    ),
    "magic": (legacy_file(program(b"}")).replace(b"\x8a\nl", b"\x8a\nm", 1), "not a checkpoint"),
    "protocol": (legacy_file(program(b"}"), protocol=1002), "protocol version is not 1001"),
}

# Pickles of objects over six floats that ask for more than they should.
REFUSED = {
    "view_outside": persistent_id("1", 6, view_of("2", 4, 3)),
    "view_negative": persistent_id("1", 6, view_of("2", -1, 3)),
    "view_that_overflows": persistent_id("1", 6, view_of("2", (1 << 63) - 1, (1 << 63) - 1)),
    "view_of_two_parts": persistent_id("1", 6, text("2") + b"K\0\x86"),
    "view_with_a_number_as_key": persistent_id("1", 6, b"K\x02K\0K\x03\x87"),
    "view_in_two_ways": b"]("
    + persistent_id("1", 6, view_of("2", 0, 3))
    + persistent_id("1", 6, view_of("2", 1, 3))
    + b"e",
    "view_with_the_key_of_its_storage": persistent_id("1", 6, view_of("1", 0, 3)),
    "storage_with_the_key_of_a_view": b"]("
    + persistent_id("1", 6, view_of("2", 0, 3))
    + persistent_id("2", 6)
    + b"e",
    "five_parts": persistent_id("1", 6, b""),
    "tensor_without_its_state": EMPTY_TENSOR,
    "tensor_that_waits_for_its_state": b"]("
    + EMPTY_TENSOR
    + b"q\1"
    + rebuilt(persistent_id("1", 6))
    + b"e",
    "two_that_wait_for_their_states": EMPTY_TENSOR + with_state(persistent_id("1", 6)) + b"\x86",
    "state_that_is_larger": with_state(
        persistent_id("1", 6), long1(1 << 30) + b"\x85", b"K\x01\x85"
    ),
    "state_over_itself": EMPTY_TENSOR + b"q\1(h\1K\0K\x09\x85K\x01\x85tb",
    "state_set_twice": with_state(persistent_id("1", 6))
    + b"("
    + persistent_id("1", 6)
    + b"K\0K\x06\x85K\x01\x85tb",
    # Six floats, seen a million million times, and copied.
    "copy_of_an_endless_tensor": call(
        "torch._utils",
        "_rebuild_sparse_tensor",
        b"N",
        with_state(persistent_id("1", 6), long1(1 << 40) + b"\x85", b"K\0\x85") + b"\x85",
    ),
    "parameter_over_a_storage": parameter(b"(" + persistent_id("1", 6) + b"K\0K\x09\x85K\x01\x85t"),
    "parameter_with_hooks": parameter(b"(\x88\x89}K\1K\2st"),
}
