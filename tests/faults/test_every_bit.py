"""Every single bit of a file and of a step, flipped: found each time, and no other tensor is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults.damage import (
    damaged_copies,
    fast_directory,
    flip_every_bit,
    golden,
    outcome_of_torch,
    smallest,
)
from tests.faults.harness import Tally
from tests.specimens import assert_same, quiet

import fastckpt

STEP = 3
META = {"step": STEP, "val_bpb": 0.75, "loader": [0, None]}
OPTIMIZER = {"lr": 0.5, "betas": (0.9, 0.95)}


@pytest.mark.slow
def test_every_bit_of_a_small_file_of_torch() -> None:
    with damaged_copies("smallest", "torch") as (data, path, judge):
        for case in flip_every_bit(path, data):
            judge.look(case)
    assert judge.tally.cases == 8 * len(data)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_bit_of_a_model_and_what_torch_makes_of_it() -> None:
    """Where torch.load gives another tensor and no error, fastckpt.load has an error each time."""
    torch_says = Tally()
    with damaged_copies("golden", "fastckpt") as (data, path, judge):
        expected = golden()
        for case in flip_every_bit(path, data):
            judge.look(case)
            torch_says.count(outcome_of_torch(path, expected))
    print(f"torch {torch.__version__}: {dict(torch_says.outcomes)} of {torch_says.cases} flips")
    assert judge.tally.cases == torch_says.cases == 8 * len(data)
    # The bytes of the tensors alone: torch compares them with nothing.
    payload_nbytes = sum(tensor.nbytes for tensor in expected.values())
    assert torch_says.outcomes["silent"] >= 8 * payload_nbytes


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_bit_of_every_file_of_a_step() -> None:
    """Files of a step answer for each other too: a meta has no checksum inside."""
    tally = Tally()
    with quiet(), fast_directory() as directory:
        save_step(directory)
        paths = sorted(directory.iterdir())
        assert [path.suffix for path in paths] == [".json", ".json", ".pt", ".pt"]
        for path in paths:
            data = path.read_bytes()
            for number, case in enumerate(flip_every_bit(path, data)):
                # All bits of single archives are verified above: here, one of each byte will do.
                verify = path.suffix == ".json" or number % 8 == number // 8 % 8
                look_at_step(directory, case, tally, verify=verify)
        assert tally.cases == 8 * sum(path.stat().st_size for path in paths)
        assert fastckpt.verify(directory).ok
    print(dict(sorted(tally.outcomes.items())))
    assert tally.failures == []
    # Damage that no loader needs to mind, and damage that it must.
    assert tally.outcomes["load: same"] > 0
    assert tally.outcomes["load: ChecksumError"] > 0
    assert tally.outcomes["load: FormatError"] > 0


def save_step(directory: Path, **changes: Any) -> None:
    model = smallest() | changes
    fastckpt.save_checkpoint(directory, STEP, model, OPTIMIZER, META)


def look_at_step(directory: Path, case: str, tally: Tally, *, verify: bool = True) -> None:
    """Verify and load a step one of whose files is damaged."""
    if verify and fastckpt.verify(directory).ok:
        tally.fail(f"{case}: verify finds nothing")
        return
    try:
        found: Any = fastckpt.load_checkpoint(directory, STEP, "cpu", load_optimizer=True)
    except fastckpt.CheckpointError as error:
        result = type(error).__name__
        if str(directory) not in str(error):
            tally.fail(f"{case}: an error that names no file: {error!r}")
            return
    except Exception as error:
        tally.fail(f"{case}: {error!r}")
        return
    else:
        result = "same"
        try:
            assert_same(found, (smallest(), OPTIMIZER, META))
        except AssertionError as difference:
            tally.fail(f"{case}: loaded something else: {difference}")
            return
    tally.count("verified and loaded" if verify else "loaded")
    tally.outcomes[f"load: {result}"] += 1


def test_the_judges_see_a_silent_change(tmp_path: Path) -> None:
    """A test that would not notice a changed tensor shows nothing: so it is given one."""
    save_step(tmp_path, step=8)
    tally = Tally()
    look_at_step(tmp_path, "nothing is damaged", tally)
    look_at_step(tmp_path, "another save", tally, verify=False)
    assert tally.failures == [
        "nothing is damaged: verify finds nothing",
        "another save: loaded something else: object[0]['step']",
    ]
