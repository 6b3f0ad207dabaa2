"""The random number states of this process's rank, which may stand in a file of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fastckpt import _native
from fastckpt._archive.load import load
from fastckpt._steps.checkpoint_names import CheckpointName
from fastckpt.errors import CheckpointError, FormatError
from fastckpt.training.ranks import rank_and_world_size

from .report import Report


def rng_states_of_rank(
    contents: Mapping[str, Any], path: str, report: Report
) -> Mapping[str, Any] | None:
    """Return the RNG states of this process's rank; note why, if it has none."""
    rank, world_size = rank_and_world_size()
    states = contents.get("rng_states")
    if states is None:
        report.skip("RNG", "the checkpoint has no states for it")
        return None
    if not isinstance(states, Mapping):
        report.skip(
            "RNG", f"the checkpoint has a {type(states).__name__} in the place of its states"
        )
        return None
    saved_by = states.get("world_size", 1)
    if saved_by != world_size:
        report.skip(
            "RNG of all ranks",
            f"{saved_by} ranks have saved, and {world_size} resume: no run of so many ranks would "
            "have continued with these numbers",
        )
    if rank == 0:
        return states
    if not {"global_step", "epoch"} <= contents.keys():
        report.skip("RNG", f"only a CheckpointManager's file has states of rank {rank}")
        return None
    name = CheckpointName(contents["global_step"], contents["epoch"], rank)
    own = os.path.join(os.path.dirname(path), str(name))
    try:
        return _read_rank_file(own, path)
    except (FileNotFoundError, CheckpointError) as error:
        report.skip("RNG", f"the states of rank {rank} cannot be read: {error}")
        return None


def _read_rank_file(own: str, path: str) -> Mapping[str, Any]:
    if _save_id(own) != _save_id(path):
        raise FormatError(f"{own} is of another save than {path}", path=own)
    found = load(own, map_location="cpu", weights_only=True)
    states = found.get("rng_states") if isinstance(found, dict) else None
    if not isinstance(states, dict):
        raise FormatError(
            f"{own} has no RNG states: a CheckpointManager did not write it", path=own
        )
    return states


def _save_id(path: str) -> int:
    mark = _native.Archive.open(path).save_mark
    return 0 if mark is None else mark.save_id
