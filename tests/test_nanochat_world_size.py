"""Shards and the ranks that save or load them: half an optimizer is never taken for a whole one."""

from __future__ import annotations

import json
import os
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.rendezvous import in_ranks, rendezvous
from torch import distributed

import fastckpt
from fastckpt._inspect.run_report import DirectoryContents, State
from fastckpt._steps.save_id import agreed
from fastckpt._steps.survey import kept_name
from fastckpt.cli.app import run as run_command
from fastckpt.errors import CheckpointError, IncompleteCheckpointError

STEP = 10


def save_ranks(directory: Path, ranks: int, *, step: int = STEP, save_id: int = 17) -> None:
    """Save a whole step of so many ranks."""
    with agreed(save_id, ranks):
        for rank in range(ranks):
            fastckpt.save_checkpoint(
                directory, step, {"w": torch.ones(3)}, {"rank": rank}, {"step": step}, rank=rank
            )


def save_as_nanochat(directory: Path, ranks: int) -> None:
    """Save a step with torch.save and json alone, as nanochat does."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.save({"w": torch.ones(3)}, directory / f"model_{STEP:06d}.pt")
    for rank in range(ranks):
        torch.save({"rank": rank}, directory / f"optim_{STEP:06d}_rank{rank}.pt")
    (directory / f"meta_{STEP:06d}.json").write_text(json.dumps({"step": STEP}))


def in_group(world_size: int, work: Any) -> list[Any]:
    """Run `work(rank)` in each process of a real process group; return what each returned."""
    with rendezvous() as meeting:
        return in_ranks(meeting, world_size, work)


def load(directory: Path, rank: int = 0, **options: Any) -> Any:
    """Return the shard of a rank."""
    return fastckpt.load_checkpoint(
        directory, STEP, "cpu", load_optimizer=True, rank=rank, **options
    )[1]


def words_of(work: Any) -> str:
    """Return the words of the refusal, which is not the fault of the checkpoint."""
    with pytest.raises(fastckpt.StateMismatchError, match="world_size=") as caught:
        work()
    assert not isinstance(caught.value, (CheckpointError, OSError))
    words = str(caught.value)
    for wrong in ("damaged", "incomplete", "corrupt", "repair", "missing"):
        assert wrong not in words
    return words


@pytest.fixture(params=[save_ranks, save_as_nanochat], ids=["ours", "nanochat's"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Hold a step of two ranks, with save ids and without."""
    request.param(tmp_path / "run", 2)
    return tmp_path / "run"


# Loading.


def test_one_process_is_not_given_a_part_as_if_it_were_all(run: Path) -> None:
    assert words_of(lambda: load(run)) == (
        f"step 10 in {run} has 2 optimizer shards, but 1 process without a process group loads it: resume "
        "with 2 ranks (call torch.distributed.init_process_group before loading), or pass world_size=2 to "
        "get a shard as it is"
    )
    # Neither what the step holds besides, nor what is said of it, is touched by that.
    assert fastckpt.load_checkpoint(run, STEP, "cpu")[1] is None
    assert fastckpt.find_last_good_step(run) == STEP
    assert fastckpt.verify(run).ok


def test_with_the_number_of_shards_a_shard_is_returned_as_it_is(run: Path) -> None:
    for rank in (0, 1):
        assert load(run, rank, world_size=2) == {"rank": rank}
    assert load(run, np.int64(1), world_size=np.int64(2)) == {"rank": 1}


def test_a_higher_rank_without_a_group_reads_its_shard(run: Path) -> None:
    assert load(run, 1) == {"rank": 1}


@pytest.mark.parametrize("given", [1, 3, 8])
@pytest.mark.parametrize("rank", [0, 1])
def test_another_number_than_that_of_the_shards_is_refused(
    run: Path, rank: int, given: int
) -> None:
    assert words_of(lambda: load(run, rank, world_size=given)) == (
        f"world_size={given} was given, but step 10 in {run} has 2 optimizer shards: pass world_size=2 to "
        "get a shard as it is"
    )


