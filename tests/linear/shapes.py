"""Small hostile files that grow: each in one way in which work could grow faster than the file.

A shape is a function of a number: it returns a pickle, or a file, of so many parts. All of them together
are a few bytes each, since much is shared: a pickle names an object again in two bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

from tests.faults.forgery import Entry, Forged, with_pickle
from tests.faults.opcodes import long1, named, pid, program, text

MODULUS = (1 << 61) - 1
_DEEPEST = 900
_HOOKS, _REBUILD, _PID, _SIZES, _STRIDES = range(5)
#: The first number of the memo that is free.
_FREE = 5


def number(value: int) -> bytes:
    """BININT, or LONG1 where it takes more."""
    return b"J" + struct.pack("<i", value) if -(1 << 31) <= value < 1 << 31 else long1(value)


def put(index: int) -> bytes:
    """LONG_BINPUT."""
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    """LONG_BINGET."""
    return b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<I", index)


def dict_of(items: Iterable[tuple[bytes, bytes]]) -> bytes:
    """EMPTY_DICT, MARK, the items, SETITEMS."""
    return b"}(" + b"".join(chain.from_iterable(items)) + b"u"


def list_of(items: Iterable[bytes]) -> bytes:
    """EMPTY_LIST, MARK, the items, APPENDS."""
    return b"](" + b"".join(items) + b"e"


def tuple_of(items: Iterable[bytes]) -> bytes:
    """MARK, the items, TUPLE."""
    return b"(" + b"".join(items) + b"t"


def nested(depth: int, key: bytes, inside: bytes) -> bytes:
    """Dicts of one item each, in one another."""
    return (b"}" + key) * depth + inside + b"s" * depth


def _prelude(numel: int) -> bytes:
    """A tensor over all of a storage, whose parts are put into the memo for others."""
    parts = [
        pid(numel=number(numel)) + put(_PID),
        number(0),
        tuple_of([number(numel)]) + put(_SIZES),
        tuple_of([number(1)]) + put(_STRIDES),
        b"\x89",
        named("collections", "OrderedDict") + b")R" + put(_HOOKS),
    ]
    return named("torch._utils", "_rebuild_tensor_v2") + put(_REBUILD) + tuple_of(parts) + b"R"


def view(
    offset: int = 0, size: bytes = b"", stride: bytes = b"", storage: bytes = get(_PID)
) -> bytes:
    """A tensor over the storage in the memo."""
    arguments = [storage, number(offset), size or get(_SIZES), stride or get(_STRIDES)]
    return get(_REBUILD) + tuple_of([*arguments, b"\x89", get(_HOOKS)]) + b"R"


def model(items: Iterable[tuple[bytes, bytes]], *, numel: int = 1) -> bytes:
    """A checkpoint with a state dict, metrics, and one storage."""
    state = dict_of([*items, (text("last"), view())])
    return dict_of(
        [
            (text("prelude"), _prelude(numel)),
            (text("model"), state),
            (text("metrics"), dict_of([(text("loss"), number(1))])),
        ]
    )


def with_storage(body: bytes, numel: int = 1) -> bytes:
    """The file around a pickle, with a storage of so many floats."""
    return with_pickle(program(body), ("data/0", bytes(4 * numel)))


def names(count: int) -> list[bytes]:
    return [text(f"w{n}") for n in range(count)]


# Each of about 10 bytes for each of `count`.


def _wide(count: int) -> bytes:
    return (
        model([], numel=1)[:-1] + text("wide") + list_of([number(n) for n in range(count)]) + b"u"
    )


def _root(items: Iterable[tuple[bytes, bytes]], numel: int = 1) -> bytes:
    """A checkpoint with more in it than a model."""
    return model([], numel=numel)[:-1] + b"".join(chain.from_iterable(items)) + b"u"


def _deep(count: int) -> bytes:
    """Many tensors below many long names."""
    depth = min(_DEEPEST, count // 4)
    leaves = list_of(view() for _ in range(count // 8))
    key = text("k" * (count // 2)) + put(_FREE)
    inside = nested(depth, get(_FREE), leaves)
    return _root([(text("deep"), b"}" + key + inside + b"s")])


def _deep_metrics(count: int) -> bytes:
    """Numbers at every depth, below many long names."""
    key = text("k" * count) + put(_FREE)
    depth = min(_DEEPEST, count // 8)
    levels = (b"}(" + text("n") + number(1) + get(_FREE)) * depth + b"}" + b"u" * depth
    return dict_of(
        [
            (text("prelude"), _prelude(1)),
            (text("metrics"), b"}(" + key + levels + text("loss") + number(1) + b"u"),
            (text("model"), dict_of([(text("w"), view())])),
        ]
    )


def _one_leaf_many_times(count: int) -> bytes:
    leaf = list_of([view() + put(_FREE), *[get(_FREE)] * count])
    return _root([(text("same"), nested(min(_DEEPEST, count // 8), text("key"), leaf))])


def _shared_lists(count: int) -> bytes:
    """Lists of the same list, and that of many things."""
    shared = list_of([b"]" for _ in range(count)]) + put(_FREE)
    return _root(
        [(text("shared"), list_of([shared, *(b"]" + get(_FREE) + b"a" for _ in range(count))]))]
    )


def _shared_state_dicts(count: int) -> bytes:
    """One large state dict under many keys, of one that is no optimizer's, and one that is."""
    state = dict_of((name, get(_FREE + 1)) for name in names(count))
    keys = [text(f"k{n}") for n in range(count)]
    return _root(
        [
            (text("a"), list_of([view() + put(_FREE + 1), state + put(_FREE)])),
            *((key, get(_FREE)) for key in keys),
        ]
    )


