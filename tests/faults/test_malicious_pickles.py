"""Pickles that call, build or claim what no checkpoint does: refused, and nothing has run."""

from __future__ import annotations

import contextlib
import copyreg
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.archives import legacy_bytes
from tests.faults.forgery import with_pickle
from tests.faults.malicious_pickles import (
    CANARY,
    GROWTHS,
    HARMLESS,
    NOT_BUILT,
    PICKLES,
    RECORDS,
)
from tests.faults.opcodes import program, tensor, text
from tests.faults.watch import Refusal, Sighting, refusal_by, watched
from tests.specimens import assert_same, quiet

import fastckpt

_STEP = 1
# Refusing costs next to nothing; the largest pickles here have a megabyte.
_GROWN_MAX_NBYTES = 64 << 20
# What tarfile and tempfile do.
_OF_UNPACKING = (
    "tempfile.",
    "open ('/tmp/",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "shutil.",
    "os.ch",
    "os.utime",
    "os.listdir",
    "os.scandir",
)
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


def tar_file(pickles: dict[str, bytes]) -> bytes:
    """Make a file of torch 0.1, whose parts were unpickled without any restriction (CVE-2025-32434)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            data = pickles.get(name, pickle.dumps(0, 2))
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def legacy_file(part: int, replacement: bytes) -> bytes:
    """Replace one of the pickles that a file of torch before 1.6 consists of."""
    file = io.BytesIO(legacy_bytes({"w": torch.ones(3)}))
    pickles = []
    for _ in range(3):  # the magic number, the protocol, what is said of the system
        start = file.tell()
        pickle.load(file)
        pickles.append(file.getvalue()[start : file.tell()])
    pickles.append(file.read())
    pickles[part] = replacement
    return b"".join(pickles)


OLD_FILES: dict[str, Callable[[bytes], bytes]] = {
    **{f"tar_{name}": lambda p, name=name: tar_file({name: p}) for name in ("pickle", "tensors")},  # type: ignore[misc]
    "tar_storages": lambda p: tar_file({"storages": p}),
    "legacy_protocol": lambda p: legacy_file(1, p),
    "legacy_system": lambda p: legacy_file(2, p),
    "legacy_object": lambda p: legacy_file(3, p),
}


@pytest.mark.parametrize("name", ["reduce", "popen", "inst", "obj", "newobj", "partial"])
@pytest.mark.parametrize("form", OLD_FILES)
def test_old_formats_are_no_way_round(form: str, name: str, tmp_path: Path) -> None:
    """They are left to torch.load, with weights_only=True and nothing else."""
    path = tmp_path / "old.pt"
    path.write_bytes(OLD_FILES[form](PICKLES[name]))
    sighting = watched(lambda: refusal_by(lambda: fastckpt.load(path)), tmp_path)
    # Files of torch 0.1 are refused as a whole.
    expected = RuntimeError if form.startswith("tar") else pickle.UnpicklingError
    assert Refusal(**sighting.value).is_a(expected), sighting.value
    # torch takes a tar file apart before it looks at the pickles in it.
    events = [event for event in sighting.events if not event.startswith(_OF_UNPACKING)]
    assert_nothing_has_run(replace(sighting, events=events))
    assert fastckpt.verify(path).files[0].status.value == "unchecked"


def test_there_are_enough_of_them() -> None:
    assert len(PICKLES) == len({*PICKLES.values()}) > 200
