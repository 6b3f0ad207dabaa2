"""The forms in which states of random number generators are saved, were saved, and are saved by others."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.guide_manager import rng_states, set_rng_states
from tests.random_numbers import BIT_GENERATORS, draw_all, make_generators, through_a_file

from fastckpt.training import rng
from fastckpt.training.rng import RngSnapshot, capture_rng, plan_rng, restore_rng

# A checkpoint with states in the form of November 2026, and what was drawn after its save.
OLDER_FILE = Path(__file__).parent / "older_files" / "manager_2026_11.pt"
DRAWN = [
    *(0.511431512516514, 0.6509344730398537, -0.4659373705408328, 0.9779895119966027),
    *(0.6568902730941772, 0.08564916714362436, 0.004263520240783691, 0.23796462709189137),
]


@pytest.fixture(autouse=True)
def global_states() -> Iterator[None]:
    """Leave the generators of the process as they were."""
    bits = np.random.get_bit_generator()  # type: ignore[attr-defined]
    before = RngSnapshot({})
    yield
    np.random.set_bit_generator(bits)  # type: ignore[attr-defined]
    before.put_back()


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    # One normal deviate stays in store.
    random.gauss(0, 1)
    np.random.standard_normal()  # noqa: NPY002


def test_the_guides_own_lines_restore_a_file_that_plain_torch_load_takes(tmp_path: Path) -> None:
    seed_all(3)
    states = through_a_file(capture_rng({}), tmp_path)
    assert set(states) - {"cuda"} == {"python", "numpy", "torch"}
    expected = draw_all({})
    seed_all(4)
    set_rng_states(states)
    assert draw_all({}) == expected


@pytest.mark.parametrize("name", BIT_GENERATORS)
def test_another_global_bit_generator_of_numpy_goes_on_too(name: str, tmp_path: Path) -> None:
    np.random.set_bit_generator(getattr(np.random, name)(5))  # type: ignore[attr-defined]
    np.random.standard_normal()  # noqa: NPY002
    np.random.randint(0, 9, dtype="uint8")  # noqa: NPY002
    states = through_a_file(capture_rng({}), tmp_path)
    expected = draw_all({})
    draw_all({})
    set_rng_states(states)
    assert draw_all({}) == expected
    draw_all({})
    restored, _ = restore_rng(states, {})
    assert "numpy RNG" in restored
    assert draw_all({}) == expected


def as_list(state: tuple[Any, ...]) -> Any:
    return [list(part) if isinstance(part, tuple) else part for part in state]


@pytest.mark.parametrize("change", [tuple, as_list])
def test_the_states_that_the_guide_takes_are_restored(change: Callable[[Any], Any]) -> None:
    seed_all(5)
    states = rng_states()
    expected = draw_all({})
    states |= {"python": change(states["python"]), "numpy": change(states["numpy"])}
    seed_all(6)
    restored, skipped = restore_rng(states, {})
    assert restored == ["python RNG", "numpy RNG", "torch RNG"]
    assert skipped == ({} if not torch.cuda.is_available() else skipped)
    assert draw_all({}) == expected


def test_the_form_of_november_2026_is_restored() -> None:
    states = torch.load(OLDER_FILE, weights_only=True)["rng_states"]
    assert set(states) == {
        *("python", "numpy", "torch_cpu", "torch_cuda", "generators", "world_size")
    }
    generators: dict[str, Any] = {
        "bits": np.random.Generator(np.random.PCG64(0)),
        "noise": torch.Generator(),
        "order": random.Random(0),
    }
    seed_all(1)
    restored, _ = restore_rng(states, generators)
    assert restored == [
        *("python RNG", "numpy RNG", "torch RNG"),
        *("generator 'bits'", "generator 'noise'", "generator 'order'"),
    ]
    drawn = [random.gauss(0, 1), random.random()]
    drawn += [np.random.standard_normal(), np.random.rand(), torch.rand(1).item()]  # noqa: NPY002
    drawn += [generators["bits"].random(), torch.rand(1, generator=generators["noise"]).item()]
    assert [*drawn, generators["order"].random()] == DRAWN


def test_what_is_missing_is_said() -> None:
    if torch.cuda.is_available():
        return
    missing = "the checkpoint has no state for it"
    assert plan_rng({}, {"own": torch.Generator()}).skipped == {
        "python RNG": missing,
        "numpy RNG": "numpy was not imported when the checkpoint was saved",
        "torch RNG": missing,
        "generator 'own'": missing,
    }


# All or nothing


def with_part(key: str, position: int, value: Any) -> Any:
    def change(states: dict[str, Any]) -> None:
        parts = list(states[key])
        parts[position] = value
        states[key] = tuple(parts)

    return change


def with_numpy(**changes: Any) -> Any:
    def change(states: dict[str, Any]) -> None:
        own = np.random.Generator(np.random.Philox(1))
        states["generators"]["Philox"] = {
            "kind": "numpy",
            "state": {**own.bit_generator.state, **changes},
        }

    return change


def with_value(key: str, value: Any) -> Any:
    return lambda states: states.update({key: value})


def with_own(name: str, value: Any) -> Any:
    return lambda states: states["generators"].update({name: value})


BYTES = torch.zeros(5056, dtype=torch.uint8)
MALFORMED = {
    "python is a number": (with_value("python", 3), "'python'] is malformed"),
    "python is short": (with_part("python", 1, (1, 2)), "'python'] is malformed"),
    "python has text": (with_part("python", 2, "x"), "'python'.*expected float or None"),
    "python's index": (with_part("python", 1, (*(1,) * 624, 9999)), "'python'] is malformed"),
    "numpy is text": (with_value("numpy", "MT19937"), "'numpy'.*expected a tuple or a dict"),
    "numpy has two parts": (with_value("numpy", (1, 2)), "expected 3 or 5 parts, not 2"),
    "numpy's key is short": (with_part("numpy", 1, [1, 2]), r"shape \(2,\), expected \(624,\)"),
    "numpy's key is negative": (with_part("numpy", 1, [-1] * 624), "-1, which is not a uint32"),
    "numpy's key has floats": (with_part("numpy", 1, [0.5] * 624), "0.5, which is not a uint32"),
    # numpy itself takes these, and reads memory there.
    "numpy's place, below": (with_part("numpy", 2, -1), "'pos' is -1, expected 0 to 624"),
    "numpy's place, above": (with_part("numpy", 2, 10**5), "'pos' is 100000, expected 0 to 624"),
    "numpy's place is true": (with_part("numpy", 2, True), "'pos' is a bool, expected int"),
    "Philox's place": (with_numpy(buffer_pos=-1), "'buffer_pos' is -1, expected 0 to 4"),
    "Philox's keys": (with_numpy(state={}), "does not have the keys 'counter', 'key'"),
    "torch is a list": (with_value("torch", [1]), "'torch'.*one-dimensional tensor of uint8"),
    "torch is short": (with_value("torch", BYTES[:7]), "'torch'] is malformed"),
    "torch is zeros": (with_value("torch", BYTES), "'torch'] is malformed"),
    "cuda is a tensor": (with_value("cuda", BYTES), "'cuda'.*expected a list of tensors"),
    "generators are a list": (with_value("generators", [1]), "'generators'] must be a dict"),
    "a generator has no state": (with_own("torch", {"kind": "torch"}), r"'torch'\] is malformed"),
    "a generator is zeros": (with_own("torch", {"kind": "torch", "state": BYTES}), "'torch'"),
    "an array of one number": (
        with_own(
            "PCG64",
            {
                "kind": "numpy",
                "state": {
                    "bit_generator": "PCG64",
                    "state": {"dtype": "<u4", "shape": [], "data": torch.tensor(2**40)},
                },
            },
        ),
        r"'PCG64'\] is malformed",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_state_is_refused_before_anything_is_set(name: str) -> None:
    change, message = MALFORMED[name]
    states = capture_rng(make_generators(1))
    change(states)
    generators = make_generators(2)
    seed_all(8)
    expected = draw_all(make_generators(2))
    seed_all(8)
    with pytest.raises(ValueError, match=message):
        plan_rng(states, generators)
    with pytest.raises(ValueError, match=message):
        restore_rng(states, generators)
    assert draw_all(generators) == expected


def test_states_that_are_not_a_dict_are_refused() -> None:
    with pytest.raises(ValueError, match="rng_states must be a dict, not a list"):
        plan_rng([], {})  # type: ignore[arg-type]


def test_a_plan_and_a_snapshot_set_nothing_until_they_are_told_to() -> None:
    generators = make_generators(1)
    seed_all(1)
    states = capture_rng(generators)
    expected = draw_all(generators)
    others = make_generators(2)
    seed_all(2)
    before = draw_all(make_generators(2))
    seed_all(2)
    plan, snapshot = plan_rng(states, others), RngSnapshot(others)
    assert draw_all(others) == before
    plan.apply()
    assert draw_all(others) == expected
    snapshot.put_back()
    assert draw_all(others) == before


def test_an_error_while_states_are_set_puts_all_of_them_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generators = make_generators(1)
    seed_all(1)
    states = capture_rng(generators)
    others = make_generators(2)
    seed_all(2)
    before = draw_all(make_generators(2))
    seed_all(2)
    plan = plan_rng(states, others)
    real, calls = rng._set_native_state, []

    def fail_first(generator: Any, state: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError
        real(generator, state)

    monkeypatch.setattr(rng, "_set_native_state", fail_first)
    with pytest.raises(MemoryError):
        plan.apply()
    assert draw_all(others) == before


def test_a_state_of_another_kind_of_device_is_skipped() -> None:
    own = {"kind": "torch", "state": torch.zeros(16, dtype=torch.uint8)}
    _, skipped = restore_rng({"generators": {"own": own}}, {"own": torch.Generator()})
    assert skipped["generator 'own'"] == ("its state has 16 bytes, and a generator on cpu has 5056")