def _shared_optimizers(count: int) -> bytes:
    optimizer = dict_of([(text("state"), b"}"), (text("param_groups"), b"]")]) + put(_FREE + 1)
    all_of_them = list_of([optimizer, *[get(_FREE + 1)] * count]) + put(_FREE)
    keys = [text(f"k{n}") for n in range(count)]
    return _root([(text("a"), all_of_them), *((key, get(_FREE)) for key in keys)])


def _shared_parts(count: int) -> bytes:
    """Tensors that only torch can build, all of the same large list."""
    shared = list_of(number(n) for n in range(count)) + put(_FREE)
    rebuild = named("torch._utils", "_rebuild_wrapper_subclass") + put(_FREE + 1)
    tensors = ((name, get(_FREE + 1) + b"(" + get(_FREE) + b"tR") for name in names(count))
    first = list_of([shared, rebuild])
    return dict_of([(text("first"), first), (text("model"), dict_of(tensors))])


def _long_names(count: int) -> bytes:
    return model((text(f"{n}." + "k" * count), view()) for n in range(8))


def _same_names(count: int) -> bytes:
    """Names that read the same once they are cut."""
    key = text("k" * 400) + put(_FREE)
    return _root(
        [
            (
                text("a"),
                b"}"
                + key
                + list_of(b"}" + get(_FREE) + view() + b"s" for _ in range(count))
                + b"s",
            )
        ]
    )


def _equal_hashes(count: int) -> bytes:
    return _root([(text("keys"), dict_of((long1(n * MODULUS), b"N") for n in range(count)))])


def _heavy_keys(count: int) -> bytes:
    """Tuples that take long to hash, again and again."""
    key = tuple_of([tuple_of(number(n) for n in range(count))]) + put(_FREE)
    dicts = list_of(b"}" + get(_FREE) + b"Ns" for _ in range(count))
    return _root([(text("key"), b"}" + key + b"Ns"), (text("dicts"), dicts)])


def _views(count: int) -> bytes:
    """Overlapping views of one storage, each nearly all of it."""
    numel = 4 * count
    stride = tuple_of([number(1)]) + put(_FREE)
    first = text("first"), list_of([stride])
    sizes = (tuple_of([number(numel - n)]) for n in range(count))
    tensors = (
        (name, view(n, size, get(_FREE)))
        for n, (name, size) in enumerate(zip(names(count), sizes, strict=True))
    )
    return dict_of([(text("p"), _prelude(numel)), first, (text("model"), dict_of(tensors))])


