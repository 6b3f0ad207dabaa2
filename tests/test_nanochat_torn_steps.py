"""Steps whose files are not all of one save: what is loaded, what is refused, what is said."""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typing_extensions import Self

import fastckpt
from fastckpt import _native
from fastckpt._steps.save_id import agreed
from fastckpt._steps.survey import kept_name

LOGGER = "nanochat.checkpoint_manager"
STEP = 10
WORLD_SIZE = 3


def save_ranks(directory: Path, number: int, *ranks: int, step: int = STEP) -> None:
    """Save the parts of some ranks of save `number`."""
    with agreed(number, WORLD_SIZE):
        for rank in ranks:
            model = {"w": torch.full((50,), float(number))}
            fastckpt.save_checkpoint(
                directory, step, model, {"rank": rank, "number": number}, {"n": number}, rank=rank
            )


def loaded_number(
    directory: Path, rank: int = 0, step: int = STEP, world_size: int = WORLD_SIZE
) -> int:
    """Load one rank's view of the step, which has to be all of one save; return which."""
    model, optimizer, meta = fastckpt.load_checkpoint(
        directory, step, "cpu", load_optimizer=True, rank=rank, world_size=world_size
    )
    number: int = meta["n"]
    assert torch.equal(model["w"], torch.full((50,), float(number)))
    assert optimizer == {"rank": rank, "number": number}
    return number


