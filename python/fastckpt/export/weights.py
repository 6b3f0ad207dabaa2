"""Read the model's weights from a checkpoint without the rest of it; or the averages instead."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastckpt._archive import load, load_job
from fastckpt._bare_model import bare_name, bare_names
from fastckpt._contents.outline import walk
from fastckpt._contents.state_dicts import find_state_dict, is_tensor
from fastckpt._native import Archive, Graph, Span, TensorInfo
from fastckpt._wording import some_names
from fastckpt.errors import FormatError

from .compact import changed, compact, same_view
from .configuration import configurations

_Progress = Callable[[int, int], None]

EMA_KEY = "ema_state_dict"
# DistributedDataParallel and swa_utils.AveragedModel wrap a module so.
_WRAPPED = "module."
# swa_utils.AveragedModel counts in a buffer of this name.
_AVERAGED_MODEL_COUNT = "n_averaged"


@dataclass
class Weights:
    """The weights of one model, on the CPU; tensors share a storage only if they overlap.

    Attributes:
        state: The state dict, by the names of the bare model: tensors and extra state.
        configs: The model's configurations, by the checkpoint's keys.
        source: The file.
        source_nbytes: Its size in bytes.
        notes: What was changed in the weights.
    """

    state: dict[str, Any]
    configs: dict[str, Any]
    source: str
    source_nbytes: int
    notes: list[str] = field(default_factory=list)


def read_weights(
    path: str | os.PathLike[str],
    *,
    use_ema: bool = False,
    include_config: bool = True,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> Weights:
    """Read the model's weights. The optimizer's state is not read; every byte that is read is checked.

    Raises:
        OSError: The file cannot be read.
        FormatError: It is not a .pt file or is damaged, or has no state dict of a model, or `use_ema` is set
            and it has no averages that fit.
        ChecksumError: Bytes have changed since they were written.
        UnsafePickleError: It has an object that ``weights_only=True`` does not allow.
    """
    archive = Archive.open(path)
    if archive.kind != "torch":
        raise FormatError(
            f"{archive.path} was not written by torch.save: it is a TorchScript archive or a zip archive of "
            "another program",
            path=archive.path,
        )
    graph = archive.decode()
    outline = graph.outline()
    keys, state = find_state_dict(outline, path=archive.path)
    parts: list[Any] = [state]
    if use_ema:
        parts += _ema_parts(outline, archive.path)
    if include_config and keys:
        parts += configurations(outline).values()
    root = _load_parts(archive, graph, parts, threads, progress)
    state = root
    for key in keys:
        state = state[key]
    configs = configurations(root) if include_config and keys else {}
    weights = Weights({}, configs, archive.path, archive.nbytes)
    named = _bare_state(state, weights)
    if use_ema:
        named = _with_averages(named, _averages(root, named, archive.path), weights)
    weights.state = _like(state, compact(named))
    return weights


def _load_parts(
    archive: Archive,
    graph: Graph,
    parts: list[Any],
    threads: int | None,
    progress: _Progress | None,
) -> Any:
    """Load the object, if possible without the storages that no tensor in `parts` uses."""
    if graph.outside is not None or load_job.byte_order(archive) != sys.byteorder:
        # Only torch's unpickler can build it, and it builds all of it.
        return load.load_archive(archive, "cpu", threads=threads, progress=progress)
    load.look_for_checksums(archive, verify=True)
    load_job.check_dtypes(archive.path, graph.dtypes())
    load_job.check_sizes(archive, graph)
    wanted = {leaf.key for _, leaf in walk(parts) if isinstance(leaf, TensorInfo)}
    there = [info.key for info in graph.storages if info.key in wanted]
    spans = archive.read(there, threads=threads, progress=progress)
    by_key = dict(zip(there, spans, strict=True))
    empty = torch.UntypedStorage(0)
    memory: list[Span | torch.UntypedStorage] = [
        by_key.get(info.key, empty) for info in graph.storages
    ]
    unwanted = {info.key for info in graph.storages} - wanted
    return graph.without(unwanted).build(memory)


def _bare_state(state: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """Return the items under the names that the bare model has, detached."""
    names, _ = _bare_names(state, weights.source)
    renamed = sum(name != key for key, name in names.items())
    if renamed:
        weights.notes.append(
            f"{renamed} names lost the prefixes of torch.compile and DistributedDataParallel"
        )
    return {
        names[key]: value.detach() if isinstance(value, Tensor) else value
        for key, value in state.items()
    }


def _bare_names(state: Mapping[str, Any], path: str) -> tuple[dict[str, str], int]:
    """Return the bare model's names by key, and the number of wrappers around the model."""
    names = {key: bare_name(str(key)) for key in state}
    # A model may have a part of this name, so it is a wrapper's only if every key begins with it.
    wrapped = 0
    while names and all(name.startswith(_WRAPPED) for name in names.values()):
        wrapped += 1
        names = {key: name.removeprefix(_WRAPPED) for key, name in names.items()}
    first: dict[str, str] = {}
    for key, name in names.items():
        if first.setdefault(name, key) != key:
            raise FormatError(
                f"{path} has both {first[name]!r} and {key!r} for the tensor {name!r}",
                path=path,
            )
    return names, wrapped


