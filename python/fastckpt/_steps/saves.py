"""Which save of a step is whole: the one that is visible, or one before it whose files were kept.

Every archive of a save carries the same save id and the number of optimizer shards; the manifest
ties the meta to them. A save that replaces files of a step gives each a second, hidden name first,
and the hidden names go once the new save is whole. So at any moment one save of the step is whole,
and what this module picks is never parts of two.

Archives without a save id (those of torch.save) are taken at their word: with a model, a meta and
shards 0 to the highest without a gap, their step is whole. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from fastckpt._contents.small_file import META_NBYTES_MAX, read_small_file
from fastckpt.errors import CheckpointError, ChecksumError, FormatError

from .manifest import Manifest, read_manifest
from .parts import NO_SAVE_ID, Part, open_part, own_name
from .problems import Problem, Wording
from .survey import StepFiles, StepName, absent_ranks, parse_name, survey_steps

# A reader that meets a running save looks again. Each look takes less time than the fsyncs of a
# save, so the second mostly succeeds; the limit is for a directory that changes without end.
_ATTEMPTS = 100


@dataclass(frozen=True)
class StepSave:
    """One save of a step, all of whose files that were asked for are there.

    Attributes:
        step: The step.
        save_id: Which save, NO_SAVE_ID if its archives do not say.
        shards: Number of its optimizer shards, None if its archives do not say.
        model: The model.
        meta: Path of the meta.
        meta_bytes: Its contents.
        manifest: Path of the manifest, None if there is none.
        optimizer: Paths of the shards by rank; empty where they were not asked for.
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
        """Paths of its files: model, meta, manifest, shards by rank."""
        manifest = [] if self.manifest is None else [self.manifest]
        shards = [self.optimizer[rank] for rank in sorted(self.optimizer)]
        return [self.model.path, self.meta, *manifest, *shards]


