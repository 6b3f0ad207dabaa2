"""`fastckpt.repair`: everything that is good is salvaged, and nothing is made up."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import os
import pickle
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import archives
from tests.faults import salvaged_files
from tests.faults.damage import SAVERS, file_of, small_optimizer, small_weights
from tests.faults.salvaged_files import OBJECTS, WRITERS, compare, compare_records, repaired
from tests.repaired_files import SMALL_RECORDS, flipped, repair_bytes, storages_of
from tests.specimens import assert_same

import fastckpt
from fastckpt._repair.report import LostTensor, Outcome
from fastckpt._steps import save_id as save_id_module

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


def test_what_appears_while_a_file_is_salvaged_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, to = tmp_path / "source.pt", tmp_path / "to.pt"
    torch.save({"w": torch.ones(10)}, source)
    looks: list[str] = []

    def look(path: str) -> None:
        looks.append(path)
        if len(looks) == 2:
            to.write_bytes(b"somebody else's")

    monkeypatch.setattr("fastckpt._repair.repair._refuse_existing", look)
    with pytest.raises(FileExistsError):
        fastckpt.repair(source, to=to)
    assert to.read_bytes() == b"somebody else's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.pt", "to.pt"]


def test_no_tensor_is_ever_wrong(tmp_path: Path) -> None:
    seed = 20260
    print(f"seed {seed}")
    tally = salvaged_files.run(seed, 300, tmp_path)
    print(dict(tally.outcomes))
    assert tally.failures == []
    assert tally.cases == 300
    assert all(tally.outcomes[outcome.value] >= 20 for outcome in Outcome)
