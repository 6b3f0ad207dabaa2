"""Text and documents of a report, and how sizes and names are written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fastckpt._verify.report import Damage, FileReport, Status, StepReport, VerifyReport
from fastckpt.cli.output import format_nbytes, plural, printable
from fastckpt.cli.verify_output import messages, report_document, report_lines


def example_report() -> VerifyReport:
    model = "runs/d12/model_001300.pt"
    found = Damage(
        model,
        "data/7",
        ("transformer.h.3.mlp.c_fc.weight",),
        8192,
        4096,
        0x1A2B3C4D,
        0,
        "checksum mismatch",
    )

    def step_files(step: int, **changes: Any) -> tuple[FileReport, ...]:
        fields: dict[str, Any] = {
            "path": f"runs/d12/model_{step:06d}.pt",
            "role": "model",
            "status": Status.GOOD,
            "nbytes": 14_200_000_000,
            "seconds": 2.5,
            "records": 9,
            "step": step,
        }
        meta = FileReport(f"runs/d12/meta_{step:06d}.json", "meta", Status.GOOD, step, nbytes=1000)
        return FileReport(**{**fields, **changes}), meta

    steps = (
        StepReport(
            "runs/d12", 900, Status.INCOMPLETE, step_files(900)[:1], (), ("meta_000900.json",)
        ),
        StepReport("runs/d12", 1200, Status.GOOD, step_files(1200), (), ()),
        StepReport(
            "runs/d12",
            1300,
            Status.DAMAGED,
            step_files(1300, status=Status.DAMAGED, damages=(found,)),
            (),
            (),
        ),
    )
    files = tuple(file for step in steps for file in step.files)
    return VerifyReport(files, steps, ("runs/d12/.fastckpt-7-1.tmp",), quick=False, seconds=7.5)


def test_text_of_a_report() -> None:
    text = "\n".join(line.text for line in report_lines(example_report()))
    assert (
        text
        == """\
DAMAGED: 1 of 5 files, 42.6 GB, every byte read (7.5 s, 5.7 GB/s)
runs/d12
  step  900  INCOMPLETE      1 file    14.2 GB    5.7 GB/s  missing: meta_000900.json
  step 1200  OK             2 files    14.2 GB    5.7 GB/s
  step 1300  DAMAGED        2 files    14.2 GB    5.7 GB/s  model_001300.pt

damaged: runs/d12/model_001300.pt
  what      checksum mismatch
  tensor    transformer.h.3.mlp.c_fc.weight
  record    data/7
  bytes     8192-12287
  expected  0x1a2b3c4d
  found     0x00000000

newest good step in runs/d12: 1200"""
    )


def test_messages_of_a_report() -> None:
    ((kind, text),) = messages(example_report())
    assert kind == "note"
    assert text == (
        "1 temporary file of running or interrupted saves, never loaded (`fastckpt gc`): "
        "runs/d12/.fastckpt-7-1.tmp"
    )


def test_document_of_a_report() -> None:
    document = report_document(example_report())
    assert document["newest_good_steps"] == {"runs/d12": 1200}
    assert document["leftovers"] == ["runs/d12/.fastckpt-7-1.tmp"]
    assert document["steps"][0] == {
        "directory": "runs/d12",
        "step": 900,
        "status": "incomplete",
        "nbytes": 14_200_000_000,
        "seconds": 2.5,
        "ranks": [],
        "missing": ["meta_000900.json"],
        "torn": [],
        "extra": [],
        "save_id": None,
        "files": ["runs/d12/model_000900.pt"],
    }
    assert document["files"][3]["damages"] == [
        {
            "record": "data/7",
            "tensors": ["transformer.h.3.mlp.c_fc.weight"],
            "offset": 8192,
            "nbytes": 4096,
            "expected": 0x1A2B3C4D,
            "found": 0,
            "detail": "checksum mismatch",
        }
    ]
    json.dumps(document, allow_nan=False)


def test_names_from_a_file_do_not_control_the_terminal() -> None:
    evil = "w\x1b[2J\r\n\u202eeight\udcff"
    found = Damage(evil, evil, (evil,), 0, 1, 1, 2, evil)
    report = VerifyReport(
        (FileReport(evil, "other", Status.DAMAGED, damages=(found,), message=evil),),
        (StepReport(evil, 1, Status.INCOMPLETE, (), (), (evil,)),),
        (evil,),
        quick=False,
        seconds=0.0,
    )
    shown = "".join(line.text for line in report_lines(report))
    shown += "".join(text for _, text in messages(report))
    assert [char for char in shown if not char.isprintable()] == []
    assert "w\\x1b[2J\\r\\n\\u202eeight\\udcff" in shown


def test_many_damages_are_counted_not_listed() -> None:
    found = tuple(
        Damage("f.pt", f"data/{n}", tuple("abcdefgh"), 0, 1, 1, 2, "checksum mismatch")
        for n in range(50)
    )
    file = FileReport("f.pt", "other", Status.DAMAGED, damages=found)
    lines = [line.text for line in report_lines(VerifyReport((file,), (), (), False, 0.0))]
    assert lines.count("damaged: f.pt") == 20
    assert "and 30 more damages in f.pt (see --json)" in lines
    assert "  tensor    a, b, c, d, e and 3 more" in lines
    assert (
        len(report_document(VerifyReport((file,), (), (), False, 0.0))["files"][0]["damages"]) == 50
    )


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (14_200_000_000, "14.2 GB"),
        (5_000_000_000_000, "5.0 TB"),
    ],
)
def test_sizes(nbytes: int, text: str) -> None:
    assert format_nbytes(nbytes) == text


def test_words() -> None:
    assert (plural(0, "file"), plural(1, "file"), plural(2, "file")) == (
        "0 files",
        "1 file",
        "2 files",
    )
    assert printable("wte.Überschrift") == "wte.Überschrift"
