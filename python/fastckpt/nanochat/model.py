"""From the files of a step to a model that is ready to run."""

import importlib
import operator
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from fastckpt.errors import CheckpointError, FormatError

from .compat import patch_config, patch_parameters, strip_wrapper_prefixes, widen_bfloat16
from .discovery import StepPaths, find_largest_model, source_directory
from .loading import (
    add_advice,
    has_model,
    load_checkpoint,
    load_part,
    newest_good_model,
    open_save,
)
from .log import log0, logger
from .world_size import shards_check

_Path = str | os.PathLike[str]

_PHASES = ("train", "eval")


def build_model(
    checkpoint_dir: _Path,
    step: int,
    device: str | torch.device,
    phase: str,
    *,
    model_class: Callable[[Any], Any] | None = None,
    config_class: Callable[..., Any] | None = None,
    tokenizer: Any = None,
) -> tuple[Any, Any, dict[str, Any]]:
    """Build the model of a step, as nanochat (92d63d4) does.

    The model is made on the meta device, so its weights take no memory until `init_weights()`. That
    makes the tables that are not in the file, and consumes the global RNG. The loaded tensors then
    become the parameters without a copy. Checkpoints of older versions of nanochat, of compiled models
    and of models under DistributedDataParallel are patched; each patch is logged.

    Args:
        checkpoint_dir: Directory of the run.
        step: Number of the step.
        device: Where the model goes. On the CPU and on MPS, bfloat16 weights become float32.
        phase: "train" or "eval", the mode in which the model is returned.
        model_class: Takes a config, and has `init_weights()` [default: nanochat.gpt.GPT].
        config_class: Takes the items of `meta["model_config"]` [default: nanochat.gpt.GPTConfig].
        tokenizer: Has `get_vocab_size()` [default: what nanochat.tokenizer.get_tokenizer returns].

    Returns:
        (model, tokenizer, meta_data)

    Raises:
        AssertionError: The phase is another one, or tokenizer and model have vocabularies of different
            sizes.
        ModuleNotFoundError: nanochat is not installed, and a class or the tokenizer is not given.
        KeyError: The meta has no `model_config`.
        TypeError: `config_class` does not know one of its items.
        RuntimeError: Names or shapes of the tensors are not those of the model.
        CheckpointError, FileNotFoundError: As for `load_checkpoint`.

    Example:
        With nanochat installed, which has the model and the tokenizer:

        >>> model, tokenizer, meta = build_model("runs/d12", 100, "cpu", "eval")  # doctest: +SKIP
    """
    if phase not in _PHASES:
        raise AssertionError(f"Invalid phase: {phase}")
    device = torch.device(device)
    # What has to come from nanochat is looked up first: better to fail now than after a minute of loading.
    model_class = model_class or _from_nanochat("gpt", "GPT", "model_class")
    config_class = config_class or _from_nanochat("gpt", "GPTConfig", "config_class")
    get_tokenizer = _tokenizer_source(tokenizer)

    model_data, _, meta_data = load_checkpoint(checkpoint_dir, step, device)
    model_data = _as_state_dict(model_data, StepPaths(checkpoint_dir, step).model)
    model_data = strip_wrapper_prefixes(widen_bfloat16(model_data, device))
    model_config = meta_data["model_config"]
    patch_config(model_config)
    log0(f"Building model with config: {model_config}")
    config = config_class(**model_config)
    patch_parameters(model_data, config.n_layer, _device_of(model_data, device))
    model = _assemble(model_class, config, model_data, device)
    if phase == "eval":
        model.eval()
    else:
        model.train()

    tokenizer = get_tokenizer()
    vocab_size = tokenizer.get_vocab_size()
    if vocab_size != model_config["vocab_size"]:
        raise AssertionError(
            f"Tokenizer vocab size {vocab_size} does not match model config vocab size {model_config['vocab_size']}"
        )
    return model, tokenizer, meta_data


