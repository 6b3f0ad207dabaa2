"""The corpora that fuzzing begins from: small, named by what they hold, and read alike by all readers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tests.faults.damage import fast_directory
from tests.property.mutation import FUZZ, archives, dictionary
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


def files(kind: str) -> list[Path]:
    return sorted((CORPUS / kind).iterdir())


def dtype_of(name: str) -> str:
    """Return torch's name of the dtype of `dtype-float8-e8m0fnu.pt`."""
    return name.removeprefix("dtype-").removesuffix(".pt").replace("-", "_")


def test_every_target_has_a_corpus_and_every_corpus_a_target() -> None:
    kinds = {path.name for path in CORPUS.iterdir()}
    assert kinds <= targets()
    assert targets() - kinds <= READ_ARCHIVES
    for kind in kinds:
        assert files(kind), kind


def test_all_of_it_is_small_and_has_plain_names() -> None:
    paths = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in paths) < MAX_NBYTES
    for path in paths:
        assert NAME.fullmatch(path.name), path


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


@pytest.mark.parametrize("name", [p.name for p in files("archive") if p.name.startswith(REAL)])
def test_what_torch_wrote_verifies_and_loads(name: str) -> None:
    path = CORPUS / "archive" / name
    with quiet():
        report = fastckpt.verify(path)
        if name.startswith("dtype-") and not hasattr(torch, dtype_of(name)):
            with pytest.raises(fastckpt.UnsafePickleError, match=rf"has torch\.{dtype_of(name)}, "):
                fastckpt.load(path)
        else:
            fastckpt.load(path)
    assert report.damages == ()
    assert report.files[0].headers_covered
