"""Safetensors files as the Hugging Face Hub expects them: written and read.

One file ``model.safetensors``, or shards ``model-00001-of-00002.safetensors`` and so on with the index
``model.safetensors.index.json`` (metadata with total_size; weight_map from name to file). The format has no
shared tensors. If several names share memory, the alphabetically first is stored, and the metadata map the
others to it, as ``safetensors.torch.save_model`` does. Metadata of shards are in the index.
"""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from fastckpt import _native
from fastckpt._archive.save import save
from fastckpt._contents.small_file import META_NBYTES_MAX, read_small_file
from fastckpt._wording import some_names
from fastckpt.errors import FormatError, IncompleteCheckpointError

from .compact import INFLATION_NBYTES_MAX, is_inflated, is_ordinary, same_view
from .configuration import CONFIG_KEYS
from .optional import require
from .publishing import publish, refuse_existing, sizes, staging
from .report import ExportReport
from .weights import Weights

_Path = str | os.PathLike[str]
_Progress = Callable[[int, int], None]

#: The maximum size of a shard that the Hub's own writers use.
MAX_SHARD_NBYTES = 5_000_000_000
SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
_STEM = "model"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
# The Hub's loaders look at this.
_FORMAT = {"format": "pt"}
# The format has no place for a configuration, and other programs leave unknown metadata alone.
_CONFIG_PREFIX = "fastckpt."
# Overlapping tensors are stored in full: the average number of times that each byte may be stored.
_OVERLAPS_MAX = 4
_OS_ERROR = re.compile(r"I/O error: (.*?) \(os error (\d+)\)")


def write_safetensors(weights: Weights, output: _Path, max_shard_nbytes: int) -> ExportReport:
    """Write weights as one safetensors file or several; see `ModelExporter.export_safetensors`."""
    tensors, aliases, notes = _separate(weights)
    metadata = dict(aliases)
    config_keys = tuple(
        key for key, config in weights.configs.items() if _add_config(metadata, key, config, notes)
    )
    shards = _split(tensors, max_shard_nbytes)
    directory, stem = _target(os.fspath(output))
    names = _shard_names(stem, len(shards))
    index = stem + INDEX_SUFFIX
    if len(shards) == 1:
        refuse_existing([os.path.join(directory, index)])
    else:
        others = [*names, index, stem + SUFFIX]
        refuse_existing([os.path.join(directory, name) for name in others])
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    _native.Commit().require_space(directory or os.curdir, nbytes)
    with staging(directory) as stage:
        for name, shard in zip(names, shards, strict=True):
            _write_shard(stage, name, shard, metadata if len(shards) == 1 else {})
        if len(shards) > 1:
            weight_map = {
                key: name for name, shard in zip(names, shards, strict=True) for key in shard
            }
            document = {"metadata": {"total_size": nbytes, **metadata}, "weight_map": weight_map}
            with open(os.path.join(stage, index), "w", encoding="utf-8") as file:
                json.dump(document, file, indent=2)
            names.append(index)
        outputs = publish(stage, directory, names)
    return ExportReport(
        source=weights.source,
        outputs=tuple(outputs),
        source_nbytes=weights.source_nbytes,
        nbytes=sizes(outputs),
        tensors=len(weights.state),
        config_keys=config_keys,
        notes=(*weights.notes, *notes),
    )


