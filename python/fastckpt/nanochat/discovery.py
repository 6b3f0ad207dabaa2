"""Find checkpoints as nanochat guesses them: by names in directories alone."""

import importlib
import os
import re
import stat
from dataclasses import dataclass
from difflib import get_close_matches

_Path = str | os.PathLike[str]

# Not anchored at its start, as in nanochat: any name that ends so counts as a model.
_MODEL_NAME = re.compile(r"model_(\d+)\.pt$")
# A prefix match: `d20_run2` counts as depth 20.
_DEPTH_TAG = re.compile(r"d(\d+)")

# The directory to which each training stage of nanochat saves.
_SOURCE_DIRECTORIES = {
    "base": "base_checkpoints",
    "sft": "chatsft_checkpoints",
    "rl": "chatrl_checkpoints",
}


@dataclass(frozen=True)
class StepPaths:
    """Where the files of one step are. Numbers have 6 digits, and more from a million on."""

    directory: _Path
    step: int

    @property
    def model(self) -> str:
        """The state dict of the model: the file by which a step is found."""
        return os.path.join(self.directory, f"model_{self.step:06d}.pt")

    @property
    def meta(self) -> str:
        """The meta JSON."""
        return os.path.join(self.directory, f"meta_{self.step:06d}.json")

    @property
    def manifest(self) -> str:
        """The manifest: the save id, the number of shards, the SHA-256 of the meta."""
        return os.path.join(self.directory, f"manifest_{self.step:06d}.json")

    def optimizer(self, rank: int) -> str:
        """The optimizer shard of one rank."""
        return os.path.join(self.directory, f"optim_{self.step:06d}_rank{rank:d}.pt")


def find_largest_model(checkpoints_dir: _Path) -> str:
    """Guess the model tag in a directory of model tags, as nanochat (92d63d4) does.

    Args:
        checkpoints_dir: A directory whose subdirectories are model tags.

    Returns:
        The tag `d<number>...` with the highest number. If no tag has this form, the tag whose
        directory changed last.

    Raises:
        FileNotFoundError: The directory does not exist, or has no subdirectory.

    Example:
        >>> import os
        >>> os.makedirs("runs/d12")
        >>> os.makedirs("runs/d20")
        >>> find_largest_model("runs")
        'd20'
    """
    tags = [
        name
        for name in os.listdir(checkpoints_dir)
        if _is_directory(os.path.join(checkpoints_dir, name))
    ]
    if not tags:
        raise FileNotFoundError(f"No checkpoints found in {checkpoints_dir}")
    depths = {tag: int(match[1]) for tag in tags if (match := _DEPTH_TAG.match(tag))}
    if depths:
        return max(depths, key=depths.__getitem__)
    return max(tags, key=lambda tag: os.path.getmtime(os.path.join(checkpoints_dir, tag)))


def _is_directory(path: str) -> bool:
    # Not os.path.isdir: it says False of a directory on a disk that fails.
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except FileNotFoundError:
        return False  # A symbolic link that leads nowhere.


def find_last_step(checkpoint_dir: _Path) -> int:
    """Find the highest step that has a model, as nanochat (92d63d4) does.

    `save_checkpoint` makes the model visible last, so a step that this finds was finished by
    rank 0. Steps are compared as numbers.

    Raises:
        FileNotFoundError: The directory does not exist, or has no model.

    Example:
        >>> import fastckpt, torch
        >>> fastckpt.save_checkpoint("runs/d12", 100, {"w": torch.ones(2)}, None, {"step": 100})
        >>> find_last_step("runs/d12")
        100
    """
    steps = list_steps(checkpoint_dir)
    if not steps:
        raise FileNotFoundError(f"No checkpoints found in {checkpoint_dir}")
    return steps[-1]


def list_steps(checkpoint_dir: _Path) -> list[int]:
    """Return the steps that have a model, lowest first."""
    matches = map(_MODEL_NAME.search, os.listdir(checkpoint_dir))
    return sorted({int(match[1]) for match in matches if match})


def source_directory(source: str) -> str:
    """Return the directory of model tags of a training stage: "base", "sft" or "rl".

    Raises:
        KeyError: `source` is not one of these.
    """
    name = _SOURCE_DIRECTORIES.get(source)
    if name is None:
        expected = ", ".join(map(repr, _SOURCE_DIRECTORIES))
        near = get_close_matches(str(source), _SOURCE_DIRECTORIES, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise KeyError(f"source must be one of {expected}, not {source!r}{meant}")
    return os.path.join(_base_directory(), name)


def _base_directory() -> str:
    """Return the base directory of nanochat, and create it; the environment is read at each call."""
    try:
        # A fork of nanochat may have another base directory, and says so.
        nanochat_common = importlib.import_module("nanochat.common")
    except ImportError:
        default = os.path.join(os.path.expanduser("~"), ".cache", "nanochat")
        directory = os.environ.get("NANOCHAT_BASE_DIR") or default
        os.makedirs(directory, exist_ok=True)
        return directory
    return str(nanochat_common.get_base_dir())
