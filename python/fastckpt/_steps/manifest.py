"""The manifest of a step: what rank 0 has saved, and how many shards belong to it.

`manifest_{step:06d}.json` ties the meta, which has no room for a save id, to the archives, which
carry one. A step without a manifest (a copy that left it out, or a save by nanochat itself) loads and
verifies all the same. Imports neither torch nor the native core.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastckpt._contents.small_file import read_small_file
from fastckpt.errors import FormatError

FORMAT_VERSION = 1

# Two archives and a few numbers. The cap keeps a hostile file from filling the memory.
_NBYTES_MAX = 1 << 16
# Bounds for what a manifest may say: steps as in file names, sizes as in the kernel.
_FORMAT_VERSION_MAX = 10**6
_STEP_MAX = 10**18 - 1
_NBYTES_OF_FILE_MAX = 2**63 - 1
_SHARDS_MAX = 10**18
_FILES_MAX = 16

_SAVE_ID = re.compile(r"[0-9]{14}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_CONTENT_HASH = re.compile(r"[0-9]{20}", re.ASCII)


@dataclass(frozen=True)
class ManifestFile:
    """One archive that rank 0 has saved.

    Attributes:
        name: Its file name.
        nbytes: Its size in bytes.
        content_hash: Second half of its serialization id: 20 digits, a hash over the CRC-32 of
            each of its records.
    """

    name: str
    nbytes: int
    content_hash: str


@dataclass(frozen=True)
class Manifest:
    """Which files belong to one save of one step.

    Attributes:
        save_id: The number that all archives of this save carry, below 10^14.
        step: The step.
        shards: Number of optimizer shards, of all ranks.
        meta_sha256: SHA-256 of the meta file, in hexadecimal.
        files: The archives of rank 0.
    """

    save_id: int
    step: int
    shards: int
    meta_sha256: str
    files: Sequence[ManifestFile]

    @classmethod
    def of_meta(
        cls, meta: bytes, save_id: int, step: int, shards: int, files: Sequence[ManifestFile]
    ) -> Manifest:
        """Return the manifest of a save with these meta bytes and archives."""
        return cls(save_id, step, shards, hashlib.sha256(meta).hexdigest(), tuple(files))

    def encode(self) -> bytes:
        """Return the file's bytes: JSON with a fixed order and layout."""
        document = {
            "format_version": FORMAT_VERSION,
            "save_id": f"{self.save_id:014d}",
            "step": self.step,
            "shards": self.shards,
            "meta_sha256": self.meta_sha256,
            "files": [asdict(file) for file in self.files],
        }
        return json.dumps(document, indent=2).encode("ascii") + b"\n"

    def describes_meta(self, meta: bytes) -> bool:
        """Whether a meta file with these bytes belongs to this save."""
        return hashlib.sha256(meta).hexdigest() == self.meta_sha256


def decode_manifest(data: bytes, path: str) -> Manifest:
    """Decode a manifest.

    Only the very bytes that `Manifest.encode` writes are accepted, so no changed byte goes unseen.

    Raises:
        FormatError: The bytes are not a manifest, are damaged, or have an unknown format version.
    """
    try:
        return _parse(data)
    # RecursionError: brackets nested by the thousand.
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise FormatError(
            f"{path} is not a manifest, or is damaged: {reason} (a step can be loaded without its "
            "manifest: delete it if the other files are known to be good)",
            path=path,
        ) from error


def read_manifest(path: str) -> Manifest:
    """Read a manifest.

    Raises:
        OSError: It cannot be read.
        FormatError: As for `decode_manifest`.
    """
    return decode_manifest(read_small_file(path, "a manifest", _NBYTES_MAX), path)


def _parse(data: bytes) -> Manifest:
    document = json.loads(data.decode("ascii"), parse_constant=_refuse_constant)
    fields = _Fields(document, "the manifest")
    version = fields.integer("format_version", _FORMAT_VERSION_MAX)
    if version != FORMAT_VERSION:
        raise ValueError(f"format version {version} is unknown")
    files = fields.take("files")
    if not isinstance(files, list) or len(files) > _FILES_MAX:
        raise ValueError("'files' is not a list of files")
    manifest = Manifest(
        save_id=int(fields.text("save_id", _SAVE_ID)),
        step=fields.integer("step", _STEP_MAX),
        shards=fields.integer("shards", _SHARDS_MAX),
        meta_sha256=fields.text("meta_sha256", _SHA256),
        files=tuple(_parse_file(_Fields(file, "a file")) for file in files),
    )
    if manifest.encode() != data:
        raise ValueError("it is not laid out as a manifest is")
    return manifest


def _parse_file(fields: _Fields) -> ManifestFile:
    name = fields.take("name")
    if not isinstance(name, str) or not name or "/" in name or "\0" in name:
        raise ValueError("the 'name' of a file is not a file name")
    return ManifestFile(
        name=name,
        nbytes=fields.integer("nbytes", _NBYTES_OF_FILE_MAX),
        content_hash=fields.text("content_hash", _CONTENT_HASH),
    )


class _Fields:
    """The members of a JSON object, each checked when it is taken."""

    def __init__(self, document: Any, what: str) -> None:
        if not isinstance(document, dict):
            raise ValueError(f"{what} is not a JSON object")  # noqa: TRY004 - all are FormatErrors
        self._document = document
        self._what = what

    def take(self, name: str) -> Any:
        if name not in self._document:
            raise ValueError(f"{self._what} has no {name!r}")
        return self._document[name]

    def integer(self, name: str, most: int) -> int:
        value = self.take(name)
        if type(value) is not int or not 0 <= value <= most:
            raise ValueError(f"{name!r} holds no whole number from 0 to {most}")
        return value

    def text(self, name: str, pattern: re.Pattern[str]) -> str:
        value = self.take(name)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"{name!r} does not have the expected form")
        return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} has no place in a manifest")
