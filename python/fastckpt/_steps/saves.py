"""Find the save of a step that is whole: the visible one, or an earlier one whose files were kept.

Every archive of a save carries the same save id and the number of optimizer shards; the manifest
ties the meta to them. A save that replaces files of a step gives each a second, hidden name first,
and the hidden names are removed once the new save is whole. So at any moment one save of the step is
whole, and this module never picks parts of two.

Archives without a save id (those of torch.save) are taken as they are: with a model, a meta and
shards 0 to the highest without a gap, their step is whole. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from fastckpt.errors import CheckpointError, ChecksumError, FormatError

from .opened import OpenedFiles
from .parts import NO_SAVE_ID, Part
from .problems import Problem, Wording
from .survey import Listing, StepFiles, StepName, absent_ranks, survey_step

# A reader that meets a running save looks again. Each look takes less time than the fsyncs of a
# save, so the second one mostly succeeds; the limit is for a directory that never stops changing.
_ATTEMPTS = 100


@dataclass(frozen=True)
class StepSave:
    """One save of a step, all of whose files that were asked for are there.

    Attributes:
        step: The step.
        save_id: Which save; NO_SAVE_ID if its archives do not say.
        shards: Number of its optimizer shards; None if its archives do not say.
        model: The model.
        meta: Path of the meta.
        meta_bytes: Its contents.
        manifest: Path of the manifest; None if it is not there.
        optimizer: Paths of the shards by rank; empty if they were not asked for.
        shard: The shard of the rank that was asked for.
    """

    step: int
    save_id: int
    shards: int | None
    model: Part
    meta: str
    meta_bytes: bytes
    manifest: str | None
    optimizer: dict[int, str]
    shard: Part | None = None

    def paths(self) -> list[str]:
        """Return the paths of its files: model, meta, manifest, shards by rank."""
        manifest = [] if self.manifest is None else [self.manifest]
        shards = [self.optimizer[rank] for rank in sorted(self.optimizer)]
        return [self.model.path, self.meta, *manifest, *shards]


def read_save(
    directory: str,
    step: int,
    *,
    optimizer: bool,
    rank: int | None = None,
    check_shards: Callable[[int], None] | None = None,
    listing: Listing | None = None,
) -> StepSave:
    """Open the newest whole save of a step.

    Args:
        directory: Where the files are.
        step: The step.
        optimizer: Whether the shards of all ranks must be there; otherwise model and meta are enough.
        rank: Whose shard to open: it must be there, and of the same save.
        check_shards: Called with the number of the save's shards before that of `rank` is looked for. What it
            raises is raised.
        listing: The listing of the directory, for callers that look at one step after the other.

    Raises:
        IncompleteCheckpointError: A file is missing, or of another save.
        ChecksumError: The meta, or an archive, is not what the manifest says.
        FormatError: A file is damaged.
        FileNotFoundError: There are no files of this step.
        OSError: A file cannot be read.
    """
    seen: object = None
    for attempt in range(_ATTEMPTS):
        files = survey_step(directory, step) if listing is None else listing.step(step)
        saves = StepSaves(directory, files, hold=rank)
        try:
            return saves.newest_whole(optimizer=optimizer, rank=rank, check_shards=check_shards)
        except (CheckpointError, FileNotFoundError):
            # Two equal looks are the truth; otherwise a save is under way, and its state between two
            # renames was seen.
            state = saves.state()
            if state == seen or attempt == _ATTEMPTS - 1:
                raise
            seen = state
    raise AssertionError  # pragma: no cover - the last attempt returns or raises


class StepSaves:
    """The saves of one step that its visible and its kept files belong to.

    Args:
        directory: Where the files are.
        files: Their names, as listed a moment ago.
        hold: Rank whose shard stays open; those of other ranks are closed once their id is known.
    """

    def __init__(self, directory: str, files: StepFiles, *, hold: int | None = None) -> None:
        self._directory = directory
        self._files = files
        self._words = Wording(directory, files)
        self._opened = OpenedFiles(directory, files, hold=hold)

    def newest_whole(
        self,
        *,
        optimizer: bool,
        rank: int | None = None,
        check_shards: Callable[[int], None] | None = None,
    ) -> StepSave:
        """Return the newest save that has what is asked for; for the errors see `read_save`."""
        save_id = self._newest_whole(optimizer=optimizer)
        name = self._opened.find_model(save_id)
        if name is not None:
            model = self._opened.part(name)
            if check_shards is not None:
                check_shards(self._count_shards(save_id, model))
            if rank is not None:
                # Not part of the choice: all ranks have to choose the same save.
                for problem in self._rank_problems(save_id, model, rank):
                    raise self._words.incomplete(problem)
        return self._assemble(save_id, optimizer=optimizer, rank=rank)

    def _newest_whole(self, *, optimizer: bool) -> int:
        # Not kept in a variable: through its traceback, the exception would hold every archive open.
        with suppress(CheckpointError, FileNotFoundError):
            return self._visible_whole(optimizer)
        kept = [self._kept_whole(save_id, optimizer) for save_id in sorted(self._files.kept)]
        whole = [save for save in kept if save is not None]
        if whole:
            # The newest kept save is the one with the fewest files replaced since.
            return max(whole, key=lambda save: (self._count_visible(save), save.save_id)).save_id
        return self._visible_whole(optimizer)

    def _visible_whole(self, optimizer: bool) -> int:
        """Return the save of the visible model, if it is whole; else raise what is wrong with it."""
        if self._files.model is None:
            raise self._words.missing_model()
        save_id = self._opened.part(self._files.model).save_id
        for problem in self._problems(save_id, optimizer=optimizer):
            raise self._words.incomplete(problem)
        return save_id

    def _kept_whole(self, save_id: int, optimizer: bool) -> StepSave | None:
        """Return a save of which the model is kept, if it is whole."""
        model = self._files.kept[save_id].model
        try:
            if model is None or self._opened.part(model).save_id != save_id:
                return None
            if any(self._problems(save_id, optimizer=optimizer)):
                return None
            return self._assemble(save_id, optimizer=optimizer, rank=None)
        except (CheckpointError, FileNotFoundError):
            # Damaged, or removed by another rank; the error will say what is wrong with the visible save.
            return None

    def state(self) -> object:
        """Return what was seen, for comparison with a later look."""
        return self._opened.state()

    def problems(self) -> list[Problem]:
        """Return every reason why the visible save is not whole, the shards of all ranks included."""
        if self._files.model is None:
            return list(self._words.without_model())
        return list(self._problems(self._opened.part(self._files.model).save_id, optimizer=True))

    def _problems(self, save_id: int, *, optimizer: bool) -> Iterator[Problem]:
        model = self._opened.find_model(save_id)
        if model is None:
            yield self._words.problem(StepName("model", self._files.step))
            return
        if optimizer:
            yield from self._shard_problems(save_id, self._opened.part(model))
        yield from self._meta_problems(save_id)

    def _shard_problems(self, save_id: int, model: Part) -> Iterator[Problem]:
        shards = self._count_shards(save_id, model)
        if save_id == NO_SAVE_ID:
            there = set(self._opened.shards_without_id())
        else:
            ranks = self._opened.ranks(save_id)
            there = {
                r for r in ranks if r < shards and self._opened.find_shard(save_id, r) is not None
            }
        absent, more = absent_ranks(there, shards)
        for rank in absent:
            yield self._shard_problem(save_id, shards, rank)
        if more:
            yield self._words.more_shards(more)

    def _count_shards(self, save_id: int, model: Part) -> int:
        """Return how many shards a save has: as its model says, else by the highest rank that has one."""
        if save_id != NO_SAVE_ID:
            return model.shards
        return max(self._opened.shards_without_id(), default=-1) + 1

    def _rank_problems(self, save_id: int, model: Part, rank: int) -> Iterator[Problem]:
        """Look for the shard of one rank, which may lie beyond those that the save counts."""
        if self._opened.shard_of(save_id, model, rank) is None:
            yield self._shard_problem(save_id, model.shards, rank)

    def _shard_problem(self, save_id: int, shards: int, rank: int) -> Problem:
        name = StepName("optimizer", self._files.step, rank)
        is_unmarked = save_id != NO_SAVE_ID and self._opened.is_unmarked_shard(rank)
        return self._words.problem(name, shards, is_unmarked=is_unmarked)

    def _meta_problems(self, save_id: int) -> Iterator[Problem]:
        name = StepName("meta", self._files.step)
        manifest = self._opened.find_manifest(save_id)
        if manifest is None and save_id != NO_SAVE_ID and self._files.manifest is not None:
            if not self._opened.keeps_meta(save_id):
                yield self._words.problem(StepName("manifest", self._files.step))
            return
        if self._opened.find_meta(save_id) is not None:
            return
        if manifest is not None and manifest == self._files.manifest and self._files.meta:
            # A save makes its model visible after its meta, so this meta was changed since.
            raise self._words.changed_meta(manifest)
        yield self._words.problem(name)

    def _assemble(self, save_id: int, *, optimizer: bool, rank: int | None) -> StepSave:
        """Assemble a save that has no problems."""
        model_name = self._opened.find_model(save_id)
        meta = self._opened.find_meta(save_id)
        if model_name is None or meta is None:
            raise AssertionError
        model = self._opened.part(model_name)
        manifest = self._opened.find_manifest(save_id)
        shards: dict[int, str] = {}
        if optimizer and save_id == NO_SAVE_ID:
            shards = self._opened.shards_without_id()
        elif optimizer:
            found = {r: self._opened.find_shard(save_id, r) for r in range(model.shards)}
            shards = {rank: name for rank, name in found.items() if name is not None}
        shard = None
        if rank is not None:
            shard_name = self._opened.shard_of(save_id, model, rank)
            shard = None if shard_name is None else self._opened.part(shard_name)
        parts = [model, *map(self._opened.part, shards.values()), *([shard] if shard else [])]
        if manifest is not None:
            self._compare_with_manifest(manifest, parts, model)
        directory = self._directory
        return StepSave(
            step=self._files.step,
            save_id=save_id,
            shards=None if save_id == NO_SAVE_ID else model.shards,
            model=model,
            meta=os.path.join(directory, meta[0]),
            meta_bytes=meta[1],
            manifest=None if manifest is None else os.path.join(directory, manifest),
            optimizer={r: os.path.join(directory, name) for r, name in shards.items()},
            shard=shard,
        )

    def _compare_with_manifest(self, name: str, parts: list[Part], model: Part) -> None:
        manifest = self._opened.manifest(name)
        path = os.path.join(self._directory, name)
        if manifest.shards != model.shards:
            raise FormatError(
                f"{path} is damaged: it counts {manifest.shards} optimizer shards, and "
                f"{model.path} {model.shards}",
                path=path,
            )
        described = {file.name: (file.nbytes, file.content_hash) for file in manifest.files}
        own = [model.own_name]
        if manifest.shards:
            own.append(str(StepName("optimizer", self._files.step, 0)))
        if sorted(described) != sorted(own) or len(manifest.files) != len(own):
            raise FormatError(
                f"{path} is damaged: it describes {', '.join(described) or 'no files'}, and "
                f"{' and '.join(own)} are those of its save",
                path=path,
            )
        for part in parts:
            found = (part.nbytes, part.content_hash)
            if described.get(part.own_name, found) != found:
                raise ChecksumError(
                    f"{part.path} is not the file that {path} describes: size or hash differ",
                    path=part.path,
                )

    def _count_visible(self, save: StepSave) -> int:
        return sum(not os.path.basename(path).startswith(".") for path in save.paths())