def hidden(directory: Path) -> list[str]:
    return sorted(name for name in os.listdir(directory) if name.startswith("."))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Hold step 5 whole, and step 10 whole by save 1."""
    save_ranks(tmp_path, 9, 0, 1, 2, step=5)
    save_ranks(tmp_path, 1, 0, 1, 2)
    return tmp_path


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_the_old_save_is_loaded_until_the_new_one_is_whole(
    run: Path, order: tuple[int, int, int]
) -> None:
    for done, rank in enumerate(order, 1):
        save_ranks(run, 2, rank)
        expected = 2 if done == WORLD_SIZE else 1
        assert [loaded_number(run, rank) for rank in range(WORLD_SIZE)] == [expected] * WORLD_SIZE
        assert fastckpt.find_last_good_step(run, world_size=WORLD_SIZE, verify="full") == STEP
        assert fastckpt.verify(run).ok
    assert hidden(run) == []


def test_a_save_that_never_became_whole_gives_way_to_the_next(run: Path) -> None:
    save_ranks(run, 2, 0, 1)
    save_ranks(run, 3, 2)
    assert loaded_number(run) == 1
    save_ranks(run, 3, 1, 0)
    assert loaded_number(run, 2) == 3
    assert hidden(run) == []


def test_a_rank_may_be_a_save_ahead(run: Path) -> None:
    """Nobody waits: a rank replaces its part of a save that others have not finished."""
    save_ranks(run, 2, 0)
    save_ranks(run, 3, 0)
    assert loaded_number(run) == 1
    save_ranks(run, 2, 1, 2)
    assert [loaded_number(run, rank) for rank in range(WORLD_SIZE)] == [2] * WORLD_SIZE
    save_ranks(run, 3, 2, 1)
    assert loaded_number(run) == 3
    assert hidden(run) == []


def test_ranks_that_never_save_do_not_fill_the_disk(tmp_path: Path) -> None:
    for number in range(1, 12):
        save_ranks(tmp_path, number, 0)
    # Model, manifest, meta and shard of two unfinished saves, and of the one before the last.
    assert len(hidden(tmp_path)) <= 3 * 4


def test_an_evaluation_may_read_the_new_model_already(run: Path) -> None:
    save_ranks(run, 2, 0)
    model, optimizer, meta = fastckpt.load_checkpoint(run, STEP, "cpu")
    assert (model["w"][0].item(), optimizer, meta) == (2.0, None, {"n": 2})


def test_what_nanochat_saved_is_kept_too(tmp_path: Path) -> None:
    torch.save({"w": torch.full((50,), 7.0)}, tmp_path / "model_000010.pt")
    for rank in range(WORLD_SIZE):
        name = f"optim_000010_rank{rank}.pt"
        torch.save({"rank": rank, "number": 7}, tmp_path / name)
    (tmp_path / "meta_000010.json").write_text(json.dumps({"n": 7}))
    save_ranks(tmp_path, 1, 0, 2)
    assert [loaded_number(tmp_path, rank) for rank in range(WORLD_SIZE)] == [7] * WORLD_SIZE
    save_ranks(tmp_path, 1, 1)
    assert [loaded_number(tmp_path, rank) for rank in range(WORLD_SIZE)] == [1] * WORLD_SIZE
    assert hidden(tmp_path) == []


def test_a_torn_step_is_refused_and_the_newest_good_one_named(run: Path) -> None:
    save_ranks(run, 2, 0, 1)
    for name in hidden(run):
        (run / name).unlink()
    for rank in range(WORLD_SIZE):
        with pytest.raises(fastckpt.IncompleteCheckpointError) as caught:
            fastckpt.load_checkpoint(run, STEP, "cpu", load_optimizer=True, rank=rank)
        assert isinstance(caught.value, FileNotFoundError)
        assert caught.value.filename == f"{run}/optim_000010_rank2.pt"
        assert str(caught.value) == (
            f"{run}/optim_000010_rank2.pt is not of the save that {run}/model_000010.pt is of: "
            "step 10 was being saved again when it was interrupted; newest good step here: 5"
        )
    assert fastckpt.find_last_step(run) == STEP
    assert fastckpt.find_last_good_step(run) == 5
    report = fastckpt.verify(run)
    assert report.exit_code == 3
    assert report.newest_good_steps == {str(run): 5}
    assert report.steps[1].torn == (str(caught.value).split("; newest")[0],)
    assert report.steps[1].missing == ()


def test_missing_shards_are_known_by_the_count(run: Path) -> None:
    (run / "optim_000010_rank2.pt").unlink()
    with pytest.raises(fastckpt.IncompleteCheckpointError, match="has 3 optimizer shards") as e:
        loaded_number(run, 0)
    assert e.value.filename == f"{run}/optim_000010_rank2.pt"
    (step,) = [step for step in fastckpt.verify(run).steps if step.step == STEP]
    assert step.missing == ("optim_000010_rank2.pt",)
    assert fastckpt.load_checkpoint(run, STEP, "cpu")[2] == {"n": 1}


def test_a_copy_without_the_manifest_loads_and_verifies(run: Path) -> None:
    (run / "manifest_000010.json").unlink()
    assert [loaded_number(run, rank) for rank in range(WORLD_SIZE)] == [1] * WORLD_SIZE
    assert fastckpt.verify(run).ok
    save_ranks(run, 2, 0, 1)
    assert loaded_number(run) == 1
    save_ranks(run, 2, 2)
    assert loaded_number(run) == 2
    assert hidden(run) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model_000010.pt", "manifest_000010.json is not of the save that"),
        ("manifest_000010.json", "manifest_000010.json is not of the save that"),
        ("meta_000010.json", "meta_000010.json is not the file that was saved"),
        ("optim_000010_rank0.pt", "optim_000010_rank0.pt is not of the save that"),
        ("optim_000010_rank1.pt", "optim_000010_rank1.pt is not of the save that"),
    ],
)
def test_a_file_of_another_save_is_named(run: Path, name: str, words: str, tmp_path: Path) -> None:
    other = run / "other"
    save_ranks(other, 2, 0, 1, 2)
    shutil.copy(other / name, run / name)
    for rank in range(WORLD_SIZE):
        with pytest.raises(fastckpt.CheckpointError) as caught:
            loaded_number(run, rank)
        if name != "model_000010.pt":
            assert words in str(caught.value)
    assert not fastckpt.verify(run).ok
    assert fastckpt.find_last_good_step(run) == 5


def test_a_step_under_another_number_is_refused(run: Path) -> None:
    for old in os.listdir(run):
        if "000010" in old:
            os.rename(run / old, run / old.replace("000010", "000020"))
    with pytest.raises(fastckpt.IncompleteCheckpointError, match="manifest_000020"):
        loaded_number(run, step=20)
    assert fastckpt.find_last_good_step(run) == 5


def test_shards_left_by_a_larger_run_are_not_loaded(tmp_path: Path) -> None:
    save_ranks(tmp_path, 1, 0, 1, 2)
    with agreed(2, 2):
        for rank in (0, 1):
            fastckpt.save_checkpoint(tmp_path, STEP, {}, {"rank": rank}, {}, rank=rank)
    assert hidden(tmp_path) == []
    assert fastckpt.load_checkpoint(tmp_path, STEP, "cpu", True, 1)[1] == {"rank": 1}
    with pytest.raises(fastckpt.IncompleteCheckpointError, match="has 2 optimizer shards"):
        fastckpt.load_checkpoint(tmp_path, STEP, "cpu", True, 2)
    (step,) = fastckpt.verify(tmp_path).steps
    assert step.status.value == "good"
    assert step.extra == ("optim_000010_rank2.pt",)


def test_a_model_saved_again_by_torch_is_taken_at_its_word(run: Path) -> None:
    torch.save({"w": torch.full((50,), 1.0)}, run / "model_000010.pt")
    assert [loaded_number(run, rank) for rank in range(WORLD_SIZE)] == [1] * WORLD_SIZE


def test_files_without_ids_are_whole_without_a_gap(tmp_path: Path) -> None:
    for rank in (0, 1, 3):
        torch.save({"rank": rank, "number": 1}, tmp_path / f"optim_000010_rank{rank}.pt")
    torch.save({"w": torch.full((50,), 1.0)}, tmp_path / "model_000010.pt")
    (tmp_path / "meta_000010.json").write_text(json.dumps({"n": 1}))
    with pytest.raises(fastckpt.IncompleteCheckpointError, match=r"rank2\.pt is missing"):
        loaded_number(tmp_path, 0)
    shutil.copy(tmp_path / "optim_000010_rank1.pt", tmp_path / "optim_000010_rank2.pt")
    assert loaded_number(tmp_path, 3, world_size=4) == 1
    assert fastckpt.find_last_good_step(tmp_path, world_size=4) == STEP


# find_last_good_step


def test_the_number_of_ranks_may_be_asked_for(run: Path) -> None:
    with agreed(4, 2):
        for rank in (0, 1):
            fastckpt.save_checkpoint(run, 20, {}, {}, {}, rank=rank)
    assert fastckpt.find_last_good_step(run) == 20
    assert fastckpt.find_last_good_step(run, world_size=2) == 20
    assert fastckpt.find_last_good_step(run, world_size=3) == STEP
    with pytest.raises(fastckpt.IncompleteCheckpointError, match="saved by 2 ranks, not 7"):
        fastckpt.find_last_good_step(run, world_size=7)
    with pytest.raises(ValueError, match="'quick' or 'full'"):
        fastckpt.find_last_good_step(run, verify="slow")  # type: ignore[arg-type]


def test_full_reads_the_tensors(run: Path) -> None:
    path = run / "optim_000010_rank1.pt"
    archive = _native.Archive.open(path)
    data = bytearray(path.read_bytes())
    data[archive.record_offset("data.pkl") + 5] ^= 1
    path.write_bytes(data)
    assert fastckpt.find_last_good_step(run) == STEP
    assert fastckpt.find_last_good_step(run, verify="full") == 5


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No checkpoints found in"):
        fastckpt.find_last_good_step(tmp_path)
    with pytest.raises(FileNotFoundError):
        fastckpt.find_last_good_step(tmp_path / "none")
    save_ranks(tmp_path, 1, 0)
    with pytest.raises(fastckpt.IncompleteCheckpointError, match=r"no step in .* is whole"):
        fastckpt.find_last_good_step(tmp_path)


def test_steps_go_by_number_not_by_time(run: Path) -> None:
    for name in os.listdir(run):
        os.utime(run / name, (1, 1) if "000010" in name else (2**31, 2**31))
    assert fastckpt.find_last_good_step(run) == STEP


def test_a_refusal_leaves_no_file_open(run: Path) -> None:
    """An exception in a local variable is a cycle: base_train runs without the collector."""
    save_ranks(run, 2, 0, step=20)
    os.truncate(run / "model_000010.pt", 700)
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            assert fastckpt.find_last_good_step(run) == 5
            assert not fastckpt.verify(run).ok
            for step in (STEP, 20, 30):
                with pytest.raises((fastckpt.CheckpointError, FileNotFoundError)):
                    fastckpt.load_checkpoint(run, step, "cpu", load_optimizer=True)
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


# load_optimizer_state and load_model_from_dir


@pytest.fixture
def base(run: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> Path:
    """Hold the run as nanochat's base checkpoint of the tag d1."""
    root = tmp_path_factory.mktemp("nanochat")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(root))
    directory = root / "base_checkpoints" / "d1"
    shutil.copytree(run, directory)
    return directory


