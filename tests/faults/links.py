"""Paths that lead through links of all kinds, to where a plain open of the same path writes."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tests.faults.children import Raised, raised_by, working_in
from tests.faults.harness import Tally
from tests.specimens import assert_same

import fastckpt

OLD = {"w": torch.arange(100.0), "n": 1}
NEW = {"w": torch.arange(200.0), "n": 2}


def _grow(top: Path, generator: random.Random) -> list[str]:
    """Make a tree of directories, files, a FIFO and links into it; return all its paths."""
    (top / "a" / "b").mkdir(parents=True)
    (top / "c").mkdir()
    paths = ["a", "a/b", "c"]
    for name in ("one.pt", "a/two.pt", "a/b/three.pt"):
        fastckpt.save(OLD, top / name, sync=False)
        paths.append(name)
    os.mkfifo(top / "fifo")
    paths.append("fifo")
    for number in range(generator.randrange(1, 9)):
        name = generator.choice(["", "a/", "a/b/", "c/"]) + f"link{number}"
        (top / name).symlink_to(_target(top, name, generator, paths))
        paths.append(name)
    return paths


def _target(top: Path, name: str, generator: random.Random, paths: list[str]) -> str:
    missing = f"missing{generator.randrange(3)}.pt"
    target = generator.choice([*paths, missing, f"c/{missing}", f"no/{missing}", name, ".", ""])
    if generator.random() < 0.3:
        return str(top / target)
    return os.path.join(os.path.relpath(".", os.path.dirname(name) or "."), target)


def _path_to_save_to(generator: random.Random, paths: list[str]) -> str:
    path = generator.choice(paths)
    if generator.random() < 0.5:
        path += generator.choice(["/new.pt", "/two.pt", "/../one.pt", "/../c/new.pt", "/link0"])
    # Spellings that mean the same to the kernel, or (behind) that it refuses for a file.
    before, behind = ("", "./", "c/../", ".//"), ("", "", "", "", "/", "/.")
    return generator.choice(before) + path + generator.choice(behind)


def _open_plainly(path: str) -> None:
    # Not to wait for a reader of the FIFO.
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o666)
    os.write(fd, b"new")
    os.close(fd)


def _contents(top: Path) -> dict[str, str]:
    """Describe everything below: kind, target of links, and "old", "new" or other of files."""
    found = {}
    for path in sorted(top.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            said = "link"
        elif stat.S_ISREG(mode):
            said = _content_of(path)
        else:
            said = str(stat.S_IFMT(mode))
        found[str(path.relative_to(top))] = said
    return found


def _content_of(path: Path) -> str:
    if path.read_bytes() == b"new":
        return "new"
    found = torch.load(path)
    assert_same(found, OLD if found["n"] == 1 else NEW)
    return "old" if found["n"] == 1 else "new"


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Save to paths through links of all kinds: where a plain open writes, and nowhere else."""
    tally = Tally()
    for case in range(cases):
        # The same tree at the same place for both: absolute links lead into the tree itself.
        trees = [
            _write_in_a_tree(directory / "tree", random.Random(f"{seed} {case}"), write)
            for write in (_open_plainly, partial(fastckpt.save, NEW, sync=False))
        ]
        (path, plain, expected), (_, raised, found) = trees
        what = f"{seed=} {case=} {path=}: a plain open: {plain}; a save: {raised}"
        differs = [name for name in {*expected, *found} if expected.get(name) != found.get(name)]
        if differs:
            tally.fail(f"{what}; other changes: {sorted(differs)}")
        elif plain is None and raised is None:
            tally.count("saved")
        elif plain is None or raised is None or not _agree(plain, raised, path):
            tally.fail(what)
        else:
            tally.count(errno.errorcode[raised.errno or 0])
    return tally


def _write_in_a_tree(
    top: Path, generator: random.Random, write: Callable[[str], object]
) -> tuple[str, Raised | None, dict[str, str]]:
    """Return the path written to, what was raised, and what is everywhere in the tree then."""
    top.mkdir()
    path = _path_to_save_to(generator, _grow(top, generator))
    with working_in(top):
        raised = raised_by(partial(write, path))
    found = _contents(top)
    shutil.rmtree(top)
    return path, raised, found


_NO_FILE_THERE = {errno.EISDIR, errno.ENOTDIR, errno.ENOENT, errno.ELOOP}


def _agree(plain: Raised, raised: Raised, path: str) -> bool:
    if raised.errno == plain.errno:
        return True
    # With a slash behind, it is a directory that is asked for, whatever else is wrong.
    if path[-1] in "/." and raised.errno in _NO_FILE_THERE:
        return True
    # The kernel refuses a FIFO without a reader; one with a reader would be no better.
    return (plain.errno, raised.errno) == (errno.ENXIO, errno.EINVAL)
