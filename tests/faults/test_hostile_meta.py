"""JSON beside the archives that is odd, broken or huge: read as json reads it, or refused in our words."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults.damage import fast_directory
from tests.faults.watch import Refusal, refusal_by, watched
from tests.specimens import assert_same

import fastckpt

STEP = 5
MODEL = {"w": torch.arange(3.0)}
OPTIMIZER = {"lr": 0.1}
# What save_checkpoint writes of it ends up in the manifest by its hash.
META = {"step": STEP, "val_bpb": 0.5}
_META_NAME = f"meta_{STEP:06d}.json"
_MANIFEST_NAME = f"manifest_{STEP:06d}.json"
# The limits of fastckpt for the two files.
_META_NBYTES_MAX = 64 << 20
_MANIFEST_NBYTES_MAX = 64 << 10
_GROWN_MAX_NBYTES = 200 << 20


def nested(depth: int, opening: str, closing: str) -> bytes:
    return (opening * depth + closing * depth).encode()


DOCUMENTS: dict[str, bytes] = {
    "plain": b'{"step": 5}',
    "not_a_number": b'{"loss": NaN}',
    "infinity": b'{"best": Infinity, "worst": -Infinity}',
    "infinity_by_exponent": b'{"x": 1e999, "y": -1e999, "z": 1e-999}',
    "minus_zero": b'{"x": -0, "y": -0.0}',
    "minus_nan": b'{"x": -NaN}',
    "small_nan": b'{"x": nan}',
    "word_of_javascript": b'{"x": undefined}',
    "key_twice": b'{"step": 5, "step": 6}',
    "key_twice_with_escapes": b'{"step": 5, "s\\u0074ep": 6}',
    "key_that_is_a_number": b"{5: 6}",
    "single_quotes": b"{'step': 5}",
    "comment": b'{"step": 5} // the last one',
    "trailing_comma": b'{"step": 5,}',
    "trailing_garbage": b'{"step": 5}}',
    "two_documents": b'{"step": 5}{"step": 6}',
    "leading_zero": b'{"step": 05}',
    "plus_sign": b'{"step": +5}',
    "hexadecimal": b'{"step": 0x5}',
    "no_fraction": b'{"step": 5.}',
    "digits_of_other_scripts": '{"step": \u0665}'.encode(),
    "integer_beyond_64_bits": b'{"step": 18446744073709551616}',
    "integer_of_4_000_digits": b'{"step": ' + b"7" * 4000 + b"}",
    "integer_of_a_million_digits": b'{"step": ' + b"7" * 1_000_000 + b"}",
    "fraction_of_a_million_digits": b'{"step": 0.' + b"7" * 1_000_000 + b"}",
    "exponent_of_a_million_digits": b'{"step": 1e' + b"7" * 1_000_000 + b"}",
    "lone_surrogate": b'{"x": "\\ud800"}',
    "surrogates_the_wrong_way": b'{"x": "\\udc00\\ud800"}',
    "surrogate_pair": b'{"x": "\\ud83d\\ude00"}',
    "surrogate_in_utf8": b'{"x": "\xed\xa0\x80"}',
    "escaped_nul": b'{"x": "\\u0000"}',
    "bad_escape": b'{"x": "\\x41"}',
    "cut_escape": b'{"x": "\\u12',
    "control_character": b'{"x": "\x01"}',
    "raw_newline": b'{"x": "a\nb"}',
    "raw_nul": b'{"x": "\x00"}',
    "nul_behind": b'{"step": 5}\x00',
    "nul_in_front": b'\x00{"step": 5}',
    "only_nuls": bytes(4096),
    "nothing": b"",
    "only_white_space": b" \r\n\t",
    "other_white_space": '{"step":\u00a05}'.encode(),
    "byte_order_mark": b'\xef\xbb\xbf{"step": 5}',
    "utf_16": '{"step": 5}'.encode("utf-16"),
    "utf_16_without_mark": '{"step": 5}'.encode("utf-16-le"),
    "utf_32": '{"step": 5}'.encode("utf-32"),
    "latin_1": '{"x": "\u00e9"}'.encode("latin-1"),
    "not_utf8": b'{"x": "\xff\xfe"}',
    "overlong_utf8": b'{"x": "\xc0\x80"}',
    "beyond_unicode": b'{"x": "\xf7\xbf\xbf\xbf"}',
    "list": b"[1, 2, 3]",
    "text": b'"step"',
    "number": b"5",
    "null": b"null",
    "carriage_returns": b'{"step":\r\n5}\r\n',
    "lists_500_deep": nested(500, "[", "]"),
    "lists_100_000_deep": nested(100_000, "[", "]"),
    "objects_100_000_deep": nested(100_000, '{"a":', "}"),
    "objects_never_closed": b'{"a":' * 100_000,
    "lists_never_closed": b"[" * 1_000_000,
    "many_keys": json.dumps({str(n): n for n in range(100_000)}).encode(),
    "keys_that_collide_elsewhere": json.dumps({str(n << 61): n for n in range(20_000)}).encode(),
    "long_text": b'{"x": "' + b"a" * 5_000_000 + b'"}',
    "pickle": b"\x80\x02cos\nsystem\n",
    "archive": b"PK\x03\x04",
    "cut_off": b'{"step": 5, "model_config": {"n_lay',
}


def plain_step(directory: Path, meta: bytes) -> None:
    """Write a step as nanochat does, which has no manifest."""
    torch.save(MODEL, directory / f"model_{STEP:06d}.pt")
    torch.save(OPTIMIZER, directory / f"optim_{STEP:06d}_rank0.pt")
    (directory / _META_NAME).write_bytes(meta)


def read_by_json(path: Path) -> tuple[bool, Any]:
    """Read as nanochat does."""
    try:
        with open(path, encoding="utf-8") as file:
            return True, json.load(file)
    except (ValueError, RecursionError):
        return False, None


def loads(directory: Path) -> dict[str, Callable[[], object]]:
    return {
        "load_checkpoint": lambda: fastckpt.load_checkpoint(directory, STEP, "cpu"),
        "load_checkpoint, with optimizer": lambda: fastckpt.load_checkpoint(
            directory, STEP, "cpu", load_optimizer=True
        ),
        "find_last_good_step": lambda: fastckpt.find_last_good_step(directory),
        "find_last_good_step, full": lambda: fastckpt.find_last_good_step(directory, verify="full"),
    }


def status_of(directory: Path, name: str) -> str:
    [file] = [f for f in fastckpt.verify(directory).files if f.path.endswith(name)]
    return file.status.value


@pytest.mark.parametrize("name", DOCUMENTS)
def test_metas_are_read_as_json_reads_them_or_refused(name: str, tmp_path: Path) -> None:
    plain_step(tmp_path, DOCUMENTS[name])
    readable, expected = read_by_json(tmp_path / _META_NAME)

    def look() -> dict[str, Any]:
        if readable:
            metas = [load() for way, load in loads(tmp_path).items() if "checkpoint" in way]
            found: list[Any] = [repr(loaded[2]) for loaded in metas]  # type: ignore[index]
        else:
            found = [refusal_by(load) for load in loads(tmp_path).values()]
        return {"found": found, "status": status_of(tmp_path, _META_NAME)}

    seen = watched(look, tmp_path).value
    if readable:
        assert seen == {"found": [repr(expected)] * 2, "status": "good"}
        return
    assert seen["status"] == "damaged"
    for found in seen["found"]:
        refusal = Refusal(**found)
        assert refusal.is_a(fastckpt.CheckpointError), refusal
        assert str(tmp_path / _META_NAME) in refusal.words
    assert all(Refusal(**found).is_a(fastckpt.FormatError) for found in seen["found"][:2])


def test_some_are_readable_and_some_are_not(tmp_path: Path) -> None:
    seen = set()
    for document in DOCUMENTS.values():
        (tmp_path / _META_NAME).write_bytes(document)
        seen.add(read_by_json(tmp_path / _META_NAME)[0])
    assert seen == {True, False}


def test_special_numbers_come_back_as_they_were_saved(tmp_path: Path) -> None:
    meta = {"nan": math.nan, "inf": [math.inf, -math.inf], "zero": -0.0, "big": 10**400}
    fastckpt.save_checkpoint(tmp_path, STEP, MODEL, OPTIMIZER, meta)
    assert_same(fastckpt.load_checkpoint(tmp_path, STEP, "cpu")[2], meta)
    assert fastckpt.verify(tmp_path).ok
    assert fastckpt.find_last_good_step(tmp_path) == STEP


def test_a_meta_of_a_save_can_be_no_other(tmp_path: Path) -> None:
    """Any other document is refused, also one that says the same in other bytes."""
    fastckpt.save_checkpoint(tmp_path, STEP, MODEL, OPTIMIZER, META)
    path = tmp_path / _META_NAME
    saved = path.read_bytes()
    for document in [*DOCUMENTS.values(), json.dumps(META).encode(), saved + b"\n", saved[:-1]]:
        path.write_bytes(document)
        for way, load in loads(tmp_path).items():
            with pytest.raises(fastckpt.CheckpointError) as refusal:
                load()
            assert str(path) in str(refusal.value), way
        report = fastckpt.verify(tmp_path)
        assert not report.ok
        assert {damage.path for damage in report.damages} >= {str(path)}
    path.write_bytes(saved)
    assert fastckpt.load_checkpoint(tmp_path, STEP, "cpu")[2] == META


def manifests(saved: bytes) -> dict[str, bytes]:
    """Make what looks like the manifest of a save and is not."""
    good = json.loads(saved)

    def changed(**members: Any) -> bytes:
        return json.dumps(good | members, indent=2).encode() + b"\n"

    def said(before: bytes, after: bytes) -> bytes:
        assert before in saved
        return saved.replace(before, after, 1)

    return {
        "other_version": changed(format_version=2),
        "version_as_text": changed(format_version="1"),
        "version_true": changed(format_version=True),
        "version_as_fraction": changed(format_version=1.0),
        "shards_not_a_number": said(b'"shards": 1', b'"shards": NaN'),
        "shards_infinite": said(b'"shards": 1', b'"shards": Infinity'),
        "shards_1e999": said(b'"shards": 1', b'"shards": 1e999'),
        "shards_true": changed(shards=True),
        "shards_negative": changed(shards=-1),
        "shards_of_a_million_digits": said(b'"shards": 1', b'"shards": 1' + b"0" * 10_000),
        "shards_twice": said(b'"shards": 1', b'"shards": 7,\n  "shards": 1'),
        "step_of_another": changed(step=STEP + 1),
        "step_negative": changed(step=-STEP),
        "id_as_number": changed(save_id=int(good["save_id"])),
        "id_too_short": changed(save_id=good["save_id"][1:]),
        "id_of_no_save": changed(save_id="0" * 14),
        "id_in_other_digits": changed(
            save_id="".join(chr(0x0660 + int(d)) for d in good["save_id"])
        ),
        "id_of_another_save": changed(save_id=f"{int(good['save_id']) % 10**14 ^ 1:014d}"),
        "hash_in_capitals": changed(meta_sha256=good["meta_sha256"].upper().replace("0", "A")),
        "hash_cut": changed(meta_sha256=good["meta_sha256"][:-1]),
        "hash_of_another_meta": changed(meta_sha256="0" * 64),
        "no_files": changed(files=[]),
        "files_no_list": changed(files={}),
        "files_of_nothing": changed(files=[None]),
        "file_outside": changed(files=[good["files"][0] | {"name": "../model_000005.pt"}]),
        "file_with_nul": changed(files=[good["files"][0] | {"name": "model_000005.pt\0"}]),
        "file_of_other_size": changed(
            files=[{**file, "nbytes": file["nbytes"] + 1} for file in good["files"]]
        ),
        "file_of_other_hash": changed(
            files=[{**file, "content_hash": "0" * 20} for file in good["files"]]
        ),
        "file_of_size_2_63": changed(files=[good["files"][0] | {"nbytes": 2**63}]),
        "many_files": changed(files=good["files"] * 100),
        "member_missing": json.dumps({k: v for k, v in good.items() if k != "shards"}).encode(),
        "member_added": changed(comment="hello"),
        "members_in_another_order": json.dumps(dict(reversed(good.items())), indent=2).encode(),
        "other_white_space": json.dumps(good).encode(),
        "no_newline_behind": saved[:-1],
        "newlines_behind": saved + b"\n\n",
        "carriage_returns": saved.replace(b"\n", b"\r\n"),
        "byte_order_mark": b"\xef\xbb\xbf" + saved,
        "utf_16": saved.decode().encode("utf-16"),
        "nul_behind": saved + b"\0",
        "cut_off": saved[: len(saved) // 2],
        "twice": saved + saved,
        "too_large": saved + b" " * _MANIFEST_NBYTES_MAX,
        **{f"document_{name}": document for name, document in DOCUMENTS.items()},
    }


def test_any_other_manifest_is_refused(tmp_path: Path) -> None:
    fastckpt.save_checkpoint(tmp_path, STEP, MODEL, OPTIMIZER, META)
    path = tmp_path / _MANIFEST_NAME
    saved = path.read_bytes()
    corpus = manifests(saved)
    assert len({*corpus.values(), saved}) == len(corpus) + 1
    taken = []
    for name, document in corpus.items():
        path.write_bytes(document)
        for way, load in loads(tmp_path).items():
            found = refusal_by(load)
            if found is None or not Refusal(**found).is_a(fastckpt.CheckpointError):
                taken.append((name, way, found))
        if fastckpt.verify(tmp_path).ok:
            taken.append((name, "verify", None))
    assert taken == []
    path.write_bytes(saved)
    assert fastckpt.find_last_good_step(tmp_path, verify="full") == STEP


def test_changed_manifests_are_refused_wherever_they_are_changed(tmp_path: Path) -> None:
    fastckpt.save_checkpoint(tmp_path, STEP, MODEL, OPTIMIZER, META)
    path = tmp_path / _MANIFEST_NAME
    saved = path.read_bytes()
    generator = random.Random(1)
    taken = []
    for _ in range(1000):
        changed = mutated(saved, generator)
        if changed == saved:
            continue
        path.write_bytes(changed)
        for way, load in loads(tmp_path).items():
            if refusal_by(load) is None:
                taken.append((changed, way))
        if fastckpt.verify(tmp_path).ok:
            taken.append((changed, "verify"))
    assert taken == []


def test_mutated_metas_are_read_as_json_reads_them() -> None:
    text = json.dumps({"step": 5, "a": [1.5, None, True, "\u00e9\n"], "b": {"c": -1e-7}}).encode()
    generator = random.Random(2)
    seen = {True: 0, False: 0}
    with fast_directory() as directory:
        for _ in range(3000):
            plain_step_meta = mutated(text, generator)
            (directory / _META_NAME).write_bytes(plain_step_meta)
            readable, expected = read_by_json(directory / _META_NAME)
            seen[readable] += 1
            if sum(seen.values()) == 1:
                plain_step(directory, plain_step_meta)
            try:
                found = fastckpt.load_checkpoint(directory, STEP, "cpu")[2]
            except fastckpt.FormatError:
                assert not readable, plain_step_meta
            else:
                assert readable, plain_step_meta
                assert repr(found) == repr(expected)
    assert min(seen.values()) > 100


def mutated(data: bytes, generator: random.Random) -> bytes:
    """Change, remove, repeat or insert some bytes, of those that JSON is made of and of others."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 3)):
        start = generator.randrange(len(changed))
        length = generator.randint(1, 8)
        match generator.randrange(4):
            case 0:
                changed[start] = generator.randrange(256)
            case 1:
                del changed[start : start + length]
            case 2:
                changed[start:start] = changed[start : start + length]
            case _:
                changed[start:start] = bytes(
                    generator.choices(b'{}[]",:0123456789eE+-. \\untf\0', k=length)
                )
        if not changed:
            changed = bytearray(data)
    return bytes(changed)


@pytest.mark.parametrize(
    ("name", "nbytes"),
    [(_META_NAME, _META_NBYTES_MAX + 1), (_META_NAME, 1 << 40), (_MANIFEST_NAME, 1 << 40)],
)
def test_a_huge_file_is_not_read(name: str, nbytes: int) -> None:
    """A sparse file takes no space on the disk, and would take all of the memory."""
    with fast_directory() as directory:
        fastckpt.save_checkpoint(directory, STEP, MODEL, OPTIMIZER, META)
        with (directory / name).open("r+b") as file:
            file.truncate(nbytes)

        def look() -> list[Any]:
            refusals: list[Any] = [refusal_by(load) for load in loads(directory).values()]
            return [*refusals, status_of(directory, name)]

        sighting = watched(look, directory)
        *refusals, status = sighting.value
        assert status == "damaged"
        for found in refusals:
            refusal = Refusal(**found)
            assert refusal.is_a(fastckpt.CheckpointError), refusal
            assert str(directory / name) in refusal.words
        assert sighting.grown_nbytes < _GROWN_MAX_NBYTES
