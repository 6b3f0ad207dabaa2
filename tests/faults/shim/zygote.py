"""A process that has imported torch, and forks a child for each case: importing costs seconds, a fork
milliseconds.

With the shim preloaded, each child does its work with one of its file operations spoiled. The process
that tells it what to do is the judge: it has no shim, and reads what the child left behind.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.children import Raised, fork, raised_by
from tests.faults.shim.shim import Operation, Plan, Shim, build

# What a work function returns: it has prepared everything that is not to be counted. What it returns in
# turn, if anything, checks the result when the shim is disarmed.
Check = Callable[[], None]
Act = Callable[[], Check | None]

_MODULE = "tests.faults.shim.zygote"
_LIBRARY = "SHIM_LIBRARY"
_ROOT = Path(__file__).resolve().parents[3]
# A child that takes longer hangs. The slowest case takes a second.
_TIMEOUT_SECS = 100.0
_START_SECS = 200.0
# linux/prctl.h
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ending:
    """How a child ended.

    Attributes:
        signal: What killed it; 0 if nothing did.
        raised: What its work raised.
        wrong: What the check of its result raised.
        operations: Its operations on files, spoiled ones included.
        hangs: Whether it had to be killed because it did not end.
    """

    signal: int
    raised: Raised | None
    wrong: Raised | None
    operations: list[Operation]
    hangs: bool = False


class Zygote:
    """The forking process, seen from outside. Use `shared` to get one."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._received = b""
        if self._receive(_START_SECS) != {"ready": True}:
            raise AssertionError("the zygote did not start")

    def run(self, work: str, directory: Path, plan: Plan | None = None, **arguments: Any) -> Ending:
        """Fork a child that does the work, wait for its end and tell how it was.

        Args:
            work: "module:function"; called with the directory and `arguments`, it returns what is done
                with the shim armed.
            directory: Operations on files at and below it count.
            plan: What to spoil; by default nothing.
            **arguments: For the work, as far as JSON can express them.
        """
        plan = plan or Plan()
        request = {"work": work, "directory": str(directory), "arguments": arguments}
        answer = self._ask({"do": "run", **request, "plan": plan.to_json()})
        return Ending(
            signal=answer["signal"],
            raised=_raised(answer["raised"]),
            wrong=_raised(answer["wrong"]),
            operations=[Operation(**operation) for operation in answer["operations"]],
            hangs=answer["hangs"],
        )

    def start(self, work: str, directory: Path, **arguments: Any) -> int:
        """Fork a child that works until `kill`, without the shim; returns its process id."""
        request = {"work": work, "directory": str(directory), "arguments": arguments}
        return int(self._ask({"do": "start", **request})["pid"])

    def kill(self, pid: int) -> int:
        """Kill a child with SIGKILL, wait until it is gone and return its exit code as subprocess does."""
        os.kill(pid, signal.SIGKILL)
        return int(self._ask({"do": "reap", "pid": pid})["code"])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            return self._receive(2 * _TIMEOUT_SECS)
        except BaseException:
            # Its answer, when it came, would be taken for that to the next request.
            self._process.kill()
            shared.cache_clear()
            raise

    def _receive(self, timeout_secs: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        ends = time.monotonic() + timeout_secs
        while b"\n" not in self._received:
            ready, _, _ = select.select([descriptor], [], [], max(0, ends - time.monotonic()))
            data = os.read(descriptor, 1 << 20) if ready else b""
            if not data:
                raise AssertionError("the zygote has died" if ready else "the zygote hangs")
            self._received += data
        line, self._received = self._received.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer


def _raised(found: dict[str, Any] | None) -> Raised | None:
    return None if found is None else Raised(**found)


@functools.cache
def shared(*, shim: bool = True) -> Zygote:
    """Return this process's forking process, with the shim preloaded or without. It ends with us."""
    environment = dict(os.environ)
    paths = [str(_ROOT), environment.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if shim:
        directory = tempfile.TemporaryDirectory()
        library = str(build(Path(directory.name)))
        environment |= {"LD_PRELOAD": library, _LIBRARY: library}
        # Not before the end: the children of a fork server may load it again.
        atexit.register(directory.cleanup)
    process = subprocess.Popen(
        [sys.executable, "-m", _MODULE],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    atexit.register(_end, process)
    return Zygote(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    # It has nothing to finish.
    process.kill()
    process.communicate()


# From here on: inside the zygote.


class _Server:
    def __init__(self, answers: int) -> None:
        self._answers = answers
        library = os.environ.get(_LIBRARY)
        self._shim = Shim(library) if library else None

    def serve(self) -> None:
        self._answer({"ready": True})
        for line in sys.stdin.buffer:
            request = json.loads(line)
            do = request.pop("do")
            if "work" in request:
                # Here, and only once: the children find it imported.
                importlib.import_module(request["work"].split(":")[0])
            if do == "run":
                self._answer(self._run(Plan(**request.pop("plan")), **request))
            elif do == "start":
                self._answer({"pid": self._start(**request)})
            else:
                _, status = os.waitpid(request["pid"], 0)
                self._answer({"code": os.waitstatus_to_exitcode(status)})

    def _answer(self, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode() + b"\n"
        while data:
            data = data[os.write(self._answers, data) :]

    def _run(
        self, plan: Plan, work: str, directory: str, arguments: dict[str, Any]
    ) -> dict[str, Any]:
        if self._shim is None:
            raise AssertionError("this zygote has no shim")
        self._shim.prepare(plan, directory)
        result, result_end = os.pipe()
        pid = fork()
        if pid == 0:
            os.close(result)
            self._work(result_end, work, directory, arguments)
        os.close(result_end)
        text, hangs = _read_all(result, pid)
        os.close(result)
        _, status = os.waitpid(pid, 0)
        return {
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
            **(json.loads(text) if text else {"raised": None, "wrong": None}),
            "operations": [vars(operation) for operation in self._shim.operations()],
            "hangs": hangs,
        }

    def _work(self, result: int, work: str, directory: str, arguments: dict[str, Any]) -> None:
        """Do the work in this child, which does not survive it."""
        checks: list[Check | None] = []

        def armed() -> None:
            assert self._shim is not None
            act = _prepare(work, directory, arguments)
            self._shim.arm()
            try:
                checks.append(act())
            finally:
                self._shim.disarm()

        try:
            raised = raised_by(armed)
            wrong = raised_by(checks[0]) if checks and checks[0] else None
            report = {"raised": raised and vars(raised), "wrong": wrong and vars(wrong)}
            os.write(result, json.dumps(report).encode())
        finally:
            os._exit(0)

    @staticmethod
    def _start(work: str, directory: str, arguments: dict[str, Any]) -> int:
        pid = fork()
        if pid == 0:
            try:
                # It never ends by itself, so it must not outlive whoever would kill it.
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                _prepare(work, directory, arguments)()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        return pid


def _prepare(work: str, directory: str, arguments: dict[str, Any]) -> Act:
    import torch

    # The threads of torch's own pool are not there after a fork, and OpenMP waits for them.
    torch.set_num_threads(1)
    module, name = work.split(":")
    act: Act = getattr(importlib.import_module(module), name)(Path(directory), **arguments)
    return act


def _read_all(descriptor: int, pid: int) -> tuple[bytes, bool]:
    """Read until the child closes its end, which it does by ending; or end it."""
    text = b""
    ends = time.monotonic() + _TIMEOUT_SECS
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0, ends - time.monotonic()))
        if not ready:
            os.kill(pid, signal.SIGKILL)
            return text, True
        data = os.read(descriptor, 1 << 16)
        if not data:
            return text, False
        text += data


def _main() -> None:
    # Answers go to where stdout was; whatever the children print goes elsewhere.
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for name in ("torch", "fastckpt"):
        importlib.import_module(name)
    _Server(answers).serve()


if __name__ == "__main__":
    _main()
