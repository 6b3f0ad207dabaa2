"""Files of several saves under the names of one step: parts of two are never loaded together."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults import mixed_steps
from tests.faults.damage import fast_directory
from tests.faults.harness import Tally
from tests.faults.mixed_steps import STEP, Save, all_of_two, judge, make_saves

import fastckpt


@pytest.fixture(scope="module")
def shelf() -> Iterator[Path]:
    with fast_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def saves(shelf: Path) -> dict[str, Save]:
    return make_saves(shelf)


@pytest.mark.parametrize("pair", ["AB", "AC", "BC", "BD", "BE", "TU"])
def test_all_mixtures_of_two_saves(pair: str, saves: dict[str, Save], shelf: Path) -> None:
    """Of runs with 1, 2, 4 and 2 ranks, of another step, and of torch.save, which has no ids."""
    tally = Tally()
    one, two = (saves[letter] for letter in pair)
    for choice in all_of_two(one, two):
        judge(shelf / "mixture", choice, saves, pair, tally)
    print(dict(tally.outcomes))
    assert tally.failures == []
    assert tally.cases >= 32
    # Both saves by themselves are among them. That of another step is refused, under this number.
    for letter in pair.replace("E", ""):
        assert tally.outcomes[f"loaded {letter}"] >= 1
    assert tally.outcomes["refused"] > 0


def test_mixtures_with_files_missing() -> None:
    with fast_directory() as directory:
        tally = mixed_steps.run(1, 1000, directory)
    print(dict(tally.outcomes))
    assert tally.failures == []
    assert tally.cases == 1000
    assert tally.outcomes["refused"] > 300
    assert tally.outcomes["loaded"] > 150
    # E is of another step: it loads only where its manifest, which says so, is missing.
    assert all(tally.outcomes[f"loaded {letter}"] > 0 for letter in "ABCDETU")


@pytest.mark.parametrize("name", ["model", "meta", "manifest", "optim"])
def test_a_missing_file_is_named(name: str, saves: dict[str, Save], tmp_path: Path) -> None:
    shutil.copytree(saves["C"].directory, tmp_path / "run")
    [path] = [p for p in (tmp_path / "run").iterdir() if p.name.startswith(name)][-1:]
    path.unlink()
    if name == "manifest":  # a copy may leave it out
        assert fastckpt.find_last_good_step(tmp_path / "run") == STEP
        return
    with pytest.raises(fastckpt.IncompleteCheckpointError) as refusal:
        fastckpt.load_checkpoint(tmp_path / "run", STEP, "cpu", load_optimizer=True)
    assert refusal.value.filename == str(path)
    assert path.name in str(refusal.value)


def test_a_shard_beyond_the_count_does_no_harm(saves: dict[str, Save], tmp_path: Path) -> None:
    """Left from a run with more ranks: not loaded, not called damage, and named as extra."""
    shutil.copytree(saves["B"].directory, tmp_path / "run")
    for rank in (2, 3):
        name = Save.shard(rank)
        shutil.copy(saves["C"].files()[name], tmp_path / "run" / name)
    for rank in (0, 1):
        found = fastckpt.load_checkpoint(
            tmp_path / "run", STEP, "cpu", load_optimizer=True, rank=rank, world_size=2
        )
        assert [part["save"] for part in found] == ["B"] * 3
        assert found[1]["rank"] == rank
    for rank in (2, 3):
        with pytest.raises(fastckpt.IncompleteCheckpointError, match="has 2 optimizer shards"):
            fastckpt.load_checkpoint(tmp_path / "run", STEP, "cpu", load_optimizer=True, rank=rank)
    report = fastckpt.verify(tmp_path / "run")
    assert report.ok
    assert report.steps[0].extra == (Save.shard(2), Save.shard(3))


def test_a_step_under_another_number_is_refused(saves: dict[str, Save], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name, path in saves["E"].files().items():
        shutil.copy(path, tmp_path / "run" / name)
    with pytest.raises(fastckpt.IncompleteCheckpointError) as refusal:
        fastckpt.load_checkpoint(tmp_path / "run", STEP, "cpu")
    assert refusal.value.filename == str(tmp_path / "run" / Save.manifest)
    with pytest.raises(fastckpt.IncompleteCheckpointError):
        fastckpt.find_last_good_step(tmp_path / "run")
    assert not fastckpt.verify(tmp_path / "run").ok
