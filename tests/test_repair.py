"""`fastckpt repair`: everything that is good is salvaged, nothing is made up, nothing is written in place."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import random
import subprocess
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import archives
from tests.command_line import run_json
from tests.faults import salvaged_files
from tests.faults.damage import SAVERS, file_of, small_optimizer, small_weights
from tests.faults.salvaged_files import OBJECTS, WRITERS, compare, compare_records, repaired
from tests.specimens import assert_same

import fastckpt
from fastckpt._repair.report import LostTensor, Outcome, RepairReport
from fastckpt.cli.app import run
from fastckpt.nanochat import save_id as save_id_module

SMALL_RECORDS = (".format_version", ".storage_alignment", "byteorder", "version")


def flipped(data: bytes, position: int, bit: int = 0) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


def repair_bytes(data: bytes, directory: Path) -> tuple[RepairReport, Any]:
    """Repair the bytes of a file; return the report, and what torch loads of the new file."""
    path, to = directory / "damaged.pt", directory / "new.pt"
    path.write_bytes(data)
    to.unlink(missing_ok=True)
    report = fastckpt.repair(path, to=to)
    assert path.read_bytes() == data
    assert (report.outcome is Outcome.NOTHING) == (not to.exists())
    with warnings.catch_warnings():
        # torch checks sparse tensors, and says that it does.
        warnings.simplefilter("ignore")
        return report, torch.load(to, weights_only=True) if to.exists() else None


def storages_of(data: bytes) -> list[str]:
    return [name for name in archives.records(data) if name.startswith("data/")]


# What is salvaged


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", OBJECTS)
def test_a_good_file_is_salvaged_as_a_whole(kind: str, writer: str, tmp_path: Path) -> None:
    obj = OBJECTS[kind]()
    data = WRITERS[writer](obj)
    report = repaired(data, obj, data, tmp_path)
    assert (report.outcome, report.lost, report.tensors, report.notes) == (
        Outcome.WHOLE,
        (),
        (),
        (),
    )
    assert report.exit_code == 0


@pytest.mark.parametrize("alignment", [64, 4096])
def test_a_file_of_the_same_name_comes_out_byte_for_byte(alignment: int, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    path, to = tmp_path / "model.pt", tmp_path / "new" / "model.pt"
    fastckpt.save(small_weights(), path, alignment=alignment)
    good = path.read_bytes()
    for position in (4, good.rindex(b"PK\x01\x02") + 5, len(good) - 1):
        path.write_bytes(flipped(good, position))
        assert not fastckpt.verify(path).ok
        report = fastckpt.repair(path, to=to)
        assert report.outcome is Outcome.WHOLE
        assert to.read_bytes() == good
        to.unlink()


def test_the_save_id_of_a_whole_file_is_kept_and_that_of_a_part_is_not(tmp_path: Path) -> None:
    with save_id_module.agreed(17, 1):
        fastckpt.save_checkpoint(tmp_path, 1, small_weights(), {}, {})
    model = tmp_path / "model_000001.pt"
    good = model.read_bytes()
    (tmp_path / "new").mkdir()
    to = tmp_path / "new" / model.name
    for position, save_id in ((4, 17), (archives.record_range(good, "data/0").start, 0)):
        model.write_bytes(flipped(good, position))
        fastckpt.repair(model, to=to)
        mark = fastckpt._native.Archive.open(to).save_mark
        assert mark is not None
        assert mark.save_id == save_id
        to.unlink()


@pytest.mark.parametrize("saver", SAVERS)
@pytest.mark.parametrize("make", [small_weights, small_optimizer])
def test_any_damaged_storage_is_left_out_and_all_others_stay(
    make: Any, saver: str, tmp_path: Path
) -> None:
    obj = make()
    good = file_of(obj, saver)
    for record in storages_of(good):
        payload = archives.record_range(good, record)
        if not payload:
            continue
        report, new = repair_bytes(flipped(good, random.Random(1).choice(payload)), tmp_path)
        assert (report.outcome, report.exit_code) == (Outcome.PARTIAL, 1)
        (lost,) = report.lost
        assert (lost.record, lost.reason) == (record, "checksum mismatch")
        assert lost.nbytes == len(payload)
        assert lost.expected != lost.found
        assert {tensor.record for tensor in report.tensors} == {record}
        missing = set(compare(new, obj, ""))
        assert missing == {tensor.name for tensor in report.tensors}


def test_tensors_that_share_a_lost_storage_are_all_named(tmp_path: Path) -> None:
    good = file_of(small_weights(), "fastckpt")
    data = flipped(good, archives.record_range(good, "data/0").start)
    report, new = repair_bytes(data, tmp_path)
    assert report.tensors == (
        LostTensor("layer.weight", "data/0", True),
        LostTensor("tied", "data/0", True),
    )
    assert list(new) == ["layer.bias", "empty", "step"]


def test_one_tensor_in_two_places_is_named_in_both(tmp_path: Path) -> None:
    tensor, parameter = torch.ones(40), torch.nn.Parameter(torch.zeros(30))
    obj = {"a": tensor, "b": {"c": tensor}, "p": [parameter], "q": parameter, "n": 1}
    good = file_of(obj, "fastckpt")
    data = bytearray(good)
    for record in ("data/0", "data/1"):
        data[archives.record_range(good, record).start] ^= 1
    report, new = repair_bytes(bytes(data), tmp_path)
    assert [(lost.name, lost.is_left_out) for lost in report.tensors] == [
        ("a", True),
        ("b.c", True),
        ("p.0", False),
        ("q", True),
    ]
    assert new == {"b": {}, "p": [None], "n": 1}


def test_lists_and_tuples_get_none_and_keep_their_length(tmp_path: Path) -> None:
    obj = OrderedDict(pair=(torch.ones(9), "text"), many=[torch.zeros(7), torch.ones(8)])
    obj_file = file_of(obj, "torch")
    data = bytearray(obj_file)
    for record in ("data/0", "data/2"):
        data[archives.record_range(obj_file, record).start] ^= 1
    report, new = repair_bytes(bytes(data), tmp_path)
    assert [(lost.name, lost.is_left_out) for lost in report.tensors] == [
        ("pair.0", False),
        ("many.1", False),
    ]
    assert type(new) is OrderedDict
    assert new["pair"] == (None, "text")
    assert_same(new["many"][0], torch.zeros(7))
    assert new["many"][1] is None


def test_module_metadata_and_parameters_survive(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(20, 10), torch.nn.BatchNorm1d(10))
    state = module.state_dict()
    state["extra"] = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    good = file_of(state, "fastckpt")
    report, new = repair_bytes(flipped(good, archives.record_range(good, "data/0").start), tmp_path)
    assert [lost.name for lost in report.tensors] == ["0.weight"]
    assert new._metadata == state._metadata  # type: ignore[attr-defined]
    assert type(new["extra"]) is torch.nn.Parameter
    fresh = torch.nn.Sequential(torch.nn.Linear(20, 10), torch.nn.BatchNorm1d(10))
    del new["extra"]
    assert fresh.load_state_dict(new, strict=False).missing_keys == ["0.weight"]


@pytest.mark.parametrize("record", [*SMALL_RECORDS, ".data/serialization_id"])
def test_records_of_the_frame_are_made_anew(record: str, tmp_path: Path) -> None:
    obj = small_weights()
    good = file_of(obj, "fastckpt")
    report, new = repair_bytes(flipped(good, archives.record_range(good, record).start), tmp_path)
    assert (report.outcome, report.exit_code) == (Outcome.WHOLE, 0)
    assert [lost.record for lost in report.lost] == [record]
    assert_same(new, obj)
    assert archives.mask_serialization_id((tmp_path / "new.pt").read_bytes()) == (
        archives.mask_serialization_id(saved_as_new(obj, tmp_path))
    )


def saved_as_new(obj: Any, directory: Path) -> bytes:
    """Save under the name that the repaired file has, since that is in the file too."""
    (directory / "expected").mkdir(exist_ok=True)
    path = directory / "expected" / "new.pt"
    fastckpt.save(obj, path)
    return path.read_bytes()


# Damage to the frame


@pytest.mark.parametrize("writer", ["torch", "fastckpt", "aligned to 4096"])
def test_every_byte_between_the_records_may_be_wrong(writer: str, tmp_path: Path) -> None:
    """One at a time: nothing is lost then, since the file says all of it twice."""
    obj = small_weights()
    good = WRITERS[writer](obj)
    payloads = {p for name in archives.records(good) for p in archives.record_range(good, name)}
    frame = [position for position in range(len(good)) if position not in payloads]
    if len(frame) > 3000:
        # Padding, for the most part.
        frame = sorted(random.Random(2).sample(frame, 1500))
    for position in frame:
        path = tmp_path / "damaged.pt"
        path.write_bytes(flipped(good, position, position % 8))
        salvaged = fastckpt._native.salvage(path)
        names = salvaged.archive.names()
        saved = archives.records(good)
        # No byte of an empty record can vouch for it, and nothing is lost with it.
        assert [name for name in saved if name not in names and saved[name]] == [], position
        for name in names:
            assert salvaged.archive.read_record(name) == saved[name], position


@pytest.mark.parametrize("writer", ["torch", "fastckpt", "aligned to 4096", "unaligned", "zipfile"])
@pytest.mark.parametrize("kind", ["weights", "optimizer", "alike", "nested", "archive inside"])
def test_without_a_directory_the_headers_tell(kind: str, writer: str, tmp_path: Path) -> None:
    obj = OBJECTS[kind]()
    good = WRITERS[writer](obj)
    # Behind the last record; a tensor may hold a directory too.
    start = good.index(b"PK\x01\x02", archives.record_range(good, archives.ID_RECORD).stop)
    for data in (good[:start], good[:start] + bytes(len(good) - start)):
        report = repaired(data, obj, good, tmp_path)
        assert (report.outcome, report.lost) == (Outcome.WHOLE, ())


@pytest.mark.parametrize("writer", ["torch", "fastckpt", "aligned to 4096"])
def test_without_any_header_the_directory_tells(writer: str, tmp_path: Path) -> None:
    for kind in ("weights", "alike", "nested"):
        obj = OBJECTS[kind]()
        good = WRITERS[writer](obj)
        data = good.replace(b"PK\x03\x04", bytes(4)).replace(b"PK\x07\x08", bytes(4))
        report = repaired(data, obj, good, tmp_path)
        assert report.outcome is Outcome.WHOLE


def test_a_descriptor_that_is_lost_with_the_directory_costs_its_record_alone(
    tmp_path: Path,
) -> None:
    """data.pkl tells how long it is, and so where the next one begins."""
    obj = OBJECTS["alike"]()
    good = file_of(obj, "fastckpt")
    start = good.index(b"PK\x01\x02")
    for name in ("data/3", "data/13", "byteorder"):
        data = bytearray(good[:start])
        stop = archives.record_range(good, name).stop
        data[stop : stop + 4] = bytes(4)
        report = repaired(bytes(data), obj, good, tmp_path)
        assert [lost.record for lost in report.lost] == [name]
        assert [tensor.record for tensor in report.tensors] == (
            [name] if name.startswith("data/") else []
        )


@pytest.mark.parametrize("saver", SAVERS)
def test_a_file_cut_off_anywhere_keeps_what_lies_before(saver: str, tmp_path: Path) -> None:
    obj = OBJECTS["nested"]()
    good = file_of(obj, saver)
    payloads = {name: archives.record_range(good, name) for name in archives.records(good)}
    # A descriptor has 16 bytes; with it a record can be believed.
    ends = {name: payload.stop + (16 if payload else 0) for name, payload in payloads.items()}
    for nbytes in [*range(0, len(good), 97), *ends.values()]:
        report = repaired(good[:nbytes], obj, good, tmp_path)
        whole = {name for name, end in ends.items() if end <= nbytes and payloads[name]}
        assert whole <= {*report.records}, nbytes
        assert {name for name in report.records if payloads[name]} <= whole, nbytes
        if ends["data.pkl"] <= nbytes:
            lost = {tensor.record for tensor in report.tensors}
            assert lost == {name for name in storages_of(good) if payloads[name]} - whole, nbytes
        else:
            assert report.outcome is Outcome.NOTHING


def test_bytes_cut_out_or_put_in_cost_the_record_that_they_are_in(tmp_path: Path) -> None:
    obj = OBJECTS["nested"]()
    good = file_of(obj, "fastckpt")
    inside = archives.record_range(good, "data/1")
    for data in (
        good[: inside.start + 10] + good[inside.start + 17 :],
        good[: inside.start + 10] + b"seven b" + good[inside.start + 10 :],
    ):
        report = repaired(data, obj, good, tmp_path)
        assert {tensor.record for tensor in report.tensors} == {"data/1"}


def test_a_payload_in_the_place_of_another_is_not_taken_for_it(tmp_path: Path) -> None:
    """With its descriptor and so its checksum: the directory knows better, and the hash over all."""
    obj = OBJECTS["alike"]()
    good = file_of(obj, "fastckpt")
    one, other = (archives.record_range(good, name) for name in ("data/2", "data/9"))
    moved = bytearray(good)
    moved[one.start : one.stop + 16] = good[other.start : other.stop + 16]
    report = repaired(bytes(moved), obj, good, tmp_path)
    assert [tensor.record for tensor in report.tensors] == ["data/2"]

    start = good.index(b"PK\x01\x02")
    assert fastckpt._native.Archive.open_bytes(good, "good").content_hash is not None
    report = repaired(bytes(moved[:start]), obj, good, tmp_path)
    assert report.outcome is Outcome.NOTHING
    assert {lost.reason.split(",")[1] for lost in report.lost if lost.found == lost.expected} == {
        " and the hash over all records shows that some are not in their places"
    }


def test_a_wrong_checksum_in_the_directory_costs_nothing(tmp_path: Path) -> None:
    """The hash over all checksums decides between it and the descriptor."""
    obj = OBJECTS["alike"]()
    good = file_of(obj, "torch")
    entry = good.rindex(b"archive/data/7") - 46
    report, new = repair_bytes(flipped(good, entry + 16, 3), tmp_path)
    assert (report.outcome, report.lost) == (Outcome.WHOLE, ())
    assert_same(new, obj)


# A lost pickle


@pytest.mark.parametrize("saver", SAVERS)
def test_without_data_pkl_the_raw_records_stay(saver: str, tmp_path: Path) -> None:
    obj = small_weights()
    good = file_of(obj, saver)
    report, new = repair_bytes(
        flipped(good, archives.record_range(good, "data.pkl").start + 30), tmp_path
    )
    assert (report.outcome, report.exit_code) == (Outcome.RECORDS, 1)
    assert report.notes == ("data.pkl is lost, and with it the names, shapes and dtypes",)
    assert list(new) == storages_of(good)
    assert {tensor.dtype for tensor in new.values()} == {torch.uint8}
    compare_records(new, archives.records(good))


def test_objects_of_other_classes_are_copied_unopened(tmp_path: Path) -> None:
    """No pickle is executed: what torch.load would refuse is salvaged all the same."""
    obj = {"w": torch.ones(20), "path": Path("/tmp")}
    good = file_of(obj, "torch")
    path, to = tmp_path / "damaged.pt", tmp_path / "new.pt"
    path.write_bytes(flipped(good, 4))
    report = fastckpt.repair(path, to=to)
    assert report.outcome is Outcome.WHOLE
    assert archives.data_pkl(to.read_bytes()) == archives.data_pkl(good)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(to, weights_only=True)
    assert_same(torch.load(to, weights_only=False), obj)

    to.unlink()
    path.write_bytes(flipped(good, archives.record_range(good, "data/0").start))
    report = fastckpt.repair(path, to=to)
    assert report.outcome is Outcome.NOTHING
    assert "has parts that only torch can build (global pathlib.PosixPath)" in report.notes[0]


def test_hostile_pickles_are_not_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    good = file_of({"w": torch.ones(20), "evil": Evil(), "v": torch.ones(3)}, "torch")
    for position in (4, archives.record_range(good, "data/0").start, len(good) - 1):
        path, to = tmp_path / "damaged.pt", tmp_path / "new.pt"
        path.write_bytes(flipped(good, position))
        report = fastckpt.repair(path, to=to)
        assert report.outcome in {Outcome.WHOLE, Outcome.RECORDS}
        assert not (tmp_path / "executed").exists()
        to.unlink()


def test_parts_that_only_torch_builds_leave_raw_records(tmp_path: Path) -> None:
    obj = {"sparse": torch.eye(4).to_sparse(), "w": torch.ones(20)}
    good = file_of(obj, "torch")
    report, new = repair_bytes(flipped(good, 4), tmp_path)
    assert report.outcome is Outcome.WHOLE
    assert torch.equal(new["sparse"].to_dense(), torch.eye(4))

    name = storages_of(good)[-1]
    report, new = repair_bytes(flipped(good, archives.record_range(good, name).start), tmp_path)
    assert report.outcome is Outcome.RECORDS
    assert "only torch can build" in report.notes[0]
    saved = archives.records(good)
    assert bytes(new.pop("data.pkl").numpy()) == saved["data.pkl"]
    compare_records(new, saved)


def test_a_file_of_one_lost_tensor_gives_nothing(tmp_path: Path) -> None:
    good = file_of(torch.ones(100), "fastckpt")
    report, _ = repair_bytes(flipped(good, archives.record_range(good, "data/0").start), tmp_path)
    assert (report.outcome, report.exit_code) == (Outcome.NOTHING, 1)
    assert report.notes == ("the file held one tensor, which is lost",)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK",
        bytes(5000),
        b"not a checkpoint" * 100,
        archives.legacy_bytes({"w": torch.ones(3)}),
        archives.without_checksums({"w": torch.ones(3)}),
        b"PK\x03\x04" * 3000,
        b"PK\x07\x08" * 3000,
        b"PK\x01\x02" * 3000,
    ],
)
def test_files_in_which_nothing_can_be_believed(data: bytes, tmp_path: Path) -> None:
    report, _ = repair_bytes(data, tmp_path)
    assert (report.outcome, report.exit_code) == (Outcome.NOTHING, 1)


def test_torchscript_is_left_to_others(tmp_path: Path) -> None:
    report, _ = repair_bytes(archives.torchscript_bytes(), tmp_path)
    assert report.outcome is Outcome.NOTHING


# Any damage


def test_no_tensor_is_ever_wrong(tmp_path: Path) -> None:
    seed = 20260
    print(f"seed {seed}")
    tally = salvaged_files.run(seed, 300, tmp_path)
    print(dict(tally.outcomes))
    assert tally.failures == []
    assert tally.cases == 300
    assert all(tally.outcomes[outcome.value] >= 20 for outcome in Outcome)


# What is written


def test_nothing_that_exists_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    fastckpt.save(small_weights(), path)
    good = path.read_bytes()
    other, link = tmp_path / "other.pt", tmp_path / "link.pt"
    other.write_bytes(b"mine")
    link.symlink_to(tmp_path / "nowhere")
    for to in (path, other, link, tmp_path):
        with pytest.raises(FileExistsError) as raised:
            fastckpt.repair(path, to=to)
        assert raised.value.filename == str(to)
    assert path.read_bytes() == good
    assert other.read_bytes() == b"mine"
    assert not (tmp_path / "nowhere").exists()
    assert sorted(os.listdir(tmp_path)) == ["link.pt", "model.pt", "other.pt"]


def test_a_file_that_appears_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, to = tmp_path / "model.pt", tmp_path / "new.pt"
    fastckpt.save(small_weights(), path)
    write = fastckpt._repair.repair.write_into

    def then_appear(*args: Any, **options: Any) -> Any:
        written = write(*args, **options)
        to.write_bytes(b"mine")
        return written

    monkeypatch.setattr("fastckpt._repair.repair.write_into", then_appear)
    with pytest.raises(FileExistsError):
        fastckpt.repair(path, to=to)
    assert to.read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["model.pt", "new.pt"]


def test_what_raises_in_progress_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    fastckpt.save(small_weights(), path)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fastckpt.repair(path, to=tmp_path / "new.pt", progress=stop)
    assert os.listdir(tmp_path) == ["model.pt"]


def test_progress_ends_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    fastckpt.save({"w": torch.zeros(3 << 20)}, path)
    calls: list[tuple[int, int]] = []
    fastckpt.repair(
        path, to=tmp_path / "new.pt", progress=lambda done, total: calls.append((done, total))
    )
    assert {total for _, total in calls} == {2 * path.stat().st_size}
    assert calls == sorted(calls)
    assert calls[-1][0] > path.stat().st_size


def test_a_large_file_with_damage_across_windows(tmp_path: Path) -> None:
    """Structures lie on both sides of, and across, the places where the search is cut into pieces."""
    step = 4 << 20
    rng = random.Random(3)
    sizes = [rng.randrange(1, 3 << 20) for _ in range(12)]
    obj = {f"w{i}": torch.randint(0, 255, (n,), dtype=torch.uint8) for i, n in enumerate(sizes)}
    file = io.BytesIO()
    fastckpt.save(obj, file)
    good = file.getvalue()
    start = good.index(b"PK\x01\x02", archives.record_range(good, archives.ID_RECORD).start)
    assert len(good) > 3 * step
    bad = archives.record_range(good, "data/4")
    data = flipped(good, bad.start + len(bad) // 2)
    assert good.index(b"PK\x03\x04") == 0
    for damaged in (data, data[:start]):
        report = repaired(damaged, obj, good, tmp_path)
        assert [tensor.name for tensor in report.tensors] == ["w4"]


@pytest.mark.parametrize("shift", range(-40, 60, 7))
def test_a_header_across_the_edge_of_a_window_is_found(shift: int, tmp_path: Path) -> None:
    step = 4 << 20
    first = file_of({"a": torch.zeros(8, dtype=torch.uint8)}, "fastckpt")
    overhead = archives.record_range(first, "data/0").start
    # The descriptor of the first storage and the header of the second lie around the edge.
    nbytes = step - overhead - 16 + shift
    obj = {"a": torch.ones(nbytes, dtype=torch.uint8), "b": torch.arange(50)}
    good = file_of(obj, "fastckpt")
    start = good.index(b"PK\x01\x02")
    report = repaired(good[:start], obj, good, tmp_path)
    assert report.outcome is Outcome.WHOLE


# The command


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, to = tmp_path / "model.pt", tmp_path / "new.pt"
    obj = {"transformer": {"wte": torch.ones(250)}, "moments": [torch.zeros(8)], "n": 1}
    fastckpt.save(obj, path)
    good = path.read_bytes()
    offset = good.index(b"model/data/0") - 30
    data = bytearray(good)
    for name in ("data/0", "data/1", "version"):
        data[archives.record_range(good, name).start] ^= 1
    path.write_bytes(data)
    assert run(["repair", str(path), "--to", str(to)]) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith(f"SALVAGED IN PART: {to}, ")
    assert lines[0].endswith(" kB, 2 tensors missing")
    assert lines[1:4] == [
        "  lost tensor  transformer.wte (data/0): left out",
        "  lost tensor  moments.0 (data/1): None instead",
        f"  lost record  data/0, 1.0 kB, at byte {offset}: checksum mismatch",
    ]
    assert "  lost record  version, 2 B" in lines[5]
    assert captured.err == (
        "hint: load_state_dict(..., strict=False) takes a state dict with missing keys\n"
    )
    assert torch.load(to) == {"transformer": {}, "moments": [None], "n": 1}

    assert run(["repair", str(path), "--to", str(to)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {to} exists already")


def test_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, to = tmp_path / "model.pt", tmp_path / "new.pt"
    fastckpt.save({"w": torch.ones(250), "v": torch.zeros(3)}, path)
    good = path.read_bytes()
    path.write_bytes(flipped(good, archives.record_range(good, "data/0").start))
    document = run_json(capsys, "repair", str(path), "--to", str(to), status="damaged", code=1)
    report = document["report"]
    assert (report["outcome"], report["to"]) == ("partial", str(to))
    assert report["nbytes"] == to.stat().st_size
    assert report["tensors"] == [{"name": "w", "record": "data/0", "left_out": True}]
    (lost,) = report["lost"]
    assert (lost["record"], lost["reason"]) == ("data/0", "checksum mismatch")
    assert "data/1" in report["records"]


@pytest.mark.parametrize("as_json", [False, True])
def test_exit_codes(as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--json"] if as_json else []
    good, junk = tmp_path / "good.pt", tmp_path / "junk.pt"
    fastckpt.save({"w": torch.ones(2)}, good)
    junk.write_bytes(b"junk")
    for path, to, code, status in (
        (good, tmp_path / "new.pt", 0, "good"),
        (good, good, 2, "usage"),
        (junk, tmp_path / "none.pt", 1, "damaged"),
        (tmp_path / "missing.pt", tmp_path / "none.pt", 4, "not_found"),
        (good, tmp_path / "no" / "such" / "directory.pt", 4, "not_found"),
        (tmp_path, tmp_path / "none.pt", 6, "io_error"),
    ):
        assert run(["repair", str(path), "--to", str(to), *options]) == code
        captured = capsys.readouterr()
        if as_json:
            assert json.loads(captured.out)["status"] == status
        assert "Traceback" not in captured.err
    assert run(["repair", str(good), *options]) == 2
    assert "--to" in capsys.readouterr().err
    assert not (tmp_path / "none.pt").exists()


def test_io_errors_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: str, **_: object) -> object:
        raise OSError(errno.EIO, "Input/output error", path)

    monkeypatch.setattr("fastckpt._native.salvage", fail)
    assert run(["repair", "model.pt", "--to", str(tmp_path / "new.pt")]) == 6
    assert "Input/output error" in capsys.readouterr().err


def test_torch_is_needed_and_said_to_be(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from fastckpt.cli.app import run\n"
        "sys.exit(run(['repair', 'a.pt', '--to', 'b.pt']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, text=True, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: repair needs torch\nhint: pip install torch\n"


def test_names_do_not_control_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pt"
    fastckpt.save({"w\x1b[2J": torch.ones(250), "v": torch.ones(1)}, path)
    good = path.read_bytes()
    path.write_bytes(flipped(good, archives.record_range(good, "data/0").start))
    with warnings.catch_warnings():
        assert run(["repair", str(path), "--to", str(tmp_path / "new.pt")]) == 1
    assert "\x1b" not in capsys.readouterr().out
