"""Pickles that call, build or claim what no checkpoint does: refused, and nothing has run."""

from __future__ import annotations

import contextlib
import copyreg
import io
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults.forgery import with_pickle
from tests.faults.malicious_pickles import (
    CANARY,
    EXPENSIVE,
    GROWTHS,
    HARMLESS,
    NOT_BUILT,
    PICKLES,
    RECORDS,
    UNFILLED,
    WRITES,
)
from tests.faults.opcodes import program, tensor, text
from tests.faults.watch import Refusal, Sighting, refusal_by, watched
from tests.legacy_files import legacy_file, stored, tar_file
from tests.specimens import assert_same, quiet
from torch._subclasses.fake_tensor import FakeTensorMode

import fastckpt

_STEP = 1
# Refusing costs next to nothing; the largest pickles here have a megabyte.
_GROWN_MAX_NBYTES = 64 << 20
_TYPED = (fastckpt.UnsafePickleError, fastckpt.FormatError)


@pytest.fixture(scope="module", autouse=True)
def everything_is_imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the modules that loads import be there: the watch is for those of the pickles."""
    for number, body in enumerate((b"cos\nsystem\n", tensor(), b"ccollections\nCounter\n)R")):
        directory = tmp_path_factory.mktemp(f"imports{number}")
        for _, work in ways_in(directory, with_pickle(program(body), *RECORDS)).values():
            with quiet(), contextlib.suppress(fastckpt.CheckpointError):
                work()
        fastckpt.verify(directory)
    yield
    assert not os.path.exists(CANARY)


def refusals(ways: dict[str, tuple[str, Callable[[], object]]]) -> dict[str, Any]:
    with quiet():
        return {way: refusal_by(work) for way, (_, work) in ways.items()}


def step_around(archive: bytes, directory: Path, *, shard: bool) -> Path:
    """Write a step as nanochat does, with the archive as its shard or as its model."""
    directory.mkdir()
    model, optimizer = directory / "model_000001.pt", directory / "optim_000001_rank0.pt"
    good, bad = (model, optimizer) if shard else (optimizer, model)
    torch.save({"w": torch.ones(3)}, good)
    bad.write_bytes(archive)
    (directory / "meta_000001.json").write_text(json.dumps({"step": _STEP}))
    return bad


def ways_in(directory: Path, archive: bytes) -> dict[str, tuple[str, Callable[[], object]]]:
    """Return each way to load an archive: the file that its refusal has to name, and the call."""
    path = directory / "malicious.pt"
    path.write_bytes(archive)
    as_model, as_shard = directory / "as_model", directory / "as_shard"
    model = step_around(archive, as_model, shard=False)
    shard = step_around(archive, as_shard, shard=True)
    return {
        "load": (str(path), lambda: fastckpt.load(path)),
        "load, mapped": (str(path), lambda: fastckpt.load(path, mmap=True)),
        "load, unchecked": (str(path), lambda: fastckpt.load(path, verify=False)),
        "load, to no device": (str(path), lambda: fastckpt.load(path, map_location="meta")),
        "load, of a file object": ("<BytesIO>", lambda: fastckpt.load(io.BytesIO(archive))),
        "load_checkpoint": (str(model), lambda: fastckpt.load_checkpoint(as_model, _STEP, "cpu")),
        "load_checkpoint, shard": (
            str(shard),
            lambda: fastckpt.load_checkpoint(as_shard, _STEP, "cpu", load_optimizer=True),
        ),
    }


def assert_nothing_has_run(sighting: Sighting) -> None:
    assert sighting.events == []
    assert not os.path.exists(CANARY)


def test_the_tensor_without_lies_loads(tmp_path: Path) -> None:
    expected = torch.tensor([1.0, 2.0, 3.0])
    for way, (_, work) in ways_in(tmp_path, with_pickle(program(tensor()), *RECORDS)).items():
        found: Any = work()
        if way.startswith("load_checkpoint"):
            found = found[1] if "shard" in way else found[0]
        assert found.device.type == ("meta" if "device" in way else "cpu")
        if found.device.type == "cpu":
            assert torch.equal(found, expected), way


def test_the_watch_sees_what_runs(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(with_pickle(PICKLES["reduce"]))
    try:
        sighting = watched(lambda: fastckpt.load(path, weights_only=False), tmp_path)
        assert any(event.startswith("os.system") for event in sighting.events)
        assert any(event.startswith("pickle.find_class") for event in sighting.events)
        assert os.path.exists(CANARY)
    finally:
        os.unlink(CANARY)


def test_the_watch_sees_imports_files_and_memory(tmp_path: Path) -> None:
    def work() -> None:
        import this  # noqa: F401

        with open("/etc/hostname", "rb"):
            bytearray(200 << 20)

    sighting = watched(work, tmp_path)
    assert any(event.startswith("import ('this'") for event in sighting.events)
    assert any(event.startswith("open ('/etc/hostname'") for event in sighting.events)
    assert sighting.grown_nbytes > _GROWN_MAX_NBYTES


@pytest.mark.parametrize("name", PICKLES)
def test_refused_and_nothing_has_run(name: str, tmp_path: Path) -> None:
    ways = ways_in(tmp_path, with_pickle(PICKLES[name], *RECORDS))
    if name in GROWTHS:  # on the meta device there is no memory to see
        del ways["load, to no device"]
    sighting = watched(lambda: refusals(ways), tmp_path)
    expected = _TYPED if name in NOT_BUILT else (fastckpt.UnsafePickleError,)
    for way, (path, _) in ways.items():
        found = sighting.value[way]
        assert found is not None, f"{way}: it was loaded"
        refusal = Refusal(**found)
        assert refusal.is_a(*expected), f"{way}: {refusal}"
        assert path in refusal.words, way
    assert_nothing_has_run(sighting)
    assert sighting.grown_nbytes < _GROWN_MAX_NBYTES


@pytest.mark.parametrize("name", PICKLES)
def test_the_old_format_is_no_way_round(name: str, tmp_path: Path) -> None:
    """The pickle of the object is walked as data.pkl is, and what it says of sizes is compared."""
    ways = ways_in(tmp_path, as_legacy_file(PICKLES[name]))
    # It cannot be mapped, and on the meta device there is no memory to see.
    del ways["load, mapped"], ways["load, to no device"]
    sighting = watched(lambda: refusals(ways), tmp_path)
    for way, (path, _) in ways.items():
        found = sighting.value[way]
        assert found is not None, f"{way}: it was loaded"
        refusal = Refusal(**found)
        assert refusal.is_a(*_TYPED), f"{way}: {refusal}"
        assert path in refusal.words, way
    assert_nothing_has_run(sighting)
    assert sighting.grown_nbytes < _GROWN_MAX_NBYTES


@pytest.mark.parametrize("part", ["protocol", "system_info", "keys"])
@pytest.mark.parametrize("name", [*EXPENSIVE, *WRITES, *UNFILLED, "popen", "text_of_4_gb"])
def test_the_smaller_pickles_of_the_old_format_are_walked_too(
    name: str, part: str, tmp_path: Path
) -> None:
    path = tmp_path / "old.pt"
    parts: dict[str, Any] = {part: PICKLES[name]}
    path.write_bytes(legacy_file(program(b"}"), **parts))
    sighting = watched(lambda: refusal_by(lambda: fastckpt.load(path)), tmp_path)
    refused = fastckpt.FormatError if name == "text_of_4_gb" else fastckpt.UnsafePickleError
    assert Refusal(**sighting.value).is_a(refused), sighting.value
    assert_nothing_has_run(sighting)
    assert sighting.grown_nbytes < _GROWN_MAX_NBYTES


@pytest.mark.parametrize("form", ["archive", "legacy"])
@pytest.mark.parametrize("mode", [FakeTensorMode, torch.serialization.skip_data])
@pytest.mark.parametrize("name", ["reduce", *WRITES])
def test_modes_without_data_are_no_way_round(
    name: str, mode: Callable[[], Any], form: str, tmp_path: Path
) -> None:
    make = as_legacy_file if form == "legacy" else lambda p: with_pickle(p, *RECORDS)
    path = tmp_path / "malicious.pt"
    path.write_bytes(make(PICKLES[name]))
    with mode(), quiet():
        sighting = watched(lambda: refusal_by(lambda: fastckpt.load(path)), tmp_path)
    assert Refusal(**sighting.value).is_a(fastckpt.UnsafePickleError), sighting.value
    assert_nothing_has_run(sighting)


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_ones_give_what_torch_gives(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(with_pickle(program(HARMLESS[name])))
    found = fastckpt.load(path)
    expected = torch.load(path)
    assert_same(found, expected)
    assert vars(found) == vars(expected)
    assert_nothing_has_run(watched(lambda: type(fastckpt.load(path)).__name__, tmp_path))


def test_verify_runs_nothing_either(tmp_path: Path) -> None:
    """The bytes are those that were written, so the file is good; one damaged tensor is named."""
    paths = {}
    for name, body in PICKLES.items():
        data = bytearray(with_pickle(body, *RECORDS))
        good, bad = tmp_path / f"{name}.pt", tmp_path / f"{name}-damaged.pt"
        good.write_bytes(data)
        data[data.index(RECORDS[0][1])] ^= 1
        bad.write_bytes(data)
        paths[name] = (good, bad)

    def damaged_records(path: Path) -> list[str | None]:
        return [damage.record for damage in fastckpt.verify(path).damages]

    sighting = watched(
        lambda: {
            name: (damaged_records(good), damaged_records(bad))
            for name, (good, bad) in paths.items()
        },
        tmp_path,
    )
    assert sighting.value == {name: [[], ["data/0"]] for name in PICKLES}
    assert_nothing_has_run(sighting)
    assert sighting.grown_nbytes < _GROWN_MAX_NBYTES


def test_extensions_that_are_registered_are_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(with_pickle(program(b"\x82\xf0(" + text(f"touch {CANARY}") + b"tR")))

    def work() -> object:
        # Registered in the child only.
        copyreg.add_extension("os", "system", 0xF0)
        return refusal_by(lambda: fastckpt.load(path))

    sighting = watched(work, tmp_path)
    assert Refusal(**sighting.value).is_a(fastckpt.UnsafePickleError)
    assert_nothing_has_run(sighting)


@pytest.mark.parametrize("width", [2, 200])
def test_memo_bombs_are_not_expanded(width: int, tmp_path: Path) -> None:
    """Thirty lists, each of which holds the one before many times: 200**30 items, if copied."""
    body = b"]q\0"
    for number in range(30):
        again = b"h" + bytes([number])
        body = b"](" + body + again * (width - 1) + b"eq" + bytes([number + 1])
    path = tmp_path / "bomb.pt"
    path.write_bytes(with_pickle(program(body)))
    sighting = watched(lambda: len(fastckpt.load(path)), tmp_path)
    assert sighting.value == width
    assert sighting.grown_nbytes < _GROWN_MAX_NBYTES
    found = fastckpt.load(path)
    for _ in range(30):
        assert len(found) == width
        assert all(item is found[0] for item in found)
        found = found[0]
    assert found == []


@pytest.mark.parametrize(("container", "put"), [(b"]", b"a"), (b"}", b"s")])
def test_what_contains_itself_is_built_once(container: bytes, put: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    key = b"K\0" if put == b"s" else b""
    path.write_bytes(with_pickle(program(container + b"q\0" + key + b"h\0" + put)))
    found = fastckpt.load(path)
    assert len(found) == 1
    assert found[0] is found


def as_legacy_file(pickled: bytes) -> bytes:
    """Put a pickle into a file of torch before 1.6, where persistent ids have one part more."""
    records = {name.removeprefix("data/"): data for name, data in RECORDS}
    keys = [key for key in records if text(key) in pickled]
    counted = [stored(len(records[key]) // 4, records[key]) for key in keys]
    return legacy_file(pickled.replace(b"tQ", b"NtQ"), keys, counted)


OLD_FILES: dict[str, Callable[[bytes], bytes]] = {
    **{f"tar_{name}": lambda p, name=name: tar_file({name: p}) for name in ("pickle", "tensors")},  # type: ignore[misc]
    "tar_storages": lambda p: tar_file({"storages": p}),
    "legacy_protocol": lambda p: legacy_file(program(b"}"), protocol=p),
    "legacy_system": lambda p: legacy_file(program(b"}"), system_info=p),
    "legacy_object": legacy_file,
}


@pytest.mark.parametrize("name", ["reduce", "popen", "inst", "obj", "newobj", "partial"])
@pytest.mark.parametrize("form", OLD_FILES)
def test_old_formats_are_no_way_round(form: str, name: str, tmp_path: Path) -> None:
    """Tar files are refused as a whole, the pickles of the others are walked."""
    path = tmp_path / "old.pt"
    path.write_bytes(OLD_FILES[form](PICKLES[name]))
    with quiet():
        sighting = watched(lambda: refusal_by(lambda: fastckpt.load(path)), tmp_path)
    # Files of torch 0.1 are refused as a whole.
    expected = RuntimeError if form.startswith("tar") else pickle.UnpicklingError
    assert Refusal(**sighting.value).is_a(expected), sighting.value
    assert_nothing_has_run(sighting)
    assert fastckpt.verify(path).files[0].status.value == "unchecked"


def test_there_are_enough_of_them() -> None:
    assert len(PICKLES) == len({*PICKLES.values()}) > 200