def read_save(directory: str, step: int, *, optimizer: bool, rank: int | None = None) -> StepSave:
    """Open the newest whole save of a step.

    Args:
        directory: Where the files are.
        step: The step.
        optimizer: Whether the shards of all ranks have to be there; else model and meta will do.
        rank: Whose shard to open: it has to be there, and of the same save.

    Raises:
        IncompleteCheckpointError: A file is missing, or of another save.
        ChecksumError: The meta, or an archive, is not what the manifest says.
        FormatError: A file is damaged.
        FileNotFoundError: There is nothing of this step.
        OSError: A file cannot be read.
    """
    seen: object = None
    for attempt in range(_ATTEMPTS):
        files = survey_steps(directory).get(step, StepFiles(step))
        saves = StepSaves(directory, files, hold=rank)
        try:
            return saves.newest_whole(optimizer=optimizer, rank=rank)
        except (CheckpointError, FileNotFoundError):
            # The same twice is how things stand; else a save is under way, and its state between
            # two renames was seen.
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
        self._hold = hold
        self._words = Wording(directory, files)
        self._parts: dict[str, Part] = {}
        self._manifests: dict[str, Manifest] = {}
        self._metas: dict[str, bytes] = {}

    def newest_whole(self, *, optimizer: bool, rank: int | None = None) -> StepSave:
        """Return the newest save that has what is asked for; for the errors see `read_save`."""
        save_id = self._newest_whole(optimizer=optimizer)
        if rank is not None:
            # Not part of the choice: all ranks have to choose the same save.
            model = self._find(save_id, lambda files: files.model)
            for problem in (
                () if model is None else self._rank_problems(save_id, self.part(model), rank)
            ):
                raise self._words.incomplete(problem)
        return self._assemble(save_id, optimizer=optimizer, rank=rank)

    def _newest_whole(self, *, optimizer: bool) -> int:
        # No exception is kept in a variable: through its traceback it would hold every archive open.
        with suppress(CheckpointError, FileNotFoundError):
            return self._visible_whole(optimizer)
        kept = [self._kept_whole(save_id, optimizer) for save_id in sorted(self._files.kept)]
        whole = [save for save in kept if save is not None]
        if whole:
            # The kept save of which the fewest files have been replaced since is the newest.
            return max(whole, key=lambda save: (self._count_visible(save), save.save_id)).save_id
        return self._visible_whole(optimizer)

    def _visible_whole(self, optimizer: bool) -> int:
        """Return the save of the visible model, if it is whole; else raise what is wrong with it."""
        if self._files.model is None:
            raise self._words.missing_model()
        save_id = self.part(self._files.model).save_id
        for problem in self._problems(save_id, optimizer=optimizer):
            raise self._words.incomplete(problem)
        return save_id

    def _kept_whole(self, save_id: int, optimizer: bool) -> StepSave | None:
        """Return a save of which the model is kept, if it is whole."""
        model = self._files.kept[save_id].model
        try:
            if model is None or self.part(model).save_id != save_id:
                return None
            if any(self._problems(save_id, optimizer=optimizer)):
                return None
            return self._assemble(save_id, optimizer=optimizer, rank=None)
        except CheckpointError:
            # Damaged; what is wrong with the visible save is what will be said.
            return None

    def problems(self) -> list[Problem]:
        """Return all that keeps the visible save from being whole, every rank's shard included."""
        if self._files.model is None:
            return list(self._words.without_model())
        return list(self._problems(self.part(self._files.model).save_id, optimizer=True))

    def part(self, name: str) -> Part:
        """Open an archive of the step, once."""
        if name not in self._parts:
            part = open_part(os.path.join(self._directory, name))
            self._parts[name] = part if self._is_held(name) else part.closed()
        return self._parts[name]

    def _is_held(self, name: str) -> bool:
        named = parse_name(own_name(name))
        return named is not None and (named.role == "model" or named.rank == self._hold)

    def state(self) -> object:
        """Return what was seen, to be compared with what is seen later."""
        marks = {name: (part.save_id, part.content_hash) for name, part in self._parts.items()}
        manifests = {name: manifest.save_id for name, manifest in self._manifests.items()}
        return self._files, marks, manifests, dict(self._metas)

    def save_id_of(self, name: str) -> int:
        """Return which save a visible file is of; NO_SAVE_ID where nothing says."""
        named = parse_name(name)
        if named is None or named.role in {"model", "optimizer"}:
            return self.part(name).save_id
        if named.role == "manifest":
            return self.manifest(name).save_id
        if self._files.manifest is None:
            return NO_SAVE_ID if self._files.model is None else self.part(self._files.model).save_id
        meta = self._read_meta(name)
        # Between two renames of a save, the manifest is the new one and the meta still the old.
        manifests = [kept.manifest for kept in self._files.kept.values()]
        for manifest in (self._files.manifest, *filter(None, manifests)):
            # Another rank may have removed what was kept.
            with suppress(FileNotFoundError):
                if self.manifest(manifest).describes_meta(meta):
                    return self.manifest(manifest).save_id
        return NO_SAVE_ID

    def manifest(self, name: str) -> Manifest:
        """Read a manifest of the step, once."""
        if name not in self._manifests:
            self._manifests[name] = read_manifest(os.path.join(self._directory, name))
        return self._manifests[name]

    # What belongs to one save.

    def _problems(self, save_id: int, *, optimizer: bool) -> Iterator[Problem]:
        model = self._find(save_id, lambda files: files.model)
        if model is None:
            yield self._words.problem(StepName("model", self._files.step))
            return
        if optimizer:
            yield from self._shard_problems(save_id, self.part(model))
        yield from self._meta_problems(save_id)

    def _shard_problems(self, save_id: int, model: Part) -> Iterator[Problem]:
        if save_id == NO_SAVE_ID:
            there = set(self._shards_without_id())
            shards = max(there, default=-1) + 1
        else:
            shards = model.shards
            ranks = {*self._files.shards, *self._kept_shards(save_id)}
            there = {r for r in ranks if r < shards and self._find_shard(save_id, r) is not None}
        absent, more = absent_ranks(there, shards)
        for rank in absent:
            yield self._words.problem(StepName("optimizer", self._files.step, rank), shards)
        if more:
            yield self._words.more_shards(more)

    def _rank_problems(self, save_id: int, model: Part, rank: int) -> Iterator[Problem]:
        """Look for the shard of one rank, which may lie beyond those that the save counts."""
        if self._shard_of(save_id, model, rank) is None:
            yield self._words.problem(StepName("optimizer", self._files.step, rank), model.shards)

    def _meta_problems(self, save_id: int) -> Iterator[Problem]:
        name = StepName("meta", self._files.step)
        manifest = self._find_manifest(save_id)
        if manifest is None and save_id != NO_SAVE_ID and self._files.manifest is not None:
            if self._kept(save_id, lambda files: files.meta) is None:
                yield self._words.problem(StepName("manifest", self._files.step))
            return
        if self._find_meta(save_id) is not None:
            return
        if manifest is not None and manifest == self._files.manifest and self._files.meta:
            # A save makes its model visible after its meta: this one was changed since.
            raise self._words.changed_meta(manifest)
        yield self._words.problem(name)

    def _assemble(self, save_id: int, *, optimizer: bool, rank: int | None) -> StepSave:
        """Put a save together that has no problems."""
        model_name = self._find(save_id, lambda files: files.model)
        meta = self._find_meta(save_id)
        if model_name is None or meta is None:
            raise AssertionError
        model = self.part(model_name)
        manifest = self._find_manifest(save_id)
        shards: dict[int, str] = {}
        if optimizer and save_id == NO_SAVE_ID:
            shards = self._shards_without_id()
        elif optimizer:
            found = {r: self._find_shard(save_id, r) for r in range(model.shards)}
            shards = {rank: name for rank, name in found.items() if name is not None}
        shard = None
        if rank is not None:
            shard_name = self._shard_of(save_id, model, rank)
            shard = None if shard_name is None else self.part(shard_name)
        parts = [model, *map(self.part, shards.values()), *([shard] if shard else [])]
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

    def _find(self, save_id: int, pick: Callable[[StepFiles], str | None]) -> str | None:
        """Return the archive of a save, under its own name or the one it was kept under."""
        name = pick(self._files)
        if name is not None and self.part(name).save_id == save_id:
            return name
        return self._kept(save_id, pick)

    def _kept(self, save_id: int, pick: Callable[[StepFiles], str | None]) -> str | None:
        kept = self._files.kept.get(save_id)
        return None if kept is None else pick(kept)

    def _find_shard(self, save_id: int, rank: int) -> str | None:
        return self._find(save_id, lambda files: files.shards.get(rank))

    def _shard_of(self, save_id: int, model: Part, rank: int) -> str | None:
        """Return the shard of a rank: of this save, or without an id where the save counts none."""
        if save_id == NO_SAVE_ID:
            return self._shards_without_id().get(rank)
        name = self._find_shard(save_id, rank)
        if name is None and rank >= model.shards:
            # Without a process group, ranks above 0 do not know of the save that they belong to.
            return self._find_shard(NO_SAVE_ID, rank)
        return name

    def _shards_without_id(self) -> dict[int, str]:
        """Return the shards of a step whose model carries no save id."""
        ranks = {*self._files.shards, *self._kept_shards(NO_SAVE_ID)}
        found = {rank: self._find_shard(NO_SAVE_ID, rank) for rank in sorted(ranks)}
        shards = {rank: name for rank, name in found.items() if name is not None}
        if shards or len({self.part(name).save_id for name in self._files.shards.values()}) != 1:
            return shards
        # The model alone was saved again, by torch.save: the shards are still those of one save.
        return dict(self._files.shards)

    def _kept_shards(self, save_id: int) -> dict[int, str]:
        kept = self._files.kept.get(save_id)
        return {} if kept is None else kept.shards

    def _find_manifest(self, save_id: int) -> str | None:
        if save_id == NO_SAVE_ID:
            return None
        kept = self._kept(save_id, lambda files: files.manifest)
        for name in (kept, self._files.manifest):
            if name is not None:
                manifest = self.manifest(name)
                if (manifest.save_id, manifest.step) == (save_id, self._files.step):
                    return name
        return None

    def _find_meta(self, save_id: int) -> tuple[str, bytes] | None:
        """Return name and contents of the meta of a save."""
        manifest = self._find_manifest(save_id)
        kept = self._kept(save_id, lambda files: files.meta)
        for name in (kept, self._files.meta):
            if name is None:
                continue
            meta = self._read_meta(name)
            if manifest is None or self.manifest(manifest).describes_meta(meta):
                return name, meta
        return None

    def _read_meta(self, name: str) -> bytes:
        if name not in self._metas:
            path = os.path.join(self._directory, name)
            self._metas[name] = read_small_file(path, "a meta file", META_NBYTES_MAX)
        return self._metas[name]

    def _compare_with_manifest(self, name: str, parts: list[Part], model: Part) -> None:
        manifest = self.manifest(name)
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
