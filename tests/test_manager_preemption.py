"""A signal that ends a job becomes a save at the next step."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.manager_runs import Weights, manager_of, messages, names, save_all

import fastckpt

_ROOT = Path(__file__).resolve().parent.parent

_SCRIPT = """
import os, sys
from pathlib import Path
from tests.manager_runs import Weights, manager_of

model = Weights()
manager = manager_of(Path(sys.argv[1]), model, save_every_steps=10**6)
with manager.preemption() as preemption:
    for step in range(1, 10**6):
        model.value = step
        print(step, flush=True)
        if step == 5:
            sys.stdin.readline()  # until the signal has been sent
        if manager.should_save(step):
            manager.save(0, step, {"train_loss": 1.0})
        if preemption.requested:
            break
print("left", step, preemption.is_saved, flush=True)
"""


def test_a_real_signal_to_a_real_process(tmp_path: Path) -> None:
    paths = [str(_ROOT), os.environ.get("PYTHONPATH")]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)))
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(tmp_path)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 5:
            process.send_signal(signal.SIGTERM)
            break
    rest, _ = process.communicate("\n", timeout=200)
    assert process.returncode == 0
    *_, last = rest.splitlines()
    word, step, is_saved = last.split()
    assert (word, is_saved) == ("left", "True")
    assert int(step) == 5
    # The step after which it was asked to, without the metric that other saves need.
    model = Weights()
    manager = manager_of(tmp_path, model)
    assert manager.load()["global_step"] == int(step) == model.value
    assert manager.get_best_checkpoint() is None


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def test_the_next_step_is_saved_once_and_the_handler_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = manager_of(tmp_path, save_best_only=True, save_every_steps=100)
    save_all(manager, {1: 1.0})
    before = signal.getsignal(signal.SIGTERM)
    with manager.preemption() as preemption:
        assert not manager.should_save(2, {"val_loss": 5.0})
        assert preemption.received is None
        send()
        send()  # launchers do that
        assert preemption.received == signal.SIGTERM
        assert not preemption.requested
        assert manager.should_save(3, {"val_loss": 5.0})
        assert manager.should_save(3, {"val_loss": 5.0})
        assert preemption.requested
        assert messages(caplog) == [
            f"Asked to end (signal {signal.SIGTERM}): saving after this step"
        ]
        # Not the best, and saved all the same.
        path = manager.save(0, 3, {"val_loss": 5.0})
        assert path is not None
        assert preemption.is_saved
        assert not manager.should_save(4, {"val_loss": 5.0})
    assert signal.getsignal(signal.SIGTERM) is before
    assert names(tmp_path) == [
        "best_model.pt",
        "checkpoint_epoch0000_step00000001.pt",
        path.name,
    ]
    assert manager.save(0, 5, {"val_loss": 5.0}) is None
    with pytest.raises(KeyError):
        manager.save(0, 5, {})


def test_a_save_without_the_metric_is_made_and_is_not_the_best(tmp_path: Path) -> None:
    manager = manager_of(tmp_path)
    save_all(manager, {1: 1.0})
    with manager.preemption():
        send()
        assert manager.should_save(2)
        manager.save(0, 2, {"val_loss": math.nan})
    with manager.preemption():
        send()
        assert manager.should_save(3)
        manager.save(0, 3, {})
    assert manager.best_metric == 1.0
    assert manager.load()["global_step"] == 3


def test_a_signal_that_nobody_acted_upon_reaches_the_previous_handler(tmp_path: Path) -> None:
    manager = manager_of(tmp_path)
    received = []
    before = signal.signal(signal.SIGTERM, lambda *args: received.append(args[0]))
    try:
        with manager.preemption() as preemption:
            send()
            assert preemption.received == signal.SIGTERM
        assert received == [signal.SIGTERM]
        # An error that ends the loop is enough.
        with pytest.raises(ZeroDivisionError):  # noqa: PT012, SIM117
            with manager.preemption():
                send()
                raise ZeroDivisionError
        assert received == [signal.SIGTERM]
        send()
        assert len(received) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_signals_and_ctrl_c(tmp_path: Path) -> None:
    manager = manager_of(tmp_path)
    with manager.preemption([signal.SIGUSR1, signal.SIGTERM]) as preemption:
        send(signal.SIGUSR1)
        assert manager.should_save(1)
        save_all(manager, {1: 1.0})
        assert preemption.received == signal.SIGUSR1
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012, SIM117
        with manager.preemption():
            send(signal.SIGINT)
            threading.Event().wait(5)


def test_where_it_cannot_work_it_says_so(tmp_path: Path) -> None:
    manager = manager_of(tmp_path)
    said: list[Any] = []

    def enter() -> None:
        try:
            with manager.preemption():
                pass
        except RuntimeError as error:
            said.append(str(error))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert said == [
        (
            "preemption() works in the main thread only, where Python delivers signals: enter it there, "
            "around the training loop"
        )
    ]
    with manager.preemption():
        enter()
    assert said[1:] == ["preemption() is entered already: once, around the training loop"]
    with pytest.raises(ValueError):
        manager.preemption([9999])
    with manager.preemption():
        pass


def test_after_a_failed_save_the_request_stands(tmp_path: Path) -> None:
    manager = manager_of(tmp_path)
    with manager.preemption() as preemption:
        send()
        assert manager.should_save(1)
        with pytest.raises(TypeError):
            manager.save(0, 1, {}, extra_state=Path("x"))
        assert not preemption.is_saved
        assert manager.should_save(2)
        manager.save(0, 2, {})
    assert fastckpt.verify(tmp_path).ok
