"""Steps put together from the files of several saves: one of them whole, or none."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.faults.harness import Tally

import fastckpt
from fastckpt._steps.save_id import agreed

STEP = 10
_OTHER_STEP = 5
# The shards of the largest save.
_RANKS = 4
# What took part in a mixture: for each file of the step the name of a save, None where it is missing.
Choice = Mapping[str, str | None]


@dataclass(frozen=True)
class Save:
    """One save: who made it, and where its files are.

    Attributes:
        letter: Its name; it stands in each of its files.
        world_size: Number of its shards.
        step: Its step number; its files are taken for those of STEP all the same.
        has_id: Whether its files say which save they are of, and a manifest is there.
    """

    letter: str
    world_size: int
    step: int
    has_id: bool
    directory: Path

    def files(self) -> dict[str, Path]:
        """Return its files by the names that they have in the mixture."""
        there = [self.model, self.meta, *map(self.shard, range(self.world_size))]
        if self.has_id:
            there.append(self.manifest)
        own = f"{self.step:06d}"
        return {name: self.directory / name.replace(f"{STEP:06d}", own) for name in there}

    model = f"model_{STEP:06d}.pt"
    meta = f"meta_{STEP:06d}.json"
    manifest = f"manifest_{STEP:06d}.json"

    @staticmethod
    def shard(rank: int) -> str:
        """Return the name of a shard."""
        return f"optim_{STEP:06d}_rank{rank}.pt"


def make_saves(directory: Path) -> dict[str, Save]:
    """Make saves of one step by runs of 1, 2, 4 and again 2 ranks; one of another step; two of torch."""
    saves = [
        Save("A", 1, STEP, True, directory / "A"),
        Save("B", 2, STEP, True, directory / "B"),
        Save("C", 4, STEP, True, directory / "C"),
        Save("D", 2, STEP, True, directory / "D"),
        Save("E", 2, _OTHER_STEP, True, directory / "E"),
        Save("T", 2, STEP, False, directory / "T"),
        Save("U", 4, STEP, False, directory / "U"),
    ]
    for number, save in enumerate(saves, 1):
        save.directory.mkdir()
        write = _write_with_id if save.has_id else _write_as_nanochat
        write(save, number)
        assert fastckpt.verify(save.directory).ok
    return {save.letter: save for save in saves}


def _contents(save: Save, rank: int | None = None) -> dict[str, Any]:
    return {"save": save.letter, "rank": rank, "w": torch.full((8,), float(ord(save.letter)))}


def _write_with_id(save: Save, number: int) -> None:
    meta = {"save": save.letter}
    with agreed(1_000 + number, save.world_size):
        for rank in range(save.world_size):
            fastckpt.save_checkpoint(
                save.directory, save.step, _contents(save), _contents(save, rank), meta, rank=rank
            )


def _write_as_nanochat(save: Save, number: int) -> None:
    files = save.files()
    torch.save(_contents(save), files[save.model])
    for rank in range(save.world_size):
        torch.save(_contents(save, rank), files[save.shard(rank)])
    files[save.meta].write_text(json.dumps({"save": save.letter}))


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Put steps together at random, of two or three saves, with files missing."""
    generator = random.Random(seed)
    saves = make_saves(directory)
    tally = Tally()
    for case in range(cases):
        letters = generator.sample(sorted(saves), generator.choice([1, 2, 2, 3]))
        choice = _choose(generator, [saves[letter] for letter in letters])
        judge(directory / "mixture", choice, saves, f"seed {seed}, case {case}", tally)
    for save in saves.values():
        shutil.rmtree(save.directory)
    return tally


def _choose(generator: random.Random, saves: list[Save]) -> dict[str, str | None]:
    """Take most files from one save, so that some of the mixtures are nearly whole."""
    names = sorted({name for save in saves for name in save.files()})
    first = generator.choice(saves)
    others = generator.choice([0.1, 0.3, 1.0])
    choice: dict[str, str | None] = {}
    for name in names:
        save = generator.choice(saves) if generator.random() < others else first
        missing = generator.random() < 0.05
        choice[name] = save.letter if name in save.files() and not missing else None
    return choice