def _like(state: Mapping[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    """Keep the module versions that ``Module.state_dict`` stores as an attribute of its dict."""
    metadata = getattr(state, "_metadata", None)
    if not isinstance(metadata, Mapping):
        return named
    _, wrapped = _bare_names(state, "")
    kept = OrderedDict()
    for key, versions in metadata.items():
        # The keys are modules. A wrapper itself is dropped, and the module in it gets the empty name.
        name = f"{bare_name(str(key))}." if bare_name(str(key)) else ""
        if name.startswith(_WRAPPED * wrapped):
            kept[name.removeprefix(_WRAPPED * wrapped).removesuffix(".")] = versions
    result = OrderedDict(named)
    result._metadata = kept  # type: ignore[attr-defined]
    return result


# Averages.


def _ema_parts(root: Any, path: str) -> list[Mapping[str, Any]]:
    """Return the dicts of averages: of the parameters and buffers of an EMAModel, or one of tensors."""
    ema = root.get(EMA_KEY) if isinstance(root, dict) else None
    if not isinstance(ema, dict):
        raise FormatError(
            f"{path} has no moving averages: expected a dict under the key {EMA_KEY!r}; leave out use_ema "
            "(--ema) to export the model's own weights",
            path=path,
        )
    # The EMA classes that scripts carry with them have no buffers; "parameters" is an earlier name of ours.
    parameters, buffers = ema.get("shadow", ema.get("parameters")), ema.get("buffers", {})
    if isinstance(parameters, dict) and isinstance(buffers, dict):
        parts: list[Mapping[str, Any]] = [parameters, buffers]
    else:
        parts = [{key: value for key, value in ema.items() if key != _AVERAGED_MODEL_COUNT}]
    values = [value for part in parts for value in part.values()]
    if not values or not all(map(is_tensor, values)):
        raise FormatError(
            f"{EMA_KEY!r} in {path} is neither the state of an EMAModel nor a dict of tensors",
            path=path,
        )
    return parts


def _averages(root: Any, state: Mapping[str, Any], path: str) -> dict[str, Tensor]:
    """Return the averages by the names of the bare model."""
    averages: dict[str, Tensor] = {}
    for part in _ema_parts(root, path):
        named = {str(key): value for key, value in part.items()}
        for key, name in bare_names(named, state).items():
            if name in averages:
                raise FormatError(f"{path} has two averages of the tensor {name!r}", path=path)
            averages[name] = named[key]
    return averages


def _in_dtype(average: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    return average if average.dtype == dtype else changed(average, lambda one: one.to(dtype), name)


def _with_averages(
    state: dict[str, Any], averages: Mapping[str, Tensor], weights: Weights
) -> dict[str, Any]:
    """Replace the weights by the averages, in the weights' dtypes."""
    unknown = [name for name in averages if not isinstance(state.get(name), Tensor)]
    if unknown:
        raise FormatError(
            f"{weights.source} has averages of tensors that its model does not have: "
            f"{some_names(unknown)}",
            path=weights.source,
        )
    for name, average in averages.items():
        if average.shape != state[name].shape:
            raise FormatError(
                f"the average of {name!r} in {weights.source} has the shape {tuple(average.shape)}, "
                f"expected the model's, {tuple(state[name].shape)}",
                path=weights.source,
            )
    result = dict(state)
    # A tied weight has one average and two names.
    tied = {same_view(state[name]): name for name in averages}
    for name, value in state.items():
        original = tied.get(same_view(value)) if isinstance(value, Tensor) else None
        if original is not None:
            if result[original] is state[original]:
                result[original] = _in_dtype(averages[original], state[original].dtype, original)
            result[name] = result[original]
    kept = sum(result[name] is state[name] for name in state)
    weights.notes.append(
        f"{len(state) - kept} of {len(state)} tensors are moving averages"
        + ("; the others, buffers and frozen parameters, are the model's own" if kept else "")
    )
    return result
