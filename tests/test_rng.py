"""States of random number generators: saved and restored exactly, as tensors and plain values."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.random_numbers import draw_all, make_generators, through_a_file

from fastckpt.training.rng import capture_rng, check_generators, restore_rng


@given(seed=st.integers(0, 2**32 - 1), before=st.integers(0, 3))
def test_every_generator_goes_on_where_it_was(
    seed: int, before: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    generators = make_generators(seed)
    for _ in range(before):
        # An odd number of normal deviates leaves one in store.
        random.gauss(0, 1)
        np.random.standard_normal()  # noqa: NPY002
        torch.randn(1)
        draw_all(generators)
    states = through_a_file(capture_rng(generators), tmp_path_factory.mktemp("rng"))
    expected = draw_all(generators)
    others = make_generators(seed + 1)
    draw_all(others)
    restored, skipped = restore_rng(states, others)
    assert skipped == ({} if not torch.cuda.is_available() else skipped)
    assert {"python RNG", "numpy RNG", "torch RNG", "generator 'PCG64'"} <= {*restored}
    assert draw_all(others) == expected


def test_taking_a_state_draws_nothing() -> None:
    generators = make_generators(3)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    expected = draw_all(make_generators(3))
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    capture_rng(generators)
    assert draw_all(generators) == expected


def test_states_are_tensors_and_plain_values(tmp_path: Path) -> None:
    states = capture_rng(make_generators(3))
    kinds = set()
    stack: list[Any] = [states]
    while stack:
        value = stack.pop()
        kinds.add(type(value))
        stack += value.values() if isinstance(value, dict) else ()
        stack += value if type(value) in (list, tuple) else ()
    assert kinds <= {dict, list, tuple, torch.Tensor, int, float, str, type(None)}
    loaded = through_a_file(states, tmp_path)
    assert loaded.keys() == states.keys()


def test_numpy_is_not_imported_for_a_save() -> None:
    script = (
        "import sys, random\n"
        "sys.modules['numpy'] = None\n"  # torch does without
        "import torch\n"
        "from fastckpt.training.rng import capture_rng, restore_rng\n"
        "del sys.modules['numpy']\n"
        "states = capture_rng({})\n"
        "assert 'numpy' not in states and 'numpy' not in sys.modules\n"
        "expected = [random.random(), torch.rand(2).tolist()]\n"
        "restored, skipped = restore_rng(states, {})\n"
        "assert skipped['numpy RNG'] == 'numpy was not imported when the checkpoint was saved'\n"
        "assert [random.random(), torch.rand(2).tolist()] == expected\n"
        "assert 'numpy' not in sys.modules\n"
        "sys.modules['numpy'] = None\n"
        "states['numpy'] = {'bit_generator': 'MT19937'}\n"
        "assert restore_rng(states, {})[1]['numpy RNG'] == 'numpy is not installed here'\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=200)


def test_what_does_not_fit_is_said() -> None:
    states = capture_rng(make_generators(1))
    others = {
        "torch": random.Random(1),
        "PCG64": np.random.Generator(np.random.SFC64(1)),
        "new": torch.Generator(),
    }
    _, skipped = restore_rng(states, others)
    skipped.pop("CUDA RNG", None)
    missing = "the checkpoint has its state, but it is not registered (generators=)"
    assert skipped == {
        "generator 'torch'": "it is a random.Random, and the checkpoint has the state of a "
        "torch.Generator",
        "generator 'PCG64'": "it is a SFC64, and was a PCG64",
        "generator 'new'": "the checkpoint has no state for it",
        **{
            f"generator {name!r}": missing
            for name in ("MT19937", "PCG64DXSM", "Philox", "SFC64", "python")
        },
    }


@pytest.mark.parametrize(
    ("generator", "described"),
    [(3, "builtins.int"), (random.SystemRandom(), "random.SystemRandom")],
)
def test_what_is_no_generator_is_refused(generator: Any, described: str) -> None:
    with pytest.raises(TypeError) as caught:
        check_generators({"a": generator})
    assert str(caught.value) == (
        "generators['a'] must be a random.Random, a numpy.random.Generator or a torch.Generator, "
        f"not {described}"
    )
    with pytest.raises(TypeError, match="generator names must be strings, not 3"):
        check_generators({3: torch.Generator()})  # type: ignore[dict-item]


def test_states_of_cuda_devices_that_are_not_here_are_said() -> None:
    if torch.cuda.is_available():
        return
    states = capture_rng({}) | {"torch_cuda": [torch.zeros(16, dtype=torch.uint8)] * 2}
    _, skipped = restore_rng(states, {})
    assert skipped == {
        "CUDA RNG": "the checkpoint has the states of 2 CUDA devices, and CUDA is not available"
    }


@pytest.mark.cuda
def test_every_cuda_device_goes_on_where_it_was(tmp_path: Path) -> None:
    devices = range(torch.cuda.device_count())
    generator = torch.Generator("cuda").manual_seed(7)
    torch.rand(3, device="cuda", generator=generator)
    torch.cuda.manual_seed_all(11)

    def draw() -> list[Any]:
        own = torch.rand(3, device="cuda", generator=generator).tolist()
        return [own, *(torch.rand(3, device=f"cuda:{device}").tolist() for device in devices)]

    draw()
    states = through_a_file(capture_rng({"own": generator}), tmp_path)
    expected = draw()
    restored, skipped = restore_rng(states, {"own": generator})
    assert skipped == {}
    assert "CUDA RNG" in restored
    assert draw() == expected