def load_model_from_dir(
    checkpoints_dir: _Path,
    device: str | torch.device,
    phase: str,
    model_tag: str | None = None,
    step: int | None = None,
    *,
    model_class: Callable[[Any], Any] | None = None,
    config_class: Callable[..., Any] | None = None,
    tokenizer: Any = None,
) -> tuple[Any, Any, dict[str, Any]]:
    """Build a model from a directory of model tags, as nanochat (92d63d4) does.

    Args:
        checkpoints_dir: Directory whose subdirectories are model tags.
        device: As for `build_model`.
        phase: As for `build_model`.
        model_tag: Which of them [default: the one that `find_largest_model` guesses].
        step: Which step [default: the last one whose model and meta are whole]. A warning names later
            ones that are not.
        model_class: As for `build_model`.
        config_class: As for `build_model`.
        tokenizer: As for `build_model`.

    Returns:
        (model, tokenizer, meta_data)

    Raises:
        FileNotFoundError: There is no model tag, or no step in it. Otherwise as for `build_model`.
        IncompleteCheckpointError: No step has a model and a meta of the same save.

    Example:
        With nanochat installed, which has the model and the tokenizer:

        >>> model, tokenizer, meta = load_model_from_dir(
        ...     "runs", "cpu", "eval", model_tag="d12"
        ... )  # doctest: +SKIP
    """
    if model_tag is None:
        model_tag = find_largest_model(checkpoints_dir)
        log0(f"No model tag provided, guessing model tag: {model_tag}")
    checkpoint_dir = os.path.join(checkpoints_dir, model_tag)
    if step is None:
        step = _newest_model(checkpoint_dir)
    log0(f"Loading model from {checkpoint_dir} with step {step}")
    return build_model(
        checkpoint_dir,
        step,
        device,
        phase,
        model_class=model_class,
        config_class=config_class,
        tokenizer=tokenizer,
    )


