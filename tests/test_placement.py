# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from fastckpt._archive.placement import MapLocation, decide, is_meta, restore_location

CPU = torch.device("cpu")
META = torch.device("meta")


@pytest.mark.parametrize(
    ("map_location", "expected"),
    [
        (None, {"cpu": CPU}),
        ("cpu", {"cpu": CPU, "cuda:3": CPU, "npu": CPU}),
        (CPU, {"cpu": CPU, "cuda:3": CPU}),
        ({"cuda:3": "cpu"}, {"cpu": CPU, "cuda:3": CPU}),
        ({"cpu": "meta"}, {"cpu": META}),
        ("meta", {"cpu": META, "cuda:0": META}),
        (META, {"cpu": META}),
    ],
)
def test_decides_by_location(map_location: MapLocation, expected: dict[str, torch.device]) -> None:
    assert decide(expected, map_location) == expected


def test_a_function_has_to_see_the_storages() -> None:
    assert decide(["cpu"], lambda storage, _: storage) is None


@pytest.mark.parametrize(
    "map_location",
    [
        None,
        "nonsense",
        "cpu:0",
        torch.device("cpu", 0),
        {"cuda:9": "nonsense"},
        {"cuda:9": torch.device("cpu")},
        b"cpu",
        3,
    ],
    ids=repr,
)
def test_raises_what_torch_load_raises(map_location: Any) -> None:
    if torch.cuda.device_count() > 9:
        pytest.skip("cuda:9 is a device here")
    storage = torch.UntypedStorage(4)
    with pytest.raises((RuntimeError, TypeError, AttributeError)) as torchs:
        torch.serialization._get_restore_location(map_location)(storage, "cuda:9")

    def place() -> None:
        if decide(["cuda:9"], map_location) is None:
            restore_location(map_location)(storage, "cuda:9")

    with pytest.raises(torchs.type) as ours:
        place()
    assert str(ours.value) == str(torchs.value)


def test_a_function_may_leave_the_choice_to_torch() -> None:
    seen = []

    def choose(storage: torch.UntypedStorage, location: str) -> None:
        seen.append((storage.nbytes(), location))

    storage = torch.UntypedStorage(4)
    assert restore_location(choose)(storage, "cpu") is storage
    assert seen == [(4, "cpu")]


def test_a_registered_package_has_to_see_the_storages(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = list(torch.serialization._package_registry)
    monkeypatch.setattr(torch.serialization, "_package_registry", registry)
    restored = torch.UntypedStorage(8)

    def restore(storage: Any, location: str, *, name: str) -> Any:
        return restored if location == name else None

    torch.serialization.register_package(
        5, lambda _: None, functools.partial(restore, name="vault")
    )
    assert decide(["cpu"], None) is None
    assert restore_location(None)(torch.UntypedStorage(8), "vault") is restored


@pytest.mark.parametrize(
    ("map_location", "expected"),
    [
        ("meta", True),
        (META, True),
        (None, False),
        ("cpu", False),
        ({"cpu": "meta"}, False),
        (lambda storage, _: storage, False),
    ],
)
def test_only_a_plain_meta_needs_no_payload(map_location: MapLocation, expected: bool) -> None:
    assert is_meta(map_location) is expected


@pytest.mark.cuda
def test_decides_for_cuda() -> None:
    current = torch.device("cuda", torch.cuda.current_device())
    assert decide(["cpu"], "cuda") == {"cpu": current}
    assert decide(["cuda:0", "cpu"], None) == {"cuda:0": torch.device("cuda", 0), "cpu": CPU}
