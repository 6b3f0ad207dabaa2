"""Damage to the frame of an archive, which costs no tensor that is good."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests import archives
from tests.faults.damage import SAVERS, file_of, small_weights
from tests.faults.salvaged_files import OBJECTS, WRITERS, repaired
from tests.repaired_files import flipped, repair_bytes, storages_of
from tests.specimens import assert_same

import fastckpt
from fastckpt._repair.report import Outcome


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
