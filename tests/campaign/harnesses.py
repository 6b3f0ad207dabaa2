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
    "legacy": 20_000_000,
    "pickle": 20_000_000,
    "salvage": 20_000_000,
    "state_roundtrip": 1_000_000,
    "tensors": 20_000_000,
    "zip_index": 20_000_000,
}
#: How files are saved, kept and deleted. What was tested of an earlier way counts for nothing any more:
#: since 2, names are random and one's own, savers share a lock, who deletes looks again, links are kept.
PROTOCOL = 2
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
        protocol: The first protocol whose cases count; 1 for what does not depend on it.
    """

    name: str
    run: Run
    batch: int
    goal: int
    protocol: int = 1


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
            f"power-cuts-{kind}-{file_system}",
            _power_cuts(f"run_{kind}", file_system),
            n,
            10_000,
            PROTOCOL,
        )
        for kind in ("files", "steps", "managers", "copies", "foreign")
        for file_system, n in (("ext4", 400), ("xfs", 400), ("btrfs", 400))
    ),
    Harness("simulated-power-cuts", _simulated, 100_000, 1_000_000, PROTOCOL),
    Harness("flipped-bits", _of_module(f"{_FAULTS}.bit_flips"), 200_000, 9_000_000),
    Harness("sector-damage", _of_module(f"{_FAULTS}.sector_damage"), 20_000, 1_000_000),
    Harness("truncations", _of_module(f"{_FAULTS}.truncation"), 2_000, 10_000),
    Harness("random-kills", _of_module(f"{_FAULTS}.random_kills"), 300, 10_000, PROTOCOL),
    Harness("crashes-everywhere", _of_module(f"{_FAULTS}.crash_everywhere"), 300, 10_000, PROTOCOL),
    Harness("errors-everywhere", _of_module(f"{_FAULTS}.errors_everywhere"), 500, 20_000, PROTOCOL),
    Harness(
        "managers-everywhere", _of_module(f"{_FAULTS}.manager_everywhere"), 500, 10_000, PROTOCOL
    ),
    Harness("short-writes", _of_module(f"{_FAULTS}.short_writes"), 200, 5_000, PROTOCOL),
    Harness("fsync-errors", _of_module(f"{_FAULTS}.fsync_errors"), 60, 1_000, PROTOCOL),
    Harness("read-errors", _of_module(f"{_FAULTS}.read_errors"), 60, 1_000),
    Harness("shut-downs", _of_module(f"{_FAULTS}.shut_downs"), 50, 1_000, PROTOCOL),
    Harness("full-disks", _of_module(f"{_FAULTS}.full_disks"), 100, 5_000, PROTOCOL),
    Harness("mixed-steps", _of_module(f"{_FAULTS}.mixed_steps"), 300, 20_000, PROTOCOL),
    Harness("changing-tensors", _of_module(f"{_FAULTS}.changing_tensors"), 200, 10_000, PROTOCOL),
    Harness("forks", _of_module(f"{_FAULTS}.forks"), 200, 5_000, PROTOCOL),
    Harness("shared-paths", _of_module(f"{_FAULTS}.shared_paths"), 100, 5_000, PROTOCOL),
    Harness("shared-steps", _of_module(f"{_FAULTS}.shared_steps"), 100, 5_000, PROTOCOL),
    Harness(
        "replaced-while-read", _of_module(f"{_FAULTS}.replaced_while_read"), 500, 20_000, PROTOCOL
    ),
    Harness("moved-directories", _of_module(f"{_FAULTS}.moved_directories"), 100, 5_000, PROTOCOL),
    Harness("links", _of_module(f"{_FAULTS}.links"), 500, 20_000, PROTOCOL),
    Harness("salvaged-files", _of_module(f"{_FAULTS}.salvaged_files"), 300, 10_000),
    Harness("same-verdict", _of_module("tests.property.same_verdict"), 5_000, 1_000_000),
    Harness("hostile-json", _of_module("tests.property.hostile_json"), 5_000, 1_000_000),
    Harness("hostile-headers", _of_module("tests.property.hostile_headers"), 5_000, 1_000_000),
    *(
        Harness(
            f"fuzz-{target}",
            partial(_fuzz, target),
            _ANY_NUMBER,
            goal,
            PROTOCOL if target == "crash_plan" else 1,
        )
        for target, goal in _FUZZ_GOALS.items()
    ),
]