def _columns(count: int) -> bytes:
    """Strided views of one storage that have no element in common, each twice."""
    side = 2 * int(count**0.5)
    size, less = (tuple_of([number(n)]) for n in (side, side - 1))
    stride = tuple_of([number(side)])
    memo = list_of([size + put(_FREE), less + put(_FREE + 1), stride + put(_FREE + 2)])
    tensors = (
        (text(f"w{n}.{part}"), view(n, get(_FREE + part), get(_FREE + 2)))
        for n in range(side)
        for part in range(2)
    )
    return dict_of(
        [(text("p"), _prelude(side * side)), (text("m"), memo), (text("model"), dict_of(tensors))]
    )


def _expanded(count: int) -> bytes:
    """Tensors of very many elements over a few bytes."""
    size = tuple_of([number(1 << 40)]) + put(_FREE)
    stride = tuple_of([number(0)]) + put(_FREE + 1)
    memo = text("first"), list_of([size, stride])
    tensors = ((name, view(0, get(_FREE), get(_FREE + 1))) for name in names(count))
    return dict_of([(text("p"), _prelude(1)), memo, (text("model"), dict_of(tensors))])


def _windows(count: int) -> bytes:
    """Windows that slide over a storage, one for each of its elements."""
    numel = 2 * count
    size, stride = tuple_of([number(count), number(count)]), tuple_of([number(1), number(1)])
    tensors = [
        (text("windows"), view(0, size, stride)),
        (text("part"), view(0, tuple_of([number(3)]))),
    ]
    return model(tensors, numel=numel)


def _views_of_one_hash(count: int) -> bytes:
    """Shapes with strides that nobody uses, and that hash alike."""
    ones = tuple_of([number(1)] * 16) + put(_FREE)
    first = long1(5) + put(_FREE + 1)
    second = long1(5 + MODULUS) + put(_FREE + 2)
    memo = text("first"), list_of([ones, first, second])
    tensors = (
        (name, view(0, get(_FREE), tuple_of(get(_FREE + 1 + (n >> bit & 1)) for bit in range(16))))
        for n, name in enumerate(names(count))
    )
    return dict_of([(text("p"), _prelude(1)), memo, (text("model"), dict_of(tensors))])


PICKLES: dict[str, tuple[Callable[[int], bytes], int]] = {
    # With how many parts they begin, and grow to four times as many.
    "a wide list": (_wide, 2_000),
    "deep and long names": (_deep, 4_000),
    "deep metrics": (_deep_metrics, 4_000),
    "one leaf many times": (_one_leaf_many_times, 8_000),
    "shared lists": (_shared_lists, 4_000),
    "shared state dicts": (_shared_state_dicts, 2_000),
    "shared optimizers": (_shared_optimizers, 2_000),
    "shared parts": (_shared_parts, 4_000),
    "long names": (_long_names, 4_000),
    "names that are cut": (_same_names, 1_000),
    "equal hashes": (_equal_hashes, 2_000),
    "keys that are heavy": (_heavy_keys, 1_000),
    "overlapping views": (_views, 1_000),
    "columns": (_columns, 10_000),
    "expanded tensors": (_expanded, 1_000),
    "windows": (_windows, 4_000),
    "views of one hash": (_views_of_one_hash, 1_000),
}


def _numel_of(body: bytes) -> int:
    """Return the elements of the storage that a prelude describes."""
    at = body.index(text("cpu")) + len(text("cpu"))
    return int(struct.unpack_from("<i", body, at + 1)[0])