def state_of(rank: int, step: int | None = None) -> Any:
    return fastckpt.load_optimizer_state("base", "cpu", rank=rank, step=step, world_size=WORLD_SIZE)


def test_a_shard_that_should_be_there_is_missed(base: Path) -> None:
    (base / "optim_000010_rank1.pt").unlink()
    assert state_of(0) == {"rank": 0, "number": 1}
    with pytest.raises(fastckpt.IncompleteCheckpointError) as caught:
        state_of(1)
    assert str(caught.value) == (
        f"{base}/optim_000010_rank1.pt is missing: step 10 has 3 optimizer shards (ranks that "
        "have one: 0, 2); newest good step here: 5"
    )
    assert state_of(3) is None
    assert state_of(1, step=5) == {"rank": 1, "number": 9}


def test_a_shard_of_another_save_is_refused(base: Path) -> None:
    save_ranks(base, 2, 0, 1)
    assert state_of(1) == {"rank": 1, "number": 2}
    with pytest.raises(fastckpt.IncompleteCheckpointError, match=r"rank2\.pt is not of the save"):
        state_of(2)


def test_the_state_is_of_the_step_of_the_model(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (base / "meta_000010.json").unlink()
    assert state_of(1) == {"rank": 1, "number": 9}
    passed_over = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert passed_over == [f"Passing over step 10 in {base}: not saved to its end. Newest whole: 5"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda run: (run / "meta_000010.json").unlink(),
        lambda run: (run / "meta_000010.json").write_text("{}"),
        lambda run: os.truncate(run / "model_000010.pt", 700),
    ],
)
def test_a_model_whose_step_is_not_whole_is_passed_over(
    base: Path, spoil: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    spoil(base)
    caplog.set_level(logging.INFO, LOGGER)
    with pytest.raises(KeyError, match="model_config"):
        fastckpt.load_model_from_dir(
            base.parent, "cpu", "eval", model_class=dict, config_class=dict, tokenizer=object()
        )
    assert f"Passing over step 10 in {base}: not saved to its end. Newest whole: 5" in caplog.text
    assert f"Loading model from {base} with step 5" in caplog.text


def test_without_one_whole_model_there_is_an_error(base: Path) -> None:
    for step in (5, STEP):
        (base / f"meta_{step:06d}.json").unlink()
    with pytest.raises(
        fastckpt.IncompleteCheckpointError, match=r"no step in .* has a whole model"
    ):
        state_of(0)


# What is kept


def test_names_of_kept_files_match_no_pattern_of_nanochats(run: Path) -> None:
    save_ranks(run, 2, 0)
    names = [kept_name(1, f"{name}") for name in ("model_000010.pt", "optim_000010_rank0.pt")]
    assert set(names) < set(hidden(run))
    assert not any(name.endswith((".pt", ".json")) for name in hidden(run))
    for name in hidden(run):
        assert os.stat(run / name).st_nlink == 1


def test_a_save_that_fails_leaves_no_second_names(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def __init__(self, commit: _native.Commit) -> None:
            self.commit = commit

        def __enter__(self) -> Self:
            self.commit.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self.commit.abort()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.commit, name)

        def publish(self, paths: Any) -> None:
            raise OSError(errno.EIO, "seeded failure", str(paths[0]))

    before = sorted(os.listdir(run))
    with monkeypatch.context() as patch:
        make = _native.Commit
        patch.setattr(_native, "Commit", lambda: Failing(make()))
        with pytest.raises(OSError, match="seeded failure"):
            save_ranks(run, 2, 0)
    assert sorted(os.listdir(run)) == before
    assert loaded_number(run) == 1
