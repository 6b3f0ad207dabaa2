"""`fastckpt.verify` as a call: its verdict, its progress, its arguments."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.verified_files import write_step

import fastckpt
from fastckpt._verify.report import FileReport, Status, StepReport, VerifyReport, worst


@given(st.lists(st.sampled_from(Status), min_size=1))
def test_precedence(statuses: list[Status]) -> None:
    # By exit code: 1 wins over 3, then 6, 4, 5; good only where all is.
    codes = {status.exit_code(strict=True) for status in statuses}
    expected = next(code for code in (1, 3, 6, 4, 5, 0) if code in codes)
    assert worst(statuses).exit_code(strict=True) == expected


@given(st.lists(st.sampled_from(Status)), st.lists(st.lists(st.sampled_from(Status), max_size=3)))
def test_status_of_a_report(alone: list[Status], in_steps: list[list[Status]]) -> None:
    number = itertools.count()

    def file(status: Status) -> FileReport:
        return FileReport(f"{next(number)}.pt", "other", status)

    steps = [
        StepReport("d", step, worst(statuses), tuple(map(file, statuses)), (), ())
        for step, statuses in enumerate(in_steps)
    ]
    files = [file(status) for status in alone] + [one for step in steps for one in step.files]
    report = VerifyReport(tuple(files), tuple(steps), (), False, 0.0)
    assert report.status is worst([*alone, *itertools.chain(*in_steps)])
    assert report.ok == (report.status in {Status.GOOD, Status.UNCHECKED})
    good = [step.step for step in steps if step.status is Status.GOOD]
    assert report.newest_good_steps == ({"d": max(good, default=None)} if steps else {})


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    write_step(tmp_path, 1, ranks=(0, 1))
    calls: list[tuple[int, int]] = []
    report = fastckpt.verify(tmp_path, progress=lambda done, total: calls.append((done, total)))
    done = [one for one, _ in calls]
    assert done == sorted(done)
    assert {total for _, total in calls} == {report.nbytes}
    assert calls[-1] == (report.nbytes, report.nbytes)


def test_progress_that_raises_ends_the_job(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    write_step(tmp_path, 1)
    with pytest.raises(Stop):
        fastckpt.verify(tmp_path, progress=stop)


def test_threads(tmp_path: Path) -> None:
    write_step(tmp_path, 1)
    assert fastckpt.verify(tmp_path, threads=1).ok
    assert fastckpt.verify(tmp_path, threads=7).ok
    with pytest.raises(ValueError, match="threads must be at least 1, not 0"):
        fastckpt.verify(tmp_path, threads=0)


def test_verifying_imports_no_torch() -> None:
    with tempfile.TemporaryDirectory() as directory:
        write_step(Path(directory), 1)
        script = (
            "import sys, fastckpt\n"
            "assert fastckpt.verify(sys.argv[1]).ok\n"
            "heavy = {'torch', 'numpy', 'rich', 'typer'} & set(sys.modules)\n"
            "assert not heavy, heavy\n"
        )
        subprocess.run([sys.executable, "-c", script, directory], check=True, timeout=200)