def _separate(weights: Weights) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Return the tensors to write, which names stand for the same ones, and notes."""
    for name, value in weights.state.items():
        if not is_ordinary(value):
            raise ValueError(
                f"{name!r} in {weights.source} is {_kind(value)}, and a safetensors file holds dense tensors "
                "only: export to a .pt file"
            )
        if is_inflated(value):
            raise ValueError(
                f"{name!r} in {weights.source} overlaps itself in memory: "
                f"{value.untyped_storage().nbytes()} bytes would become {value.nbytes} in a safetensors "
                "file; export to a .pt file"
            )
    first: dict[str, str] = {}
    for name in sorted(weights.state):
        first.setdefault(same_view(weights.state[name]), name)
    aliases = {
        name: first[same_view(value)]
        for name, value in weights.state.items()
        if first[same_view(value)] != name
    }
    _refuse_inflation(weights, aliases)
    tensors = {
        name: value.contiguous() for name, value in weights.state.items() if name not in aliases
    }
    notes = []
    if aliases:
        notes.append(f"stored once, under another name: {some_names(aliases)}")
    storages = {name: weights.state[name].untyped_storage()._cdata for name in tensors}
    shared = Counter(storages.values())
    overlapping = [name for name, key in storages.items() if shared[key] > 1]
    if overlapping:
        notes.append(
            f"overlapping in memory, stored as separate tensors: {some_names(overlapping)}"
        )
    # safetensors insists on separate memory for tensors that overlap without being equal.
    seen: set[int] = set()
    for name, tensor in tensors.items():
        key = tensor.untyped_storage()._cdata
        if key in seen:
            tensors[name] = tensor.clone()
        seen.add(key)
    return tensors, aliases, notes


def _refuse_inflation(weights: Weights, aliases: Mapping[str, str]) -> None:
    """Refuse tensors that all together are far larger than their storages."""
    made_of: dict[int, int] = {}
    nbytes = 0
    for name, value in weights.state.items():
        if name not in aliases:
            storage = value.untyped_storage()
            made_of[storage._cdata] = storage.nbytes()
            nbytes += value.nbytes
    most = _OVERLAPS_MAX * sum(made_of.values()) + INFLATION_NBYTES_MAX
    if nbytes > most:
        raise ValueError(
            f"the tensors in {weights.source} overlap in memory: {sum(made_of.values())} bytes would become "
            f"{nbytes} in a safetensors file; export to a .pt file"
        )


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor with the layout {value.layout} on {value.device}"
    return f"an object of type {type(value).__name__}"


def _add_config(metadata: dict[str, str], key: str, config: Any, notes: list[str]) -> bool:
    """Add a configuration to the metadata if JSON returns it unchanged."""
    try:
        text = json.dumps(config, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        text = None
    if text is None or json.loads(text) != config:
        notes.append(f"{key} is left out: it has values that JSON cannot hold")
        return False
    metadata[_CONFIG_PREFIX + key] = text
    return True


def _split(tensors: Mapping[str, Tensor], max_nbytes: int) -> list[dict[str, Tensor]]:
    """Divide tensors into shards, in their order; a tensor that is too large gets its own shard."""
    shards: list[dict[str, Tensor]] = [{}]
    nbytes = 0
    for name, tensor in tensors.items():
        if shards[-1] and nbytes + tensor.nbytes > max_nbytes:
            shards.append({})
            nbytes = 0
        shards[-1][name] = tensor
        nbytes += tensor.nbytes
    return shards


def _target(output: str) -> tuple[str, str]:
    """Return the output directory, made if necessary, and the stem of the file names."""
    if output.endswith(SUFFIX) and not os.path.isdir(output):
        return os.path.dirname(output), os.path.basename(output).removesuffix(SUFFIX)
    _native.Commit().create_directory(output)
    return output, _STEM


def _shard_names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [stem + SUFFIX]
    return [f"{stem}-{i:05d}-of-{count:05d}{SUFFIX}" for i in range(1, count + 1)]


def _write_shard(
    stage: str, name: str, shard: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    safetensors = require("safetensors.torch", "a .safetensors file")
    path = os.path.join(stage, name)
    try:
        with _os_errors(path):
            safetensors.save_file(dict(shard), path, metadata={**_FORMAT, **metadata})
    except KeyError as error:
        # Its table of dtypes.
        unknown = [key for key, tensor in shard.items() if tensor.dtype == error.args[0]]
        if not unknown:
            raise
        raise ValueError(
            f"safetensors has no dtype {error.args[0]}: {some_names(unknown)}; export to a .pt file"
        ) from error


@contextmanager
def _os_errors(path: str) -> Iterator[None]:
    """Raise errors of the system as OSError, and the library's other errors as FormatError."""
    safetensors = require("safetensors", "a .safetensors file")
    try:
        yield
    except safetensors.SafetensorError as error:
        found = _OS_ERROR.search(str(error))
        if found is not None:
            raise OSError(int(found[2]), found[1], path) from error
        raise FormatError(f"{path} is not a valid safetensors file: {error}", path=path) from error


# Reading.


def import_safetensors(
    source: _Path, output: _Path, *, progress: _Progress | None = None
) -> ExportReport:
    """Convert safetensors files to a .pt file; see `ModelExporter.import_safetensors`."""
    path = _resolve(os.fspath(source))
    notes: list[str] = []
    if path.endswith(".json"):
        state, metadata, files = _read_index(path, notes)
    else:
        if _SHARD.search(path):
            raise ValueError(
                f"{path} is one shard of several: pass the index in its directory (*{INDEX_SUFFIX})"
            )
        state, metadata = _read_file(path)
        files = [path]
    names = [
        name
        for name, kept in metadata.items()
        if isinstance(kept, str) and kept in state and name not in state and name not in _FORMAT
    ]
    state.update({name: state[metadata[name]] for name in names})
    if names:
        notes.append(f"sharing memory with another name: {some_names(names)}")
    configs = {
        key: _parse(metadata[_CONFIG_PREFIX + key], path)
        for key in CONFIG_KEYS
        if _CONFIG_PREFIX + key in metadata
    }
    saved: dict[str, Any] = {"model_state_dict": state, **configs}
    save(saved, output, progress=progress)
    return ExportReport(
        source=path,
        outputs=(os.fspath(output),),
        source_nbytes=sizes(files),
        nbytes=sizes([os.fspath(output)]),
        tensors=len(state),
        config_keys=tuple(configs),
        notes=tuple(notes),
    )