def all_of_two(one: Save, two: Save) -> Iterator[dict[str, str | None]]:
    """Yield all mixtures of two saves: each file of the one or the other, as far as it has that."""
    names = sorted({*one.files(), *two.files()})
    for picks in itertools.product((one, two), repeat=len(names)):
        yield {
            name: save.letter if name in save.files() else None
            for name, save in zip(names, picks, strict=True)
        }


def judge(
    directory: Path, choice: Choice, saves: Mapping[str, Save], case: str, tally: Tally
) -> None:
    """Make the mixture, look at it in every way, and say what came of it."""
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir()
    for name, letter in choice.items():
        if letter is not None:
            os.link(saves[letter].files()[name], directory / name)
    problems = list(_look(directory, choice, saves))
    if problems:
        tally.fail(f"{case}: {dict(choice)}: {'; '.join(problems)}")
    else:
        whole = whole_save(choice, saves)
        tally.count("refused" if whole is None else "loaded")
        if whole is not None:
            tally.outcomes[f"loaded {whole}"] += 1


def whole_save(choice: Choice, saves: Mapping[str, Save]) -> str | None:
    """Return the save of which the mixture has all that makes a step; more may be there."""
    letter = choice.get(Save.model)
    if letter is None or choice.get(Save.meta) is None:
        return None
    save = saves[letter]
    shards = {rank: choice.get(Save.shard(rank)) for rank in range(_RANKS)}
    if not save.has_id:
        ranks = _shards_without_id(shards, saves)
        return letter if ranks == list(range(len(ranks))) else None
    if any(shards[rank] != letter for rank in range(save.world_size)):
        return None
    manifest = choice.get(Save.manifest)
    if manifest is None:
        # Only the manifest ties the meta to the rest.
        return letter
    same_meta = choice[Save.meta] == letter
    return letter if manifest == letter and same_meta and save.step == STEP else None


def _shards_without_id(shards: Mapping[int, str | None], saves: Mapping[str, Save]) -> list[int]:
    """Return the ranks whose shards belong to a model that does not say which save it is of.

    Shards without an id do, and are taken at their word. So do shards of one save with an id, if
    there are no others: then somebody has written the model again.
    """
    letters = {rank: letter for rank, letter in shards.items() if letter is not None}
    plain = [rank for rank, letter in letters.items() if not saves[letter].has_id]
    if plain or len(set(letters.values())) != 1:
        return plain
    return list(letters)


def _look(directory: Path, choice: Choice, saves: Mapping[str, Save]) -> Iterator[str]:
    whole = whole_save(choice, saves)
    for rank in range(_RANKS):
        yield from _look_at_rank(directory, choice, saves, rank, whole)
    yield from _look_at_model(directory, choice, saves)
    yield from _look_for_step(directory, whole)
    report = fastckpt.verify(directory)
    if report.ok != (whole is not None):
        yield f"verify says {report.status.value}"


def _look_at_rank(
    directory: Path, choice: Choice, saves: Mapping[str, Save], rank: int, whole: str | None
) -> Iterator[str]:
    """Load with the shard of a rank: all of one save, or an error that names what is not."""
    has_shard = whole is not None and _has_shard(choice, saves, whole, rank)
    shards = 0 if whole is None else _count_shards(choice, saves, whole)
    if shards > 1:
        yield from _look_alone(directory, shards)
    try:
        found = fastckpt.load_checkpoint(
            directory, STEP, "cpu", load_optimizer=True, rank=rank, world_size=shards or None
        )
    except (fastckpt.CheckpointError, FileNotFoundError) as error:
        if has_shard:
            yield f"rank {rank} is refused: {error}"
        yield from _look_at_error(error, directory, choice, saves)
        return
    if not has_shard:
        yield f"rank {rank} is loaded: {found}"
    model, optimizer, meta = found
    parts = {model["save"], optimizer["save"]}
    if choice.get(Save.manifest) is not None and saves[model["save"]].has_id:
        parts.add(meta["save"])
    parts = {letter for letter in parts if saves[letter].has_id}
    if len(parts) > 1 or optimizer["rank"] != rank:
        yield f"rank {rank} has parts of several saves: {found}"
    if choice[Save.model] != model["save"] or choice[Save.shard(rank)] != optimizer["save"]:
        yield f"rank {rank} has what is not there: {found}"


