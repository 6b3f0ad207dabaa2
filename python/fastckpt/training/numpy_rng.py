"""States of numpy's random number generators as plain values, and back.

numpy is never imported here: a state is only taken where the process has imported numpy, and whoever restores
one passes the module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# What stands for an array in the states of registered generators and, in older files, of the global one.
_ENCODED_ARRAY = {"dtype", "shape", "data"}
# numpy (1.26 and 2.4) takes these as they are and reads memory by them: the key that leads to each, and the
# largest value that stays within its buffer.
_INDEX_MAX = {"MT19937": (("state", "pos"), 624), "Philox": (("buffer_pos",), 4)}


def plain_global_state(state: Mapping[str, Any]) -> Any:
    """Return what ``np.random.set_state`` takes, without arrays.

    Args:
        state: What ``np.random.get_state(legacy=False)`` returned.

    Returns:
        The tuple of ``np.random.get_state()`` with a list as its key, or, of another bit generator than
        MT19937, a dict with lists.
    """
    plain: dict[str, Any] = _plain(state)
    if plain["bit_generator"] != "MT19937":
        return plain
    key, pos = plain["state"]["key"], plain["state"]["pos"]
    return ("MT19937", key, pos, plain["has_gauss"], plain["gauss"])


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return value.tolist() if hasattr(value, "dtype") else value


def encode_arrays(value: Any, as_tensor: Any) -> Any:
    """Return a state with each array as a dict of dtype, shape and data.

    Args:
        value: A state, or a part of one.
        as_tensor: Makes a tensor of bytes.
    """
    if isinstance(value, Mapping):
        return {key: encode_arrays(part, as_tensor) for key, part in value.items()}
    if hasattr(value, "dtype") and getattr(value, "ndim", 0) > 0:
        # Bytes, not numbers: torch has no uint64 that every version of it loads.
        data = as_tensor(bytearray(value.tobytes()))
        return {"dtype": value.dtype.str, "shape": list(value.shape), "data": data}
    return value.item() if hasattr(value, "dtype") else value


def read_state(saved: Any, numpy: Any) -> dict[str, Any]:
    """Return a saved state as the dict that numpy has for it; arrays may still be lists.

    Args:
        saved: The tuple of ``np.random.get_state()``, also as a list, or a dict with arrays, lists or encoded
            arrays.
        numpy: The module.

    Raises:
        ValueError, TypeError: It is neither.
    """
    if isinstance(saved, (tuple, list)):
        if len(saved) not in (3, 5):
            raise ValueError(f"expected 3 or 5 parts, not {len(saved)}")
        name, key, pos, has_gauss, gauss = (*saved, 0, 0.0)[:5]
        if not isinstance(name, str):
            raise TypeError(f"expected the name of a bit generator, not a {type(name).__name__}")
        state = {"bit_generator": name, "state": {"key": key, "pos": pos}}
        return {**state, "has_gauss": has_gauss, "gauss": gauss}
    if not isinstance(saved, Mapping) or not isinstance(saved.get("bit_generator"), str):
        raise TypeError("expected a tuple or a dict with the name of a bit generator")
    decoded: dict[str, Any] = _decode(saved, numpy)
    return decoded


def _decode(value: Any, numpy: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if value.keys() == _ENCODED_ARRAY:
        # A list of bytes: a number would ask for so many zeros.
        data = bytes([*value["data"].tolist()])
        flat = numpy.frombuffer(data, dtype=value["dtype"])
        return flat.reshape(value["shape"])
    return {key: _decode(part, numpy) for key, part in value.items()}


def fit_state(state: Mapping[str, Any], present: Mapping[str, Any], numpy: Any) -> dict[str, Any]:
    """Return a state in the types of the generator's present one.

    Args:
        state: From `read_state`, of the same bit generator.
        present: The state that the generator has now.
        numpy: The module.

    Raises:
        ValueError: The generator cannot have such a state.
    """
    fitted: dict[str, Any] = _fit(state, present, "the state", numpy)
    path, largest = _INDEX_MAX.get(state["bit_generator"], ((), 0))
    if path:
        index: Any = fitted
        for key in path:
            index = index[key]
        if not 0 <= index <= largest:
            raise ValueError(f"{path[-1]!r} is {index}, expected 0 to {largest}")
    return fitted


def _fit(value: Any, present: Any, name: str, numpy: Any) -> Any:
    if isinstance(present, Mapping):
        if not isinstance(value, Mapping) or value.keys() != present.keys():
            raise ValueError(f"{name} does not have the keys {', '.join(map(repr, present))}")
        return {key: _fit(value[key], part, repr(key), numpy) for key, part in present.items()}
    if isinstance(present, numpy.ndarray):
        return _fit_array(value, present, name, numpy)
    plain = value.item() if hasattr(value, "dtype") and value.ndim == 0 else value
    expected = (float, int) if isinstance(present, float) else type(present)
    if isinstance(plain, bool) or not isinstance(plain, expected):
        raise ValueError(f"{name} is a {type(value).__name__}, expected {type(present).__name__}")  # noqa: TRY004 - all are ValueErrors
    return type(present)(plain)


def _fit_array(value: Any, present: Any, name: str, numpy: Any) -> Any:
    items = value.tolist() if hasattr(value, "tolist") else value
    if present.dtype.kind in "iu":
        # numpy itself would make floats of large and small integers in one list.
        limits = numpy.iinfo(present.dtype)
        for item in _leaves(items):
            if type(item) is not int or not limits.min <= item <= limits.max:
                raise ValueError(f"{name} has {item!r:.50}, which is not a {present.dtype}")
    array = numpy.array(items, dtype=present.dtype)
    if array.shape != present.shape:
        raise ValueError(f"{name} has the shape {array.shape}, expected {present.shape}")
    return array


def _leaves(items: Any) -> Iterator[Any]:
    if not isinstance(items, (list, tuple)):
        yield items
        return
    for item in items:
        yield from _leaves(item)


def try_state(state: Mapping[str, Any], numpy: Any, *, is_global: bool) -> None:
    """Set a generator that nobody uses to a state.

    Raises:
        ValueError, TypeError, OverflowError: numpy refuses it.
    """
    kind = getattr(numpy.random, state["bit_generator"], None)
    # A bit generator of another library cannot be made by its name.
    if isinstance(kind, type) and issubclass(kind, numpy.random.BitGenerator):
        bits = kind(0)
        if is_global:
            numpy.random.RandomState(bits).set_state(dict(state))
        else:
            bits.state = dict(state)
