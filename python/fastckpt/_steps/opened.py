"""The files of a step, opened, and which save each one belongs to. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from fastckpt._contents.small_file import META_NBYTES_MAX, read_small_file

from .manifest import Manifest, read_manifest
from .parts import NO_SAVE_ID, Part, open_part
from .survey import StepFiles, own_name, parse_name


class OpenedFiles:
    """The files of one step, each opened once.

    Args:
        directory: Where the files are.
        files: Their names, as listed a moment ago.
        hold: Rank whose shard stays open; those of other ranks are closed once their id is known.
    """

    def __init__(self, directory: str, files: StepFiles, *, hold: int | None = None) -> None:
        self._directory = directory
        self._files = files
        self._hold = hold
        self._parts: dict[str, Part] = {}
        self._manifests: dict[str, Manifest] = {}
        self._metas: dict[str, bytes] = {}

    def part(self, name: str) -> Part:
        """Open an archive of the step, once."""
        if name not in self._parts:
            part = open_part(os.path.join(self._directory, name))
            self._parts[name] = part if self._is_held(name) else part.closed()
        return self._parts[name]

    def manifest(self, name: str) -> Manifest:
        """Read a manifest of the step, once."""
        if name not in self._manifests:
            self._manifests[name] = read_manifest(os.path.join(self._directory, name))
        return self._manifests[name]

    def meta(self, name: str) -> bytes:
        """Read a meta of the step, once."""
        if name not in self._metas:
            path = os.path.join(self._directory, name)
            self._metas[name] = read_small_file(path, "a meta file", META_NBYTES_MAX)
        return self._metas[name]

    def state(self) -> object:
        """Return what was seen, for comparison with a later look."""
        marks = {name: (part.save_id, part.content_hash) for name, part in self._parts.items()}
        manifests = {name: manifest.save_id for name, manifest in self._manifests.items()}
        return self._files, marks, manifests, dict(self._metas)

    def save_id_of(self, name: str) -> int:
        """Return which save a visible file belongs to; NO_SAVE_ID if nothing says."""
        named = parse_name(name)
        if named is None or named.role in {"model", "optimizer"}:
            return self.part(name).save_id
        if named.role == "manifest":
            return self.manifest(name).save_id
        if self._files.manifest is None:
            return NO_SAVE_ID if self._files.model is None else self.part(self._files.model).save_id
        meta = self.meta(name)
        # Between two renames of a save, the manifest is the new one and the meta still the old.
        manifests = [kept.manifest for kept in self._files.kept.values()]
        for manifest in (self._files.manifest, *filter(None, manifests)):
            # Another rank may have removed the kept file.
            with suppress(FileNotFoundError):
                if self.manifest(manifest).describes_meta(meta):
                    return self.manifest(manifest).save_id
        return NO_SAVE_ID

    def find_model(self, save_id: int) -> str | None:
        """Return the name of a save's model: its own name, or the one under which it was kept."""
        return self._find(save_id, lambda files: files.model)

    def ranks(self, save_id: int) -> set[int]:
        """Return the ranks that have a shard which may belong to a save."""
        kept = self._files.kept.get(save_id)
        return {*self._files.shards, *({} if kept is None else kept.shards)}

    def find_shard(self, save_id: int, rank: int) -> str | None:
        """Return the name of a rank's shard of a save, as `find_model` does for the model."""
        return self._find(save_id, lambda files: files.shards.get(rank))

    def shard_of(self, save_id: int, model: Part, rank: int) -> str | None:
        """Return the name of a rank's shard: of this save, or without an id beyond those that it counts."""
        if save_id == NO_SAVE_ID:
            return self.shards_without_id().get(rank)
        name = self.find_shard(save_id, rank)
        if name is None and rank >= model.shards:
            # Without a process group, ranks above 0 do not know the id of their save.
            return self.find_shard(NO_SAVE_ID, rank)
        return name

    def shards_without_id(self) -> dict[int, str]:
        """Return the names of the shards of a step whose model carries no save id, by rank."""
        ranks = sorted(self.ranks(NO_SAVE_ID))
        found = {rank: self.find_shard(NO_SAVE_ID, rank) for rank in ranks}
        shards = {rank: name for rank, name in found.items() if name is not None}
        if shards or len({*map(self._save_id, self._files.shards.values())}) != 1:
            return shards
        # Only the model was saved again, by torch.save: the shards still belong to one save.
        return dict(self._files.shards)

    def is_unmarked_shard(self, rank: int) -> bool:
        """Whether a rank has a visible shard that does not say to which save it belongs."""
        name = self._files.shards.get(rank)
        return name is not None and self._save_id(name) == NO_SAVE_ID

    def find_manifest(self, save_id: int) -> str | None:
        """Return the name of a save's manifest; None also if nothing says to which save it belongs."""
        if save_id == NO_SAVE_ID:
            return None
        kept = self._kept(save_id, lambda files: files.manifest)
        for name in (kept, self._files.manifest):
            if name is not None:
                manifest = self.manifest(name)
                if (manifest.save_id, manifest.step) == (save_id, self._files.step):
                    return name
        return None

    def find_meta(self, save_id: int) -> tuple[str, bytes] | None:
        """Return name and contents of a save's meta."""
        manifest = self.find_manifest(save_id)
        kept = self._kept(save_id, lambda files: files.meta)
        for name in (kept, self._files.meta):
            if name is None:
                continue
            meta = self.meta(name)
            if manifest is None or self.manifest(manifest).describes_meta(meta):
                return name, meta
        return None

    def keeps_meta(self, save_id: int) -> bool:
        """Whether a save's meta was kept under another name."""
        return self._kept(save_id, lambda files: files.meta) is not None

    def _is_held(self, name: str) -> bool:
        named = parse_name(own_name(name))
        return named is not None and (named.role == "model" or named.rank == self._hold)

    def _find(self, save_id: int, pick: Callable[[StepFiles], str | None]) -> str | None:
        """Return an archive of a save: its own name, or the one under which it was kept."""
        name = pick(self._files)
        if name is not None and self._save_id(name) == save_id:
            return name
        return self._kept(save_id, pick)

    def _save_id(self, name: str) -> int | None:
        try:
            return self.part(name).save_id
        except FileNotFoundError:
            # A link to a file that a save has moved aside (without hard links), or a file that is gone since.
            return None

    def _kept(self, save_id: int, pick: Callable[[StepFiles], str | None]) -> str | None:
        kept = self._files.kept.get(save_id)
        return None if kept is None else pick(kept)