@pytest.mark.parametrize("given", [0, -1])
def test_a_number_of_ranks_is_at_least_one(run: Path, given: int) -> None:
    for work in (partial(load, run), partial(fastckpt.load_checkpoint, run, STEP, "cpu")):
        with pytest.raises(ValueError, match=f"world_size must be at least 1, not {given}"):
            work(world_size=given)
    with pytest.raises(TypeError):
        load(run, world_size="2")


def test_world_size_is_given_by_name(run: Path) -> None:
    with pytest.raises(TypeError, match="positional"):
        fastckpt.load_checkpoint(run, STEP, "cpu", True, 0, 2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        fastckpt.load_optimizer_state("base", "cpu", 0, None, None, 2)  # type: ignore[call-arg]


@pytest.mark.parametrize("save", [save_ranks, save_as_nanochat])
def test_one_shard_is_all_for_one_process(save: Any, tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert load(tmp_path) == load(tmp_path, world_size=1) == {"rank": 0}
    with pytest.raises(ValueError, match="has 1 optimizer shard: pass world_size=1"):
        load(tmp_path, world_size=2)


def test_a_step_without_optimizer_state_says_so_first(tmp_path: Path) -> None:
    fastckpt.save_checkpoint(tmp_path, STEP, {}, None, {})
    for world_size in (None, 2):
        with pytest.raises(IncompleteCheckpointError, match="without optimizer state"):
            load(tmp_path, world_size=world_size)


def test_a_step_that_is_not_whole_says_so_first(run: Path) -> None:
    (run / "meta_000010.json").unlink()
    for world_size in (None, 2, 3):
        with pytest.raises(IncompleteCheckpointError, match=r"meta_000010\.json is missing"):
            load(run, world_size=world_size)


def test_a_group_of_as_many_ranks_resumes(run: Path, tmp_path: Path) -> None:
    found = in_group(2, lambda rank: [load(run, rank), load(run, rank, world_size=2)])
    assert found == [[{"rank": 0}] * 2, [{"rank": 1}] * 2]


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_group_of_another_size_is_refused_on_every_rank(
    run: Path, tmp_path: Path, ranks: int
) -> None:
    """Also on ranks that have no shard: a part of the ranks that fails leaves the others to hang."""

    def work(rank: int) -> list[Any]:
        return [words_of(lambda: load(run, rank)), load(run, 1, world_size=2)]

    group = f"{ranks} rank{'s' if ranks > 1 else ''}"
    refused = (
        f"step 10 in {run} has 2 optimizer shards, but this process group has {group}: resume with "
    )
    for words, shard in in_group(ranks, work):
        assert words == f"{refused}2 ranks, or pass world_size=2 to get a shard as it is"
        assert shard == {"rank": 1}


def test_what_the_master_saved_alone_is_loaded_by_saying_so(tmp_path: Path) -> None:
    """A script whose optimizer is the same on all ranks gives world_size=1 to both."""
    run = tmp_path / "run"

    def work(rank: int) -> Any:
        if rank == 0:
            fastckpt.save_checkpoint(run, STEP, {}, {"all": 1}, {}, world_size=1)
        distributed.barrier()
        assert "has 1 optimizer shard, but this process group has 2 ranks" in words_of(
            lambda: load(run)
        )
        return load(run, world_size=1)

    assert in_group(2, work) == [{"all": 1}] * 2


def test_the_refusal_survives_a_process_pool(run: Path) -> None:
    with pytest.raises(ValueError, match="world_size=2") as caught:
        load(run)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_no_step_of_so_many_ranks_is_not_called_incomplete(run: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        fastckpt.find_last_good_step(run, world_size=8)
    assert str(caught.value) == (
        f"no step in {run} is whole and saved by 8 ranks; of the newest: step 10 in {run} was saved by 2 "
        "ranks, not 8"
    )


# load_optimizer_state.


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "nanochat"))
    return tmp_path / "nanochat" / "base_checkpoints" / "d12"


def state_of(rank: int, **options: Any) -> Any:
    return fastckpt.load_optimizer_state("base", "cpu", rank, **options)


@pytest.mark.parametrize("save", [save_ranks, save_as_nanochat])
def test_the_state_of_one_rank_alone(save: Any, base: Path, tmp_path: Path) -> None:
    save(base, 2)
    words = words_of(lambda: state_of(0))
    assert words.startswith(f"step 10 in {base} has 2 optimizer shards, but 1 process without a")
    assert "world_size=8 was given" in words_of(lambda: state_of(1, world_size=8))
    assert [state_of(rank, world_size=2) for rank in (0, 1)] == [{"rank": 0}, {"rank": 1}]
    assert state_of(1) == {"rank": 1}
    assert state_of(2) is None
    assert in_group(2, state_of) == [{"rank": 0}, {"rank": 1}]
    found = in_group(3, lambda rank: words_of(lambda: state_of(rank)))
    assert all("this process group has 3 ranks" in words for words in found)


def test_a_run_without_optimizer_state_has_none_for_any_number_of_ranks(
    base: Path, tmp_path: Path
) -> None:
    fastckpt.save_checkpoint(base, STEP, {}, None, {})
    assert state_of(0) is None
    assert state_of(0, world_size=2) is None
    assert in_group(2, state_of) == [None, None]


def test_a_step_that_is_not_there_has_no_state(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in nanochat, which looks for the file of the rank alone."""
    save_ranks(base, 1)
    caplog.set_level("INFO", "nanochat.checkpoint_manager")
    caplog.clear()
    assert state_of(0, step=11) is None
    assert state_of(0, step=np.int64(11), world_size=4) is None
    assert state_of(3, step=11) is None
    assert state_of(0, model_tag="d20", step=10) is None
    for left in ("meta_000011.json", "manifest_000011.json", "optim_000011_rank1.pt"):
        (base / left).write_bytes(b"left by a save that was killed before its model was there")
        assert state_of(0, step=11) is None
    assert caplog.messages == [
        f"Optimizer checkpoint not found: {base.parent / tag}/optim_0000{step}_rank{rank}.pt"
        for tag, step, rank in [
            ("d12", 11, 0),
            ("d12", 11, 0),
            ("d12", 11, 3),
            ("d20", 10, 0),
            *[("d12", 11, 0)] * 3,
        ]
    ]


def test_a_shard_without_its_model_is_not_taken_for_a_step(base: Path) -> None:
    save_ranks(base, 1, step=5, save_id=1)
    save_ranks(base, 1)
    (base / "model_000010.pt").unlink()
    with pytest.raises(IncompleteCheckpointError, match=r"was not saved to its end; .* here: 5"):
        state_of(0, step=STEP)
    assert state_of(1, step=STEP) is None
    assert state_of(0) == {"rank": 0}


def test_a_shard_under_its_second_name_counts_as_well(base: Path) -> None:
    """So a save that was killed leaves it on file systems without hard links."""
    save_ranks(base, 2)
    name = "optim_000010_rank0.pt"
    (base / name).rename(base / kept_name(17, name))
    assert "has 2 optimizer shards" in words_of(lambda: state_of(0))
    assert state_of(0, world_size=2) == {"rank": 0}


def test_a_rank_without_a_file_has_no_state_where_the_step_does_not_count(
    base: Path, tmp_path: Path
) -> None:
    """As in nanochat; but not on one rank of a group while the others are refused."""
    save_as_nanochat(base, 2)
    (base / "optim_000010_rank0.pt").unlink()
    assert state_of(0) is None
    found = in_group(3, lambda rank: words_of(lambda: state_of(rank)))
    assert all("this process group has 3 ranks" in words for words in found)


def test_without_any_step_there_is_an_error(base: Path) -> None:
    with pytest.raises(FileNotFoundError):
        state_of(0)
    base.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="No checkpoints found in"):
        state_of(0)


# Saving.


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_cannot_agree_do_not_save(tmp_path: Path, rank: int) -> None:
    """Without a process group each would make up an id of its own, and no loader would take them together."""
    with pytest.raises(ValueError, match="world_size=2 needs a process group") as caught:
        fastckpt.save_checkpoint(tmp_path / "run", STEP, {}, {}, {}, rank=rank, world_size=2)
    assert "init_process_group" in str(caught.value)
    assert "pass world_size=1" in str(caught.value)
    assert os.listdir(tmp_path) == []
    # Nobody has to agree on a step without shards, nor for a rank that has nothing to save.
    fastckpt.save_checkpoint(tmp_path / "run", STEP, {}, None, {}, rank=rank, world_size=2)
    assert (tmp_path / "run").exists() == (rank == 0)


def test_a_shard_that_the_step_would_not_count_is_not_saved(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def work(rank: int) -> str:
        with pytest.raises(ValueError, match="has optimizer state to save") as caught:
            fastckpt.save_checkpoint(run, STEP, {}, {}, {}, rank=rank + 2, world_size=2)
        with pytest.raises(ValueError, match=r"world_size=2 counts only ranks 0 to 1"):
            fastckpt.save_checkpoint(run, STEP, {}, {}, {}, rank=rank + 2)
        return str(caught.value)

    assert in_group(2, work)[1] == (
        "rank 3 has optimizer state to save, but world_size=2 counts only ranks 0 to 1"
    )
    with pytest.raises(ValueError, match=r"rank 1 .* world_size=1 counts only rank 0"):
        fastckpt.save_checkpoint(run, STEP, {}, {}, {}, rank=1, world_size=1)
    with pytest.raises(ValueError, match="world_size must be at least 1, not 0"):
        fastckpt.save_checkpoint(run, STEP, {}, {}, {}, world_size=0)
    with pytest.raises(ValueError, match="rank must be at least 0, not -1"):
        fastckpt.save_checkpoint(run, STEP, {}, {}, {}, rank=-1)
    assert not run.exists()


def test_a_refused_save_does_not_count(tmp_path: Path) -> None:
    """The counts of saves are what keeps the ranks together; one may be refused and another not."""
    run = tmp_path / "run"

    def work(rank: int) -> None:
        if rank == 1:
            with pytest.raises(ValueError, match="world_size=1"):
                fastckpt.save_checkpoint(run, STEP, {}, {}, {}, rank=rank, world_size=1)
        fastckpt.save_checkpoint(run, STEP, {}, {"rank": rank}, {}, rank=rank)

    in_group(2, work)
    assert fastckpt.verify(run).ok
    assert load(run, 1, world_size=2) == {"rank": 1}


def test_a_step_that_was_saved_so_before_is_the_same_to_everyone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Versions before this one saved it: the model counts two shards, and one of them carries no id."""
    save_ranks(tmp_path, 2, step=5)
    with agreed(18, 2):
        fastckpt.save_checkpoint(tmp_path, STEP, {}, {"rank": 0}, {"step": STEP})
    fastckpt.save_checkpoint(tmp_path, STEP, None, {"rank": 1}, None, rank=1)
    words = (
        f"{tmp_path}/optim_000010_rank1.pt is not of the save that {tmp_path}/model_000010.pt is of: it "
        "carries no save id (it was saved without a process group, or by torch.save), so step 10 is "
        "incomplete"
    )
    for rank in (0, 1):
        for world_size in (None, 2):
            with pytest.raises(IncompleteCheckpointError) as caught:
                load(tmp_path, rank, world_size=world_size)
            assert str(caught.value) == f"{words}; newest good step here: 5"

    (_, step) = fastckpt.verify(tmp_path).steps
    assert (step.status.value, step.torn, step.missing) == ("incomplete", (words,), ())
    assert fastckpt.verify(tmp_path).newest_good_steps == {str(tmp_path): 5}

    found = fastckpt.inspect(tmp_path)
    assert isinstance(found, DirectoryContents)
    (run,) = found.runs
    assert [(row.state, row.problem) for row in run.checkpoints] == [
        (State.WHOLE, None),
        (State.TORN, words),
    ]
    assert run.newest == 5

    (_, left) = fastckpt.prune(tmp_path, keep=1).checkpoints
    assert (left.fate.value, left.reasons) == ("left_alone", (words,))
    assert fastckpt.find_last_good_step(tmp_path) == 5
    for command in ("verify", "inspect", "prune"):
        options = ["--keep", "1"] if command == "prune" else []
        run_command([command, str(tmp_path), *options])
        assert words in capsys.readouterr().out
    # Its model is whole, and is what can be had of it.
    assert fastckpt.load_checkpoint(tmp_path, STEP, "cpu") == ({}, None, {"step": STEP})