def load_model(source: str, *args: Any, **kwargs: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Build the model of a training stage of nanochat, as nanochat (92d63d4) does.

    Args:
        source: The stage: "base", "sft" or "rl". Its runs are in `base_checkpoints`,
            `chatsft_checkpoints` or `chatrl_checkpoints` of the base directory, which is
            $NANOCHAT_BASE_DIR [default: `~/.cache/nanochat`].
        *args: Arguments of `load_model_from_dir` after the first.
        **kwargs: The same by name.

    Returns:
        (model, tokenizer, meta_data)

    Raises:
        KeyError: `source` is not one of these. Otherwise as for `load_model_from_dir`.

    Example:
        With nanochat installed, which has the model and the tokenizer:

        >>> model, tokenizer, meta = load_model("sft", "cpu", phase="eval")  # doctest: +SKIP
    """
    return load_model_from_dir(source_directory(source), *args, **kwargs)


def load_optimizer_state(
    source: str,
    device: str | torch.device,
    rank: int,
    model_tag: str | None = None,
    step: int | None = None,
    *,
    world_size: int | None = None,
) -> dict[str, Any] | None:
    """Load the optimizer shard of one rank alone, as nanochat (92d63d4) does.

    Args:
        source: "base", "sft" or "rl", as for `load_model`.
        device: Where the tensors go.
        rank: Whose shard to load.
        model_tag: Which run [default: the one that `find_largest_model` guesses].
        step: Which step [default: the one whose model `load_model` would load].
        world_size: How many shards the step has, as for `load_checkpoint`.

    Returns:
        The optimizer's state dict, of the same save as the model. None, with a log line, where the rank
        has no file: the step is not there, or was not saved with a shard of this rank.

    Raises:
        KeyError: `source` is not one of these.
        FileNotFoundError: There is no model tag, or no step in it.
        IncompleteCheckpointError: The rank's file is missing although the step was saved with one,
            or the file is of another save. Names the file and the newest good step.
        CheckpointError: As for `load_checkpoint`.
        StateMismatchError: The step was saved by another number of ranks, as for `load_checkpoint`.

    Example:
        With nanochat directories on this machine:

        >>> state = load_optimizer_state("base", "cpu", rank=0)  # doctest: +SKIP
    """
    checkpoints_dir = source_directory(source)
    if model_tag is None:
        model_tag = find_largest_model(checkpoints_dir)
    checkpoint_dir = os.path.join(checkpoints_dir, model_tag)
    if step is None:
        step = _newest_model(checkpoint_dir)
    step = operator.index(step)
    try:
        return _load_shard(checkpoint_dir, step, device, rank, world_size)
    except (CheckpointError, FileNotFoundError) as error:
        add_advice(error, checkpoint_dir, step)
        raise


def _load_shard(
    directory: str, step: int, device: str | torch.device, rank: int, world_size: int | None
) -> dict[str, Any] | None:
    path = StepPaths(directory, step).optimizer(rank)
    check = partial(shards_check, directory, step, world_size=world_size)
    # A rank without a shard cannot take a part for the whole; but the ranks of a group must not differ.
    if not os.path.exists(path) and not _has_shard(directory, step, rank, check(may_be_alone=True)):
        log0(f"Optimizer checkpoint not found: {path}")
        return None
    log0(f"Loading optimizer state from {path}")
    check_shards = check(may_be_alone=rank > 0)
    save = open_save(directory, step, optimizer=False, rank=rank, check_shards=check_shards)
    if save.shard is None:
        return None
    shard: dict[str, Any] = load_part(save.shard, device)
    return shard


def _has_shard(directory: str, step: int, rank: int, check_shards: Callable[[int], None]) -> bool:
    """Whether a rank has saved a shard, according to the step's model; the file may be gone or renamed."""
    if not has_model(directory, step):
        return False
    model = open_save(directory, step, optimizer=False, check_shards=check_shards).model
    return rank < model.shards


def _newest_model(checkpoint_dir: str) -> int:
    """Return the last step whose model can be loaded, and say which later ones cannot."""
    step, passed_over = newest_good_model(checkpoint_dir)
    if passed_over:
        named = ", ".join(map(str, passed_over))
        logger.warning(
            f"Passing over step {named} in {checkpoint_dir}: not saved to its end. Newest whole: {step}"
        )
    return step


def _assemble(
    model_class: Callable[[Any], Any], config: Any, model_data: dict[str, Any], device: torch.device
) -> Any:
    with torch.device("meta"):
        model = model_class(config)
    model.to_empty(device=device)
    # For tables that are not parameters and not in the file, such as the rotary embeddings.
    model.init_weights()
    model.load_state_dict(model_data, strict=True, assign=True)
    return model


def _as_state_dict(model_data: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(model_data, Mapping):
        kind = type(model_data).__name__
        raise FormatError(f"{path} holds no state dict, but an object of type {kind}", path=path)
    for key in model_data:
        if not isinstance(key, str):
            raise FormatError(f"{path} holds no state dict: it has the key {key!r}", path=path)
    return model_data


def _device_of(model_data: dict[str, Any], default: torch.device) -> torch.device:
    """Return where the tensors are: whoever asks for "cuda" gets "cuda:0"."""
    return next(
        (value.device for value in model_data.values() if isinstance(value, torch.Tensor)), default
    )


def _tokenizer_source(tokenizer: Any) -> Callable[[], Any]:
    """Return what gives the tokenizer; nanochat reads it from disk only when the model is built."""
    if tokenizer is not None:
        return lambda: tokenizer
    get_tokenizer: Callable[[], Any] = _from_nanochat("tokenizer", "get_tokenizer", "tokenizer")
    return get_tokenizer


def _from_nanochat(module: str, name: str, keyword: str) -> Any:
    """Import a name from nanochat, only now: `nanochat.gpt` takes seconds to import."""
    try:
        return getattr(importlib.import_module(f"nanochat.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("nanochat", f"nanochat.{module}"):
            raise  # nanochat is there, and something that it needs is not: that error says more.
        raise ModuleNotFoundError(
            f"nanochat's {name} is needed: install nanochat, or pass your own as {keyword}=",
            name=error.name,
        ) from error
