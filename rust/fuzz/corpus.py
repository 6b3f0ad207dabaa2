#!/usr/bin/env python3
"""The corpora of the fuzz targets: an archive each, since git, and people, want few files.

    rust/fuzz/corpus.py unpack DIRECTORY        each corpus into a directory of its own there
    rust/fuzz/corpus.py add TARGET FILE...      put files into a corpus, in place of those of their names
    rust/fuzz/corpus.py pack TARGET DIRECTORY   make a corpus of all the files of a directory

The same files give the same archive: sorted, stored as they are, and of no date. Needs Python alone.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

CORPUS = Path(__file__).resolve().parent / "corpus"


def targets() -> list[str]:
    """Return the targets that have a corpus."""
    return sorted(path.stem for path in CORPUS.glob("*.zip"))


def read(target: str) -> dict[str, bytes]:
    """Return the files of a corpus by their names; none where there is no corpus."""
    path = CORPUS / f"{target}.zip"
    if not path.exists():
        return {}
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(files: dict[str, bytes]) -> bytes:
    """Return the archive of these files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name)
            # Else it says on which system it was made.
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, files[name])
    return file.getvalue()


def write(target: str, files: dict[str, bytes]) -> None:
    """Make the corpus of a target of these files."""
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / f"{target}.zip").write_bytes(packed(files))


def unpack(directory: Path) -> None:
    """Write the files of each corpus into a directory of its own."""
    for target in targets():
        (directory / target).mkdir(parents=True, exist_ok=True)
        for name, data in read(target).items():
            (directory / target / name).write_bytes(data)


def _contents(paths: list[Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths}


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    match arguments:
        case ["unpack", directory]:
            unpack(Path(directory))
        case ["add", target, *files] if files:
            write(target, read(target) | _contents([Path(file) for file in files]))
        case ["pack", target, directory]:
            write(target, _contents(list(Path(directory).iterdir())))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
