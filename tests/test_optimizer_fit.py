"""Which optimizer state goes to which parameter on a resume, and which is refused."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.specimens import assert_same
from torch import nn

import fastckpt
from fastckpt import StateMismatchError

_OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.01),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "centered": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.01),
}
# One class with other settings: the groups are overwritten by the saved ones, so all of it fits.
_SAME = {
    frozenset({"Adam", "amsgrad"}),
    frozenset({"SGD", "momentum"}),
    frozenset({"RMSprop", "centered"}),
}


class Net(nn.Module):
    """Parts of chosen names and widths, in a chosen order."""

    a: Any
    b: Any
    c: Any

    def __init__(self, widths: dict[str, int], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        for name, width in widths.items():
            setattr(self, name, nn.Linear(width, width, bias=False))

    def loss(self) -> torch.Tensor:
        return sum(
            (torch.arange(1.0, p.numel() + 1).view_as(p) * p).sum() for p in self.parameters()
        )  # type: ignore[return-value]


def train(net: Any, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    for _ in range(steps):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = net.loss()
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]


def saved(directory: Path, net: Any, optimizer: Any, scheduler: Any = None) -> Path:
    manager = fastckpt.CheckpointManager(
        fastckpt.CheckpointConfig(directory, metric_name=None), net, optimizer, scheduler
    )
    path = manager.save(0, 2, {})
    assert path is not None
    return path


def without_names(path: Path) -> Path:
    """Write a checkpoint as it was before names and classes were saved, by torch."""
    contents = torch.load(path)
    del contents["optimizer_param_names"], contents["class_names"]
    older = path.with_name("older.pt")
    torch.save(contents, older)
    return older


def refusal(path: Path, net: Any, optimizer: Any, **choices: Any) -> str:
    """Resume, which has to be refused with nothing changed; return the message."""
    before = copy.deepcopy((net.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    with pytest.raises(StateMismatchError) as caught:
        fastckpt.resume_training(path, net, optimizer, **choices)
    assert_same((net.state_dict(), optimizer.state_dict(), torch.get_rng_state()), before)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("has_names", [True, False], ids=["names", "older file"])
@pytest.mark.parametrize("kind", _OPTIMIZERS)
def test_each_kind_fits_itself_and_no_other(kind: str, has_names: bool, tmp_path: Path) -> None:
    net = Net({"a": 2, "b": 3}, 0)
    optimizer = _OPTIMIZERS[kind](net.parameters())
    train(net, optimizer)
    path = saved(tmp_path, net, optimizer)
    if not has_names:
        path = without_names(path)
    expected = copy.deepcopy(optimizer.state_dict())
    for other, make in _OPTIMIZERS.items():
        resumed = Net({"a": 2, "b": 3}, 1)
        mine = make(resumed.parameters())
        if other == kind or frozenset({kind, other}) in _SAME:
            report = fastckpt.resume_training(path, resumed, mine)
            assert "optimizer" in report.restored
            assert report.adjusted == {}
            assert_same(mine.state_dict(), expected)
            train(resumed, mine, 1)
        else:
            assert "another kind of optimizer" in refusal(path, resumed, mine), other


def test_adam_and_adamw_differ_and_keep_takes_the_moments(tmp_path: Path) -> None:
    net = Net({"a": 2}, 0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    train(net, optimizer)
    path = saved(tmp_path, net, optimizer)
    for file in (path, without_names(path)):
        adam = torch.optim.Adam(net.parameters(), lr=0.01)
        assert "keep=('decoupled_weight_decay',)" in refusal(file, net, adam)
        report = fastckpt.resume_training(file, net, adam, keep=("decoupled_weight_decay",))
        assert report.adjusted == {"optimizer": "kept as the script has it: decoupled_weight_decay"}
        assert adam.param_groups[0]["decoupled_weight_decay"] is False
        assert_same(adam.state_dict()["state"], optimizer.state_dict()["state"])


def test_a_fresh_optimizers_state_fits_too(tmp_path: Path) -> None:
    net = Net({"a": 2}, 0)
    path = saved(tmp_path, net, torch.optim.AdamW(net.parameters()))
    assert (
        "optimizer"
        in fastckpt.resume_training(path, net, torch.optim.AdamW(net.parameters())).restored
    )
    assert "AdamW" in refusal(path, net, torch.optim.SGD(net.parameters(), lr=0.1))


@given(
    order=st.permutations("abcd"),
    cut=st.integers(1, 3),
    named=st.tuples(st.booleans(), st.booleans()),
)
def test_moments_follow_the_names(
    order: Sequence[str],
    cut: int,
    named: tuple[bool, bool],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def make(names: Sequence[str], seed: int, by_names: bool) -> tuple[Net, torch.optim.Optimizer]:
        net = Net(dict.fromkeys(names, 2), seed)
        first = {"abcd"[number] for number in range(cut)}
        pairs = list(net.named_parameters())
        groups = [[pair for pair in pairs if (pair[0][0] in first) == own] for own in (True, False)]
        # A group of other settings each, in an order that follows the modules.
        groups.sort(key=lambda group: names.index(group[0][0][0]))
        described = [
            {
                "params": group if by_names else [parameter for _, parameter in group],
                "weight_decay": 0.1 if group[0][0][0] in first else 0.0,
            }
            for group in groups
        ]
        return net, torch.optim.AdamW(described, lr=0.01)

    net, optimizer = make("abcd", 0, named[0])
    train(net, optimizer)
    path = saved(tmp_path_factory.mktemp("run"), net, optimizer)
    other, mine = make(order, 1, named[1])
    own_names = [group.get("param_names") for group in mine.param_groups]
    report = fastckpt.resume_training(path, other, mine)
    for name, parameter in other.named_parameters():
        assert_same(mine.state[parameter], optimizer.state[net.get_parameter(name)])
    assert [group.get("param_names") for group in mine.param_groups] == own_names
    decays = {
        name: group["weight_decay"]
        for group in mine.param_groups
        for name, parameter in other.named_parameters()
        if any(parameter is one for one in group["params"])
    }
    assert decays == {f"{name}.weight": 0.1 if name in "abcd"[:cut] else 0.0 for name in "abcd"}
    changed = [p for g in optimizer.param_groups for p in g["params"]]
    stands = [net.get_parameter(n) for g in _names(mine, other) for n in g]
    assert ("optimizer" in report.adjusted) == any(
        a is not b for a, b in zip(changed, stands, strict=True)
    )


def _names(optimizer: torch.optim.Optimizer, net: nn.Module) -> list[list[str]]:
    names = {parameter: name for name, parameter in net.named_parameters()}
    return [[names[one] for one in group["params"]] for group in optimizer.param_groups]


def test_an_optimizer_without_names_gets_none_and_takes_new_groups(tmp_path: Path) -> None:
    net = Net({"a": 2}, 0)
    named = torch.optim.AdamW(net.named_parameters(), lr=0.01)
    path = saved(tmp_path, net, named)
    bare = torch.optim.AdamW(net.parameters(), lr=0.01)
    fastckpt.resume_training(path, net, bare)
    assert "param_names" not in bare.param_groups[0]
    # torch refuses this where some groups have names and the new one has none.
    bare.add_param_group({"params": [nn.Parameter(torch.ones(2))]})


def test_other_names_are_refused_and_named(tmp_path: Path) -> None:
    net = Net({"a": 2, "b": 2, "c": 2}, 0)
    train(net, optimizer := torch.optim.AdamW([net.a.weight, net.b.weight], lr=0.01))
    path = saved(tmp_path, net, optimizer)
    words = refusal(path, net, torch.optim.AdamW([net.a.weight, net.c.weight], lr=0.01))
    assert words.endswith(
        "its parameters have other names; only in the checkpoint: 'b.weight'; only here: 'c.weight'"
    )
    words = refusal(path, net, torch.optim.AdamW([{"params": [p]} for p in net.parameters()]))
    assert words.endswith("the checkpoint has 1 group of parameters, and this optimizer has 3")


def test_without_names_shapes_and_the_models_order_tell(tmp_path: Path) -> None:
    net = Net({"a": 2, "b": 3}, 0)
    train(net, optimizer := torch.optim.AdamW([net.a.weight, net.b.weight], lr=0.01))
    path = without_names(saved(tmp_path, net, optimizer))
    words = refusal(path, net, torch.optim.AdamW([net.b.weight, net.a.weight], lr=0.01))
    assert words.endswith(
        "the state of b.weight does not fit it: exp_avg has the shape (2, 2), expected (3, 3)"
    )
    assert "group 0 has 2 parameters in the checkpoint, and 1 here" in refusal(
        path, net, torch.optim.AdamW([net.a.weight])
    )
    # Of one shape, only the order in which the model itself was saved shows it.
    net = Net({"a": 2, "b": 2}, 0)
    train(net, optimizer := torch.optim.AdamW(net.parameters(), lr=0.01))
    path = without_names(saved(tmp_path / "same", net, optimizer))
    other = Net({"b": 2, "a": 2}, 0)
    words = refusal(path, other, torch.optim.AdamW(other.parameters(), lr=0.01))
    assert "'a.weight', 'b.weight' change places" in words
    # In the order of the saved one all is clear.
    explicit = torch.optim.AdamW([other.a.weight, other.b.weight], lr=0.01)
    assert "optimizer" in fastckpt.resume_training(path, other, explicit).restored


class Lion(torch.optim.Optimizer):
    """An optimizer of somebody else: one moment a parameter, and a factored one."""

    def __init__(self, params: Any, lr: float = 0.1, factored: bool = False) -> None:
        super().__init__(params, {"lr": lr, "beta": 0.9, "factored": factored})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    shape = parameter.shape[:1] if group["factored"] else parameter.shape
                    state["moment"] = torch.randn(shape)
                parameter.sub_(group["lr"])


def test_of_an_unknown_optimizer_only_what_shows_is_refused(tmp_path: Path) -> None:
    net = Net({"a": 2, "b": 3}, 0)
    for factored in (False, True):
        train(net, optimizer := Lion(net.parameters(), factored=factored))
        path = without_names(saved(tmp_path / str(factored), net, optimizer))
        fastckpt.resume_training(path, net, mine := Lion(net.parameters()))
        assert_same(mine.state_dict(), optimizer.state_dict())
    # All shapes are there, at other places.
    path = tmp_path / "False" / "older.pt"
    other = Net({"b": 3, "a": 2}, 0)
    words = refusal(path, other, Lion([other.b.weight, other.a.weight]))
    assert "another order than in the checkpoint" in words
    # One that has stepped says by itself what it needs.
    train(net, adam := torch.optim.AdamW(net.parameters(), lr=0.01))
    assert "another kind" in refusal(path, net, adam)
    path = without_names(saved(tmp_path / "adam", net, adam))
    assert "another kind" in refusal(path, net, Lion(net.parameters()))


def test_an_optimizer_of_its_own_ways_decides_and_is_put_back(tmp_path: Path) -> None:
    class Strict(torch.optim.SGD):
        def load_state_dict(self, state_dict: Any) -> None:
            for value in self.state.values():
                value["momentum_buffer"].zero_()
            self.param_groups[0]["lr"] = 7
            raise RuntimeError("not mine")

    net = Net({"a": 2}, 0)
    train(net, optimizer := torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
    path = saved(tmp_path, net, optimizer)
    train(net, mine := Strict(net.parameters(), lr=0.2, momentum=0.9))
    before = copy.deepcopy((net.state_dict(), mine.state_dict()))
    with pytest.raises(RuntimeError, match="not mine"):
        fastckpt.resume_training(path, net, mine)
    assert_same((net.state_dict(), dict(mine.state_dict())), before)


def test_keep_leaves_the_scripts_learning_rate_and_takes_the_moments(tmp_path: Path) -> None:
    def make(lr: float) -> tuple[Net, torch.optim.Optimizer, Any]:
        net = Net({"a": 2}, 0)
        optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=lr)
        return net, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    net, optimizer, scheduler = make(0.01)
    train(net, optimizer)
    scheduler.step()
    path = saved(tmp_path, net, optimizer, scheduler)
    other, mine, own = make(0.3)
    report = fastckpt.resume_training(path, other, mine, own, keep=("lr",))
    assert mine.param_groups[0]["lr"] == 0.3
    assert mine.param_groups[0]["weight_decay"] == 0.01
    assert_same(mine.state_dict()["state"], optimizer.state_dict()["state"])
    assert report.adjusted == {"optimizer": "kept as the script has it: lr"}
    own.step()
    # The place in the schedule is the checkpoint's, what it multiplies the script's.
    assert mine.param_groups[0]["lr"] == 0.3 * 0.5**2
    with pytest.raises(
        ValueError, match="keep has 'momentum', and the groups of this optimizer have"
    ):
        fastckpt.resume_training(path, other, mine, own, keep=("momentum",))
    with pytest.raises(
        TypeError, match=r"keep must be names of settings, such as \('lr',\), not 'lr'"
    ):
        fastckpt.resume_training(path, other, mine, own, keep="lr")


def test_strict_false_loads_what_fits_and_lists_the_rest(tmp_path: Path) -> None:
    net = Net({"a": 2, "b": 3}, 0)
    train(net, optimizer := torch.optim.AdamW(net.parameters(), lr=0.01))
    path = saved(tmp_path, net, optimizer)
    # Another head, and one more part.
    other: Any = Net({"c": 2, "b": 4, "a": 2}, 1)
    before = copy.deepcopy(other.state_dict())
    mine = torch.optim.AdamW(other.parameters(), lr=0.5)
    refusal(path, other, mine)
    report = fastckpt.resume_training(path, other, mine, strict=False)
    assert torch.equal(other.a.weight, net.a.weight)
    assert torch.equal(other.b.weight, before["b.weight"])
    assert_same(mine.state[other.a.weight], optimizer.state[net.a.weight])
    assert [*mine.state] == [other.a.weight]
    assert mine.param_groups[0]["lr"] == 0.01
    assert report.skipped == {
        "model: c.weight": "the checkpoint does not have it",
        "model: b.weight": "shape (3, 3) in the checkpoint, (4, 4) here",
        "optimizer: c.weight": "the checkpoint does not have it",
        "optimizer: b.weight": "exp_avg has the shape (3, 3), expected (4, 4)",
    }
    train(other, mine, 1)
    # Of another kind nothing fits.
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    report = fastckpt.resume_training(path, net, sgd, strict=False)
    assert "another kind of optimizer" in report.skipped["optimizer"]
    assert sgd.param_groups[0]["lr"] == 0.1


def test_the_order_is_seen_through_what_is_around_the_model(tmp_path: Path) -> None:
    net = Net({"a": 2, "b": 2}, 0)
    train(net, optimizer := torch.optim.AdamW(net.parameters(), lr=0.01))
    path = saved(tmp_path, net, optimizer)
    wrappers: list[Any] = [nn.DataParallel, lambda model: torch.compile(model, backend="eager")]
    for wrap in wrappers:
        other = Net({"b": 2, "a": 2}, 1)
        around: Any = wrap(other)
        mine = torch.optim.AdamW(around.parameters(), lr=0.01)
        report = fastckpt.resume_training(path, around, mine)
        assert "put into the order" in report.adjusted["optimizer"]
        assert_same(mine.state[other.a.weight], optimizer.state[net.a.weight])
        mine = torch.optim.AdamW(around.parameters(), lr=0.01)
        with pytest.raises(StateMismatchError, match="change places"):
            fastckpt.resume_training(without_names(path), around, mine)
