"""README and docs say what is so: their blocks run, their links lead somewhere."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.documented_pages import ROOT, Page, alike, commands_in, differing_shapes, pages

import fastckpt

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@functools.cache
def page_at(path: Path) -> Page:
    """Return the page, with what was run of it: the blocks of a page go on from each other."""
    return Page(path)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the pages have their directories."""
    return tmp_path_factory.mktemp("pages")


def blocks() -> Iterator[object]:
    """Yield the blocks that are run; those of one page go to one worker."""
    for path in pages():
        name = str(path.relative_to(ROOT))
        for number, example in enumerate(page_at(path).examples):
            # The others are comments, which are run with the block that they stand above.
            if "arguments" in example.region.lexemes:
                yield pytest.param(
                    path,
                    number,
                    id=f"{name}:{example.line}",
                    marks=pytest.mark.xdist_group(f"page {name}"),
                )


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize(("path", "number"), list(blocks()))
def test_block(path: Path, number: int, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)  # and back: each page has directories of its own
    page_at(path).run_to(number, home)


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_pages_and_headings(path: Path) -> None:
    missing = []
    for target in LINK.findall(FENCED.sub("", path.read_text())):
        if target.startswith(("https://", "http://")):
            continue
        name, _, heading = target.partition("#")
        page = (path.parent / name) if name else path
        if not page.exists() or (heading and heading not in anchors(page)):
            missing.append(target)
    assert missing == []


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = HEADING.findall(FENCED.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_listed() -> None:
    listed = LINK.findall((ROOT / "docs/README.md").read_text())
    there = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert there <= set(listed)


def test_every_error_has_its_place_in_troubleshooting() -> None:
    headings = " ".join(HEADING.findall((ROOT / "docs/troubleshooting.md").read_text()))
    public = (getattr(fastckpt, name) for name in fastckpt.__all__)
    errors = {
        each.__name__ for each in public if isinstance(each, type) and issubclass(each, Exception)
    }
    assert {name for name in errors - {"CheckpointError"} if name not in headings} == set()


# The comparisons themselves: what they let through, and what not.


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("AVERAGED: 3 checkpoints into mean.pt, 293.3 kB\n", "AVERAGED: 3 checkpoints into mean.pt, 1.2 MB\n"),
        ("  step 100  OK      1.2 GB\n", "  step 100  OK  9 B\n"),
        ("expected  0xcf3aa187\n", "expected  0x00000001\n"),
        ("bytes  144715328-154152511\n", "bytes  70016-80255\n"),
        ("one\n...\nlast\n", "one\nanything\n\nat all\nlast\n"),
        ("one\n...\nlast\n", "one\nlast\n"),
        ("record ... is compressed\n", "record code/linear.py is compressed\n"),
    ],
)  # fmt: skip
def test_figures_may_differ(said: str, found: str) -> None:
    assert alike(said, found)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("AVERAGED: 3 checkpoints\n", "AVERAGED: 4 checkpoints\n"),
        ("  step 100  OK\n", "  step 200  OK\n"),
        ("  step 100  OK\n", "  step 100  DAMAGED\n"),
        ("one\ntwo\n", "one\n"),
        ("one\n", "one\ntwo\n"),
        ("1.2 GB read\n", "read\n"),
        ("one\n...\nlast\n", "one\nanything\n"),
    ],
)
def test_words_steps_and_counts_may_not(said: str, found: str) -> None:
    assert not alike(said, found)


def test_commands_are_told_from_what_they_print() -> None:
    block = "$ one --option \\\n    more\nprinted\n\nagain\n$ two\n$ three\nlast\n"
    assert list(commands_in(block)) == [
        ("one --option \\\n    more", "printed\n\nagain\n"),
        ("two", ""),
        ("three", "last\n"),
    ]


def test_json_differs_by_its_keys_and_types() -> None:
    said = {"step": 1, "files": ["a", "..."], "seconds": 0.5, "error": None}
    assert not list(
        differing_shapes(said, {"step": 2, "files": ["b", "c"], "seconds": 1, "error": "x"})
    )
    assert list(differing_shapes(said, {"step": 2, "files": [], "seconds": 1})) == [
        "$: ['error', 'files', 'seconds', 'step'] in the page, ['files', 'seconds', 'step'] printed",
    ]
    assert list(differing_shapes({"ok": True}, {"ok": 1})) == ["$.ok: True in the page, 1 printed"]
    assert list(differing_shapes([{"a": 1}], [{"a": "1"}])) == [
        "$[0].a: 1 in the page, '1' printed"
    ]