def _look_alone(directory: Path, shards: int) -> Iterator[str]:
    """Load the part of one rank as if it were all: refused, and not as if anything were damaged."""
    try:
        found = fastckpt.load_checkpoint(directory, STEP, "cpu", load_optimizer=True)
    except ValueError as error:
        if f"world_size={shards}" not in str(error):
            yield f"a refusal that does not name the number of shards, {shards}: {error}"
    else:
        yield f"one of {shards} shards is loaded as if it were all: {found}"


def _count_shards(choice: Choice, saves: Mapping[str, Save], whole: str) -> int:
    if saves[whole].has_id:
        return saves[whole].world_size
    shards = {rank: choice.get(Save.shard(rank)) for rank in range(_RANKS)}
    return max(_shards_without_id(shards, saves), default=-1) + 1


def _has_shard(choice: Choice, saves: Mapping[str, Save], whole: str, rank: int) -> bool:
    letter = choice.get(Save.shard(rank))
    if letter is None:
        return False
    if saves[whole].has_id:
        return letter == whole or (rank >= saves[whole].world_size and not saves[letter].has_id)
    return rank in _shards_without_id({r: choice.get(Save.shard(r)) for r in range(_RANKS)}, saves)


def _look_at_error(
    error: Exception, directory: Path, choice: Choice, saves: Mapping[str, Save]
) -> Iterator[str]:
    """A refusal names a file that is missing, or of another save than the model."""
    path = getattr(error, "filename", None) or getattr(error, "path", None) or ""
    name = os.path.basename(path)
    if os.path.dirname(path) != str(directory) or name not in str(error):
        yield f"an error that names no file: {error!r}"
    elif name in {Save.model, Save.manifest}:
        # The model that is missing; the manifest that is of another step, or of another save.
        return
    elif choice.get(name) is not None and choice.get(name) == choice.get(Save.model):
        yield f"an error that names a file of the same save: {error}"


def _look_at_model(directory: Path, choice: Choice, saves: Mapping[str, Save]) -> Iterator[str]:
    """Load without optimizer: the shards do not matter then."""
    alone = {name: choice.get(name) for name in (Save.model, Save.meta, Save.manifest)}
    letter = alone[Save.model]
    shards = {} if letter is None else dict.fromkeys(map(Save.shard, range(_RANKS)), letter)
    expected = whole_save({**alone, **shards}, saves)
    try:
        model, optimizer, meta = fastckpt.load_checkpoint(directory, STEP, "cpu")
    except (fastckpt.CheckpointError, FileNotFoundError) as error:
        if expected is not None:
            yield f"the model is refused: {error}"
        return
    if expected is None or optimizer is not None:
        yield f"the model is loaded: {model}, {meta}"
    elif (model["save"], meta["save"]) != (expected, choice[Save.meta]):
        yield f"another model is loaded: {model}, {meta}"


def _look_for_step(directory: Path, whole: str | None) -> Iterator[str]:
    try:
        found = fastckpt.find_last_good_step(directory)
    except FileNotFoundError as error:
        if whole is not None:
            yield f"no good step is found: {error}"
        return
    if whole is None or found != STEP:
        yield f"step {found} is found good"