def pickled(make: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """Return what makes the file around a pickle."""

    def file(count: int) -> bytes:
        body = make(count)
        numel = _numel_of(body) if text("cpu") in body else 1
        return with_storage(body, numel)

    return file


# Archives.


def _storages(count: int, nbytes: int = 7) -> bytes:
    """Storages of 7 bytes, which count as one element of 4 bytes and are as long as may be."""
    tensors = []
    for n, name in enumerate(names(count)):
        storage = pid(key=str(n), numel=number(1))
        tensors.append((name, view(0, storage=storage)))
    body = dict_of([(text("p"), _prelude(1)), (text("model"), dict_of(tensors))])
    return with_pickle(program(body), *((f"data/{n}", bytes(nbytes)) for n in range(count)))


def _short_storages(count: int) -> bytes:
    return _storages(count, 3)


def _unused_records(count: int) -> bytes:
    records = [Entry(f"a/data/{n}", b"x") for n in range(1, count)]
    return Forged(
        [Entry("a/data.pkl", program(model([]))), Entry("a/data/0", bytes(4)), *records]
    ).bytes()


def _long_record_names(count: int) -> bytes:
    records = [Entry(f"a/data/{n}{'k' * 2_000}", b"x") for n in range(count // 100)]
    return Forged(
        [Entry("a/data.pkl", program(model([]))), Entry("a/data/0", bytes(4)), *records]
    ).bytes()


def _no_directory(count: int) -> bytes:
    archive = _storages(count, 4)
    return archive[: archive.rindex(b"PK\1\2")]


def _many_headers(count: int) -> bytes:
    """A payload that is full of headers, each of which says that it is of a long record."""
    header = Forged([Entry("a/data/1", local_nbytes=1 << 20)]).bytes()[:38]
    body = program(model([]))
    return Forged([Entry("a/data.pkl", body), Entry("a/data/0", header * count)]).bytes()[:-30]


def _many_descriptors(count: int) -> bytes:
    body = program(model([]))
    descriptors = b"".join(b"PK\7\10" + struct.pack("<III", n, n, n) for n in range(count))
    return Forged([Entry("a/data.pkl", body), Entry("a/data/0", descriptors)]).bytes()[:-30]


ARCHIVES: dict[str, tuple[Callable[[int], bytes], int]] = {
    "storages longer than said": (_storages, 500),
    "storages shorter than said": (_short_storages, 500),
    "records that are not used": (_unused_records, 1_000),
    "long names of records": (_long_record_names, 1_000),
    "no directory": (_no_directory, 500),
    "headers in a payload": (_many_headers, 1_000),
    "descriptors in a payload": (_many_descriptors, 2_000),
}
FILES: dict[str, tuple[Callable[[int], bytes], int]] = {
    **{name: (pickled(make), count) for name, (make, count) in PICKLES.items()},
    **ARCHIVES,
}

# Directories.


def _steps(directory: Path, count: int) -> None:
    """Steps of nanochat's naming, with the same small model each."""
    data = with_storage(model([]))
    for step in range(1, count + 1):
        (directory / f"model_{step:06d}.pt").write_bytes(data)
        (directory / f"meta_{step:06d}.json").write_text(json.dumps({"step": step, "loss": 1.0}))


def _ranks(directory: Path, count: int) -> None:
    """One step of many ranks."""
    data = with_storage(model([]))
    (directory / "model_000001.pt").write_bytes(data)
    (directory / "meta_000001.json").write_text(json.dumps({"step": 1, "loss": 1.0}))
    for rank in range(count):
        (directory / f"optim_000001_rank{rank}.pt").write_bytes(data)


def _managed(directory: Path, count: int) -> None:
    data = with_storage(model([]))
    for step in range(1, count + 1):
        (directory / f"checkpoint_epoch0001_step{step:08d}.pt").write_bytes(data)


def _temporaries(directory: Path, count: int) -> None:
    (directory / "model.pt").write_bytes(with_storage(model([])))
    for n in range(count):
        (directory / f".fastckpt-999999-{n}.tmp").write_bytes(b"x")
        (directory / f".fastckpt-{n:014d}-model_{n:06d}.pt.kept").write_bytes(b"x")


def _nested_meta(directory: Path, count: int) -> None:
    """A meta whose dicts are nested, of long names."""
    (directory / "model_000001.pt").write_bytes(with_storage(model([])))
    depth = min(_DEEPEST, count)
    key = "k" * (8 * count)
    document = f'{{"{key}":' * min(depth, 100) + "1" + "}" * min(depth, 100)
    wide = json.dumps({f"m{n}": {"loss": n} for n in range(count)})
    (directory / "meta_000001.json").write_text(f'{{"deep": {document}, "wide": {wide}}}')


DIRECTORIES: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "steps": (_steps, 160),
    "ranks": (_ranks, 160),
    "checkpoints of a manager": (_managed, 160),
    "temporary files": (_temporaries, 160),
    "nested metas": (_nested_meta, 400),
}


def long_to_build(count: int) -> bytes:
    """A sound checkpoint that takes long to decode and to build: a list and a dict of numbers."""
    numbers = list_of([b"K\1" * count])
    numbered = dict_of((number(n), b"N") for n in range(count // 4))
    return with_storage(_root([(text("list"), numbers), (text("dict"), numbered)]))
