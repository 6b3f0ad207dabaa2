"""Damaged files, and what may come of reading one: a typed error, or exactly what was saved."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tests.faults.harness import Tally
from tests.specimens import assert_same, fill, quiet

import fastckpt


def smallest() -> Any:
    """Make a state dict of one tensor and one number."""
    return {"weight": torch.tensor([1.0, -2.0, 3.5]), "step": 7}


def small_weights() -> Any:
    """Make a state dict of about 1 KB, with a view, an empty tensor and plain values."""
    base = torch.arange(40.0)
    return {
        "layer.weight": base.view(5, 8),
        "layer.bias": torch.linspace(-1, 1, 9, dtype=torch.bfloat16),
        "tied": base[8:24:2],
        "empty": torch.empty(0),
        "step": 7,
    }


def small_optimizer() -> Any:
    """Make the state of an AdamW that has taken a step, nested as optimizers nest theirs."""
    parameters = [torch.nn.Parameter(torch.linspace(0, 1, n)) for n in (6, 3)]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def golden() -> Any:
    """Make the state dict of a small model, which is a file of about 4 KB."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 20), torch.nn.Linear(20, 6)).state_dict()


def of_size(nbytes: int) -> dict[str, torch.Tensor]:
    """Make a state dict of six tensors of unlike sizes, `nbytes` in all, without a repeated block."""
    parts = (1, 2, 3, 5, 8, 13)
    return {
        f"layer.{i}.weight": fill(torch.float32, nbytes * part // sum(parts) // 4, seed=i)
        for i, part in enumerate(parts)
    }


OBJECTS: dict[str, Callable[[], Any]] = {
    "smallest": smallest,
    "weights": small_weights,
    "optimizer": small_optimizer,
    "golden": golden,
}
SAVERS: dict[str, Callable[[Any, Any], Any]] = {"torch": torch.save, "fastckpt": fastckpt.save}


def archive_of(kind: str, writer: str) -> tuple[Any, bytes]:
    """Return an object and the file that a library writes of it."""
    obj = OBJECTS[kind]()
    return obj, file_of(obj, writer)


def file_of(obj: Any, writer: str) -> bytes:
    """Return the file that a library writes of an object."""
    file = io.BytesIO()
    SAVERS[writer](obj, file)
    return file.getvalue()


@contextmanager
def fast_directory() -> Iterator[Path]:
    """A directory in memory where there is one: tens of thousands of small files go there."""
    shm = "/dev/shm"
    parent = shm if os.path.isdir(shm) and os.access(shm, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        yield Path(directory)


def outcome(path: Path | io.BytesIO, expected: Any, **options: Any) -> str:
    """Load; return the name of the error, or "same" where the object is what was saved.

    A panic is no `Exception`, and goes through; so does every error without a type of ours.
    """
    try:
        found = fastckpt.load(path, **options)
    except fastckpt.CheckpointError as error:
        refusal = error
    else:
        assert_same(found, expected)
        return "same"
    if isinstance(path, Path):
        assert refusal.path == str(path), repr(refusal)
        assert str(path) in str(refusal)
    return type(refusal).__name__


def outcome_of_torch(path: Path, expected: Any) -> str:
    """Let torch load the file: "raised", "same", or "silent" where it gave something else."""
    try:
        found = torch.load(path)
    except Exception:
        return "raised"
    try:
        assert_same(found, expected)
    except (AssertionError, AttributeError, TypeError):
        return "silent"
    return "same"


class Judge:
    """Looks at a file after each damage to it: verified and loaded, plainly and mapped.

    Attributes:
        tally: What came of all the damages.
    """

    def __init__(self, path: Path, expected: Any, tally: Tally | None = None) -> None:
        self._path = path
        self._expected = expected
        self.tally = Tally() if tally is None else tally

    def look(self, case: str) -> None:
        """Verify and load the file as it is now; `case` says how it came to be so."""
        problems = []
        try:
            if fastckpt.verify(self._path).ok:
                problems.append("verify finds nothing")
            for way, mmap in (("load", False), ("mmap", True)):
                try:
                    result = outcome(self._path, self._expected, mmap=mmap)
                except Exception as error:
                    problems.append(f"{way}: {error!r}"[:500])
                else:
                    self.tally.outcomes[f"{way}: {result}"] += 1
        except BaseException:
            print(f"in the midst of: {case}")
            raise
        if problems:
            self.tally.fail(f"{case}: {'; '.join(problems)}")
        else:
            self.tally.count("detected")

    def close(self) -> None:
        """Assert that all was well."""
        print(dict(sorted(self.tally.outcomes.items())))
        assert self.tally.failures == []
        assert self.tally.outcomes["detected"] == self.tally.cases > 0


@contextmanager
def damaged_copies(kind: str, writer: str) -> Iterator[tuple[bytes, Path, Judge]]:
    """A file to damage and the judge of what comes of it, who is heard at the end."""
    with quiet(), fast_directory() as directory:
        obj, data = archive_of(kind, writer)
        path = directory / "model.pt"
        path.write_bytes(data)
        assert fastckpt.verify(path).ok
        assert outcome(path, obj) == "same"
        judge = Judge(path, obj)
        yield data, path, judge
        judge.close()


def flip_every_bit(path: Path, data: bytes) -> Iterator[str]:
    """Flip the bits of a file in place, one at a time; yield while each is flipped."""
    with path.open("r+b", buffering=0) as file:
        for position, byte in enumerate(data):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), position)
                yield f"bit {bit} of byte {position} of {path.name}"
            os.pwrite(file.fileno(), bytes([byte]), position)
    assert path.read_bytes() == data
