"""A directory that many steps are looked for in is listed once, and again where it has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastckpt._steps.survey import Listing

LONG_AGO = (1e9, 1e9)


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The directories that were listed."""
    found: list[str] = []
    listdir = os.listdir

    def count(path: str) -> list[str]:
        found.append(path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", count)
    return found


def test_it_is_listed_once_for_all_steps(tmp_path: Path, listed: list[str]) -> None:
    for step in range(20):
        (tmp_path / f"model_{step:06d}.pt").touch()
    os.utime(tmp_path, LONG_AGO)
    listing = Listing(str(tmp_path))
    assert [listing.step(step).names() for step in range(20)] == [
        [f"model_{step:06d}.pt"] for step in range(20)
    ]
    assert listing.step(99).names() == []
    assert listed == [str(tmp_path)]


def test_what_has_changed_is_seen(tmp_path: Path, listed: list[str]) -> None:
    os.utime(tmp_path, LONG_AGO)
    listing = Listing(str(tmp_path))
    assert listing.step(1).names() == []
    (tmp_path / "model_000001.pt").touch()
    assert listing.step(1).names() == ["model_000001.pt"]
    # It has changed a moment ago: the time of another change may be the same.
    (tmp_path / ".fastckpt-00000000000007-meta_000001.json.kept").touch()
    assert listing.step(1).kept_names() == [".fastckpt-00000000000007-meta_000001.json.kept"]
    assert len(listed) == 3


def test_a_directory_that_is_gone_is_an_error(tmp_path: Path) -> None:
    listing = Listing(str(tmp_path / "d"))
    with pytest.raises(FileNotFoundError, match="while listing the directory"):
        listing.step(1)