def files_of_directory(path: str) -> list[str]:
    """Return the files that a loader looks for in a directory, in this order."""
    # The order of the Hub's loaders.
    return [os.path.join(path, _STEM + suffix) for suffix in (SUFFIX, INDEX_SUFFIX)]


def _resolve(path: str) -> str:
    if not os.path.isdir(path):
        return path
    for found in files_of_directory(path):
        if os.path.exists(found):
            return found
    raise IncompleteCheckpointError(
        f"{path} has neither {_STEM}{SUFFIX} nor {_STEM}{INDEX_SUFFIX}", path=path
    )


def _read_file(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    safetensors = require("safetensors", "a .safetensors file")
    # The library's own errors do not always say what the system said. And it waits for a pipe.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise FormatError(f"{path} is not a safetensors file: it is not a regular file", path=path)
    with _os_errors(path), safetensors.safe_open(path, framework="pt") as file:
        state = {name: _tensor(file, name, path) for name in file.keys()}  # noqa: SIM118 - no dict
        return state, file.metadata() or {}


def _tensor(file: Any, name: str, path: str) -> Tensor:
    try:
        tensor: Tensor = file.get_tensor(name)
    except RuntimeError as error:
        # Without elements, a tensor may have lengths whose strides are beyond torch's numbers.
        raise FormatError(
            f"{path} has a tensor that torch cannot make, {name!r:.100}: {error}", path=path
        ) from error
    return tensor


def _read_index(
    path: str, notes: list[str]
) -> tuple[dict[str, Tensor], Mapping[str, Any], list[str]]:
    """Read all shards of an index, and compare their names with it."""
    weight_map, metadata = _parse_index(path)
    directory = os.path.dirname(path)
    shards: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        shards.setdefault(file, []).append(name)
    for file, names in shards.items():
        if not os.path.exists(os.path.join(directory, file)):
            raise IncompleteCheckpointError(
                f"{os.path.join(directory, file)} is missing: according to {path} it has {len(names)} of "
                f"{len(weight_map)} tensors",
                path=os.path.join(directory, file),
            )
    state: dict[str, Tensor] = {}
    for file, names in shards.items():
        found, _ = _read_file(os.path.join(directory, file))
        _compare_shard(os.path.join(directory, file), path, set(names), set(found))
        state.update(found)
    total = sum(tensor.nbytes for tensor in state.values())
    if metadata.get("total_size", total) != total:
        # Writers count shared tensors differently, so this alone does not mean damage.
        notes.append(f"the index says {metadata['total_size']} bytes of tensors; there are {total}")
    ordered = {name: state[name] for name in weight_map}
    return ordered, metadata, [path, *(os.path.join(directory, file) for file in shards)]


def _compare_shard(shard: str, index: str, expected: set[str], found: set[str]) -> None:
    missing, unknown = sorted(expected - found), sorted(found - expected)
    if missing:
        raise FormatError(
            f"{shard} lacks tensors that it has according to {index}: {some_names(missing)}",
            path=shard,
        )
    if unknown:
        raise FormatError(
            f"{shard} has tensors that {index} does not place there: {some_names(unknown)}; the two belong "
            "to different exports",
            path=shard,
        )


def _parse_index(path: str) -> tuple[dict[str, str], Mapping[str, Any]]:
    document = _parse(read_small_file(path, "a safetensors index", META_NBYTES_MAX), path)
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(
            f"{path} is not a safetensors index: expected an object with a weight_map", path=path
        )
    for name, file in weight_map.items():
        # An index must not lead to another directory.
        if not isinstance(file, str) or os.path.basename(file) != file or file in ("", ".", ".."):
            raise FormatError(
                f"{path} is not a valid safetensors index: {name!r} is in {file!r}, expected the name of a "
                "file in the same directory",
                path=path,
            )
    metadata = document.get("metadata")
    return weight_map, metadata if isinstance(metadata, dict) else {}


def _parse(text: str | bytes, path: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} has text that is not valid JSON: {error}", path=path) from error
