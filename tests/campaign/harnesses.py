"""All harnesses of a campaign: what runs a batch, how large one is, how many cases are the goal.

A batch takes about a minute on two cores. The modules of the fault tests are imported when they are
first used: together they import torch and build a preloaded library.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from tests.faults.harness import Run, Tally

_REPOSITORY = Path(__file__).resolve().parents[2]
# Executions: twenty million of each parser; what writes and reads whole files is slower.
_FUZZ_GOALS = {
    "archive": 20_000_000,
    "crash_plan": 1_000_000,
    "layout_roundtrip": 5_000_000,
    "pickle": 20_000_000,
    "salvage": 20_000_000,
    "state_roundtrip": 1_000_000,
    "tensors": 20_000_000,
    "zip_index": 20_000_000,
}
_FUZZ_SECS = 60
# No batch of a fuzzer comes near this: it runs for its time.
_ANY_NUMBER = 10**9


@dataclass(frozen=True)
class Harness:
    """One harness.

    Attributes:
        name: Its name in the ledger.
        run: Runs a batch of so many cases with a seed.
        batch: Cases of a batch.
        goal: Cases that a campaign is to reach, over all its batches.
    """

    name: str
    run: Run
    batch: int
    goal: int


def _of_module(module: str, function: str = "run") -> Run:
    def run(seed: int, cases: int, directory: Path) -> Tally:
        found: Run = getattr(import_module(module), function)
        return found(seed, cases, directory)

    return run


def _power_cuts(function: str, file_system: str) -> Run:
    def run(seed: int, cases: int, directory: Path) -> Tally:
        found: Callable[..., Tally] = getattr(import_module("tests.faults.power.runs"), function)
        return found(seed, cases, directory, file_system)

    return run


def _simulated(seed: int, cases: int, directory: Path) -> Tally:
    """Run the simulated disk's own test for so many states."""
    name = "a_promised_save_or_a_newer_one_is_whole_after_every_power_cut"
    command = ["cargo", "test", "--release", "--locked", "--package", "fastckpt-core"]
    command += ["--test", "power", "--", "--exact", name, "--nocapture"]
    environment = {**os.environ, "FASTCKPT_STATES": str(cases), "FASTCKPT_SEED": str(seed)}
    done = subprocess.run(
        command, cwd=_REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    found = re.search(r"simulated power cuts: seed \d+, (\d+) states, (.*)", done.stdout)
    tally = Tally(cases=int(found[1]) if found else 0)
    for count, words in re.findall(r"(\d+) ([a-z ]+)", found[2] if found else ""):
        tally.outcomes[words] += int(count)
    if done.returncode or found is None:
        tally.failures.append(f"seed {seed}: {(done.stdout + done.stderr)[-3000:]}")
    return tally


def _fuzz(target: str, seed: int, cases: int, directory: Path) -> Tally:
    """Fuzz one target for a minute; libFuzzer draws its own seeds, and goes on from its corpus."""
    command = [".ci/fuzz", str(_FUZZ_SECS), target]
    done = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, check=False)
    found = re.search(rf"^{target}: (\d+) executions", done.stdout, re.MULTILINE)
    tally = Tally(cases=int(found[1]) if found else 0)
    if done.returncode or found is None:
        tally.failures.append(f"{target}: {(done.stdout + done.stderr)[-3000:]}")
    return tally


_FAULTS = "tests.faults"

HARNESSES: list[Harness] = [
    *(
        Harness(
            f"power-cuts-{kind}-{file_system}", _power_cuts(f"run_{kind}", file_system), n, 10_000
        )
        for kind in ("files", "steps", "managers", "copies", "foreign")
        for file_system, n in (("ext4", 400), ("xfs", 400), ("btrfs", 400))
    ),
    Harness("simulated-power-cuts", _simulated, 100_000, 1_000_000),
    Harness("flipped-bits", _of_module(f"{_FAULTS}.bit_flips"), 200_000, 9_000_000),
    Harness("sector-damage", _of_module(f"{_FAULTS}.sector_damage"), 20_000, 1_000_000),
    Harness("truncations", _of_module(f"{_FAULTS}.truncation"), 2_000, 10_000),
    Harness("random-kills", _of_module(f"{_FAULTS}.random_kills"), 300, 10_000),
    Harness("crashes-everywhere", _of_module(f"{_FAULTS}.crash_everywhere"), 300, 10_000),
    Harness("errors-everywhere", _of_module(f"{_FAULTS}.errors_everywhere"), 500, 20_000),
    Harness("managers-everywhere", _of_module(f"{_FAULTS}.manager_everywhere"), 500, 10_000),
    Harness("short-writes", _of_module(f"{_FAULTS}.short_writes"), 200, 5_000),
    Harness("fsync-errors", _of_module(f"{_FAULTS}.fsync_errors"), 60, 1_000),
    Harness("read-errors", _of_module(f"{_FAULTS}.read_errors"), 60, 1_000),
    Harness("shut-downs", _of_module(f"{_FAULTS}.shut_downs"), 50, 1_000),
    Harness("full-disks", _of_module(f"{_FAULTS}.full_disks"), 100, 5_000),
    Harness("mixed-steps", _of_module(f"{_FAULTS}.mixed_steps"), 300, 20_000),
    Harness("changing-tensors", _of_module(f"{_FAULTS}.changing_tensors"), 200, 10_000),
    Harness("forks", _of_module(f"{_FAULTS}.forks"), 200, 5_000),
    Harness("shared-paths", _of_module(f"{_FAULTS}.shared_paths"), 100, 5_000),
    Harness("shared-steps", _of_module(f"{_FAULTS}.shared_steps"), 100, 5_000),
    Harness("replaced-while-read", _of_module(f"{_FAULTS}.replaced_while_read"), 500, 20_000),
    Harness("moved-directories", _of_module(f"{_FAULTS}.moved_directories"), 100, 5_000),
    Harness("links", _of_module(f"{_FAULTS}.links"), 500, 20_000),
    Harness("salvaged-files", _of_module(f"{_FAULTS}.salvaged_files"), 300, 10_000),
    Harness("same-verdict", _of_module("tests.property.same_verdict"), 5_000, 1_000_000),
    Harness("hostile-json", _of_module("tests.property.hostile_json"), 5_000, 1_000_000),
    Harness("hostile-headers", _of_module("tests.property.hostile_headers"), 5_000, 1_000_000),
    *(
        Harness(f"fuzz-{target}", partial(_fuzz, target), _ANY_NUMBER, goal)
        for target, goal in _FUZZ_GOALS.items()
    ),
]
