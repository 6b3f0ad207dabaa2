"""The corpora that fuzzing begins from: small, named by what they hold, and read alike by all readers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from tests.faults.damage import fast_directory
from tests.property.mutation import FUZZ, archives, corpus, dictionary
from tests.property.same_verdict import verdict
from tests.specimens import quiet

import fastckpt

CORPUS = FUZZ / "corpus"
MAX_NBYTES = 2 << 20
# Those whose inputs are archives share their corpora: see .ci/fuzz.
READ_ARCHIVES = {"archive", "salvage", "tensors", "zip_index"}
# What it is, in words; or the SHA-1 by which libFuzzer names what it finds.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*|[0-9a-f]{40}")


def targets() -> set[str]:
    text = (FUZZ / "Cargo.toml").read_text()
    return set(re.findall(r'^name = "(\w+)"\npath = "fuzz_targets/\1\.rs"$', text, re.MULTILINE))


def kinds() -> set[str]:
    return {path.stem for path in CORPUS.iterdir()}


def dtype_of(name: str) -> str:
    """Return torch's name of the dtype of `dtype-float8-e8m0fnu.pt`."""
    return name.removeprefix("dtype-").removesuffix(".pt").replace("-", "_")


def test_every_target_has_a_corpus_and_every_corpus_a_target() -> None:
    assert kinds() <= targets()
    assert targets() - kinds() <= READ_ARCHIVES
    for kind in kinds():
        assert corpus(kind), kind


def test_all_of_it_is_small_and_has_plain_names() -> None:
    files = {(kind, name): data for kind in kinds() for name, data in corpus(kind).items()}
    assert sum(map(len, files.values())) < MAX_NBYTES
    for _, name in files:
        assert NAME.fullmatch(name), name


def run_packer(directory: Path, *arguments: str | Path) -> None:
    """Run a copy of the script, whose corpora are beside it."""
    subprocess.run([sys.executable, directory / "corpus.py", *arguments], check=True)


def test_the_same_files_are_packed_the_same(tmp_path: Path) -> None:
    shutil.copy(FUZZ / "corpus.py", tmp_path)
    shutil.copytree(CORPUS, tmp_path / "corpus")
    run_packer(tmp_path, "unpack", tmp_path / "unpacked")
    shutil.rmtree(tmp_path / "corpus")
    for kind in sorted(kinds()):
        unpacked = tmp_path / "unpacked" / kind
        assert {path.name: path.read_bytes() for path in unpacked.iterdir()} == corpus(kind)
        run_packer(tmp_path, "pack", kind, unpacked)
        packed = f"corpus/{kind}.zip"
        assert (tmp_path / packed).read_bytes() == (FUZZ / packed).read_bytes()


def test_what_a_run_has_found_is_added_to_a_corpus(tmp_path: Path) -> None:
    shutil.copy(FUZZ / "corpus.py", tmp_path)
    for name, data in (("b", b"first"), ("a", b""), ("b", b"second")):
        (tmp_path / name).write_bytes(data)
        run_packer(tmp_path, "add", "pickle", tmp_path / name)
    with zipfile.ZipFile(tmp_path / "corpus/pickle.zip") as packed:
        assert {name: packed.read(name) for name in packed.namelist()} == {"a": b"", "b": b"second"}


def test_the_dictionary_has_the_words_of_the_format() -> None:
    words = dictionary()
    assert len(words) == len(set(words)) > 80
    for word in (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\7\x08", b"data.pkl"):
        assert word in words


def test_others_read_what_we_accept_in_the_same_way() -> None:
    """Not one of the hostile ones is understood in two ways."""
    outcomes = {}
    with quiet(), fast_directory() as directory:
        path = directory / "model.pt"
        for base in archives():
            path.write_bytes(base.data)
            outcomes[base.name] = verdict(path)
    refusals = ("FormatError", "ChecksumError", "UnsafePickleError")
    assert sum(outcome.startswith(refusals) for outcome in outcomes.values()) > 200
    for name, outcome in outcomes.items():
        if name.startswith("dtype-") and not hasattr(torch, dtype_of(name)):
            assert outcome == "UnsafePickleError", name
        elif name.startswith(("dtype-", "alignment-", "python-zip64", "zip64-", "odd-")):
            assert outcome.startswith("equal"), name


REAL = ("dtype-", "torch-2", "1000-tensors", "alignment-", "weights", "adamw", "no-tensors")


@pytest.mark.parametrize("name", [name for name in corpus("archive") if name.startswith(REAL)])
def test_what_torch_wrote_verifies_and_loads(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(corpus("archive")[name])
    with quiet():
        report = fastckpt.verify(path)
        if name.startswith("dtype-") and not hasattr(torch, dtype_of(name)):
            with pytest.raises(fastckpt.UnsafePickleError, match=rf"has torch\.{dtype_of(name)}, "):
                fastckpt.load(path)
        else:
            fastckpt.load(path)
    assert report.damages == ()
    assert report.files[0].headers_covered
