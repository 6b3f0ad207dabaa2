"""`make bench`: save, load and verify beside torch, safetensors, DCP and what the disk can do.

Contenders take turns in one run. Each table says medians, the spread over the rounds, and ratios;
losses are printed like wins. Nothing here is a test: machines differ.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as distributed_save

import fastckpt
from benchmarks import fio, machine
from benchmarks.measure import CannotMeasureError, Contender, Group, Result, Target, measure, table

StateDict = dict[str, torch.Tensor]

# Sizes of a GPT's tensors, one embedding to several matrices, repeated until there is enough.
_TENSOR_NUMELS = (12 << 20, 4 << 20, 4 << 20, 1 << 20, 768)
_SMALL_TENSORS = 10_000
_SMALL_NUMEL = 256
# Files of the durable group that are there at one time, with room for DCP's.
_FILES_AT_ONCE = 5


def make_state_dict(nbytes: int) -> StateDict:
    """Make a float32 state dict of about `nbytes` bytes, random once and then repeated."""
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(max(_TENSOR_NUMELS), generator=generator)
    state: StateDict = {}
    left = nbytes // 4
    while left > 0:
        numel = min(_TENSOR_NUMELS[len(state) % len(_TENSOR_NUMELS)], left)
        state[f"layers.{len(state)}.weight"] = block[:numel].clone()
        left -= numel
    return state


def make_small_state_dict() -> StateDict:
    """Make a state dict of many small tensors."""
    return {
        f"layers.{n}.bias": torch.full((_SMALL_NUMEL,), float(n)) for n in range(_SMALL_TENSORS)
    }


def nbytes_of(state: StateDict) -> int:
    """Return the bytes of all tensors."""
    return sum(tensor.nbytes for tensor in state.values())


def check_equal(loaded: StateDict, state: StateDict) -> None:
    """A contender that loads something else has no time."""
    if loaded.keys() != state.keys():
        raise AssertionError("the keys that were loaded are not those that were saved")
    for name, tensor in state.items():
        if not torch.equal(loaded[name], tensor):
            raise AssertionError(f"{name} was loaded with other values")


def settle(path: Path) -> Callable[[], None]:
    """Before a save: the file is new, and the disk has nothing of the contender before to do."""

    def prepare() -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        os.sync()

    return prepare


def torch_save_durable(state: StateDict, path: Path) -> None:
    torch.save(state, path)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def dcp_save(state: StateDict, path: Path) -> None:
    with warnings.catch_warnings():
        # It says that one process is enough for it.
        warnings.simplefilter("ignore")
        writer = FileSystemWriter(path, thread_count=8)
        distributed_save(state, storage_writer=writer, no_dist=True)


def durable_group(state: StateDict, directory: Path, fio_absent: str | None) -> Group:
    size = nbytes_of(state)
    paths = {name: directory / f"durable-{name}" for name in ("torch.pt", "fast.pt", "fio", "dcp")}
    contenders = [
        Contender(
            "torch.save + fsync",
            lambda: torch_save_durable(state, paths["torch.pt"]),
            size,
            settle(paths["torch.pt"]),
        ),
        Contender(
            "fastckpt.save",
            lambda: fastckpt.save(state, paths["fast.pt"]),
            size,
            settle(paths["fast.pt"]),
        ),
        Contender(
            "DCP save, 8 threads",
            lambda: dcp_save(state, paths["dcp"]),
            size,
            settle(paths["dcp"]),
        ),
    ]
    if fio_absent is None:
        write = Contender(
            "fio write", lambda: fio.write(paths["fio"], size), size, settle(paths["fio"])
        )
        contenders.append(write)
    return Group(
        "save-durable",
        "Durable save (fsync before it returns)",
        contenders,
        [
            Target("fastckpt.save", "torch.save + fsync", 2.0),
            Target("fastckpt.save", "fio write", 0.85),
        ],
        ["DCP writes a directory of its own format, one file a thread; it fsyncs files"]
        + ([fio_absent] if fio_absent else []),
    )


def cached_group(state: StateDict, directory: Path, _: str | None) -> Group:
    size = nbytes_of(state)
    torch_path, fast_path = directory / "cached-torch.pt", directory / "cached-fast.pt"
    contenders = [
        Contender("torch.save", lambda: torch.save(state, torch_path), size, settle(torch_path)),
        Contender(
            "fastckpt.save(sync=False)",
            lambda: fastckpt.save(state, fast_path, sync=False),
            size,
            settle(fast_path),
        ),
    ]
    notes = []
    try:
        from safetensors.torch import save_file
    except ImportError:
        notes.append("safetensors is not installed")
    else:
        path = directory / "cached.safetensors"
        contenders.append(
            Contender("safetensors save_file", lambda: save_file(state, path), size, settle(path))
        )
    return Group(
        "save-cached",
        "Save into the page cache (no fsync; safetensors computes no checksums)",
        contenders,
        [Target("fastckpt.save(sync=False)", "safetensors save_file", 1.0)],
        notes,
    )


def warm_group(state: StateDict, directory: Path, _: str | None) -> Group:
    size = nbytes_of(state)
    path = directory / "warm.pt"
    torch.save(state, path)
    os.sync()
    check_equal(fastckpt.load(path), state)
    check_equal(fastckpt.load(path, mmap=True), state)

    def warmed() -> None:
        machine.warm(path)

    loaders: list[tuple[str, Callable[[], Any]]] = [
        ("torch.load", lambda: torch.load(path)),
        ("fastckpt.load", lambda: fastckpt.load(path)),
        ("fastckpt.load(mmap=True)", lambda: fastckpt.load(path, mmap=True)),
        ("torch.load(mmap=True)", lambda: torch.load(path, mmap=True)),
    ]
    contenders = [Contender(name, load, size, warmed) for name, load in loaders]
    notes = [
        "fastckpt checks every byte, the others none",
        "torch.load(mmap=True) reads nothing yet",
    ]
    try:
        from safetensors.torch import load_file, save_file
    except ImportError:
        notes.append("safetensors is not installed")
    else:
        other = directory / "warm.safetensors"
        save_file(state, other)
        os.sync()
        contenders.append(
            Contender(
                "safetensors load_file",
                lambda: load_file(other),
                size,
                lambda: machine.warm(other),
            )
        )
        notes.append("safetensors load_file maps the file, and reads nothing yet")
    targets = [
        Target("fastckpt.load", "torch.load", 2.5),
        Target("fastckpt.load(mmap=True)", "torch.load", 8.0),
    ]
    return Group("load-warm", "Load from the page cache", contenders, targets, notes)


def cold_group(state: StateDict, directory: Path, fio_absent: str | None) -> Group:
    size = nbytes_of(state)
    path = directory / "cold.pt"
    torch.save(state, path)
    os.sync()

    def cooled() -> None:
        share = machine.cool(path)
        if share > 0.01:
            raise CannotMeasureError(
                f"{share:.0%} of {path} stays in the page cache: nothing is cold here"
            )

    def verify_command() -> None:
        # As a user runs it, the start of Python included.
        command = [sys.executable, "-m", "fastckpt", "verify", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    contenders = [
        Contender("torch.load", lambda: torch.load(path), size, cooled),
        Contender("fastckpt.load", lambda: fastckpt.load(path), size, cooled),
        Contender("fastckpt.load(mmap=True)", lambda: fastckpt.load(path, mmap=True), size, cooled),
        Contender("fastckpt.verify", lambda: fastckpt.verify(path), size, cooled),
        Contender("fastckpt verify (command)", verify_command, size, cooled),
    ]
    if fio_absent is None:
        contenders.append(Contender("fio read", lambda: fio.read(path), size, cooled))
    return Group(
        "load-cold",
        "Load and verify from the disk (the file is not in the page cache, as mincore says)",
        contenders,
        [
            Target("fastckpt.load", "fio read", 0.85),
            Target("fastckpt.verify", "fio read", 0.85),
            Target("fastckpt verify (command)", "fio read", 0.85),
        ],
        ["the time of the command includes the start of Python; that of fio only its reads"]
        + ([fio_absent] if fio_absent else []),
    )


def small_group(_: StateDict, directory: Path, __: str | None) -> Group:
    state = make_small_state_dict()
    size = nbytes_of(state)
    path = directory / "small.pt"
    torch.save(state, path)
    check_equal(fastckpt.load(path), state)
    return Group(
        "load-small",
        f"Load of {_SMALL_TENSORS:,} tensors of {_SMALL_NUMEL * 4} bytes, from the page cache",
        [
            Contender("torch.load", lambda: torch.load(path), size),
            Contender("fastckpt.load", lambda: fastckpt.load(path), size),
            Contender("fastckpt.load(mmap=True)", lambda: fastckpt.load(path, mmap=True), size),
        ],
        [Target("fastckpt.load", "torch.load", 5.0)],
    )


def small_save_group(_: StateDict, directory: Path, __: str | None) -> Group:
    state = make_small_state_dict()
    torch_path, fast_path = directory / "small-torch.pt", directory / "small-fast.pt"
    return Group(
        "save-small",
        f"Save of {_SMALL_TENSORS:,} tensors of {_SMALL_NUMEL * 4} bytes, without fsync",
        [
            Contender("torch.save", lambda: torch.save(state, torch_path), nbytes_of(state)),
            Contender(
                "fastckpt.save(sync=False)",
                lambda: fastckpt.save(state, fast_path, sync=False),
                nbytes_of(state),
            ),
        ],
    )


GROUPS: dict[str, Callable[[StateDict, Path, str | None], Group]] = {
    "save-durable": durable_group,
    "save-cached": cached_group,
    "load-warm": warm_group,
    "load-cold": cold_group,
    "load-small": small_group,
    "save-small": small_save_group,
}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("--size", type=float, default=1.5, help="GB of tensors (default: 1.5)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default: 5)")
    parser.add_argument("--dir", type=Path, default=Path("build"), help="on the disk to measure")
    parser.add_argument("--only", action="append", choices=GROUPS, help="may be given again")
    parser.add_argument("--json", type=Path, help="write every measured value to this file")
    options = parser.parse_args(arguments)
    if options.size <= 0 or options.rounds < 1:
        parser.error("--size and --rounds must be positive")
    return options


def demand_space(directory: Path, nbytes: int) -> None:
    needed = _FILES_AT_ONCE * nbytes
    free = shutil.disk_usage(directory).free
    if free < needed:
        gb = f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free"
        raise SystemExit(
            f"error: {gb} in {directory}\nhint: give another --dir or a smaller --size"
        )


def header(info: machine.Machine, state: StateDict, rounds: int) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in info.versions.items())
    return (
        f"{nbytes_of(state) / 1e9:.2f} GB in {len(state)} tensors, {rounds} rounds, contenders in turn\n"
        f"{info.cores} cores ({info.cpu}), {info.memory_nbytes / 1e9:.0f} GB of memory, "
        f"{info.filesystem}, Linux {info.kernel}\n"
        f"{versions}; torch threads {torch.get_num_threads()}; fastckpt threads as it chooses\n"
    )


def run_group(
    name: str, state: StateDict, root: Path, rounds: int
) -> tuple[Group, list[Result]] | str:
    """Measure one group in a directory of its own; return why if that cannot be."""
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-", dir=root) as scratch:
        directory = Path(scratch)
        try:
            group = GROUPS[name](state, directory, fio.why_absent(directory))
            # What a contender needs: its tensors, and the page cache for a file.
            back_memory = partial(machine.back_memory, 2 * nbytes_of(state))
            return group, measure(
                group, rounds, back_memory, lambda text: print(text, file=sys.stderr)
            )
        except CannotMeasureError as error:
            return str(error)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    options.dir.mkdir(parents=True, exist_ok=True)
    root = options.dir.resolve()
    nbytes = int(options.size * 1e9)
    demand_space(root, nbytes)
    state = make_state_dict(nbytes)
    info = machine.describe(root)
    print(header(info, state, options.rounds))
    document: dict[str, Any] = {"machine": info.as_dict(), "nbytes": nbytes_of(state), "groups": {}}
    for name in options.only or GROUPS:
        outcome = run_group(name, state, root, options.rounds)
        if isinstance(outcome, str):
            print(f"### {name}: not measured\n\n- note: {outcome}\n", flush=True)
            continue
        group, results = outcome
        print("\n".join(table(group, results)), flush=True)
        document["groups"][name] = {result.name: result.seconds for result in results}
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
