"""Work in forked children, which have torch already and may be limited, unprivileged or killed."""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

# A user that owns nothing and whose processes nobody counts: the limit of processes goes by user.
# (65534 is the usual nobody, to whom other services of the machine may belong.)
NOBODY = 64_321

_POLL_SECS = 0.002
_REPORT_FD = 3


@dataclass(frozen=True)
class Raised:
    """An exception of a child.

    Attributes:
        kinds: The names of its class and of the classes above it.
        errno: Its number, for an OSError.
        filename: Its file, for an OSError.
        words: Its message.
        trace: Where it came from, for whoever reads of a test that failed.
    """

    kinds: list[str]
    errno: int | None
    filename: str | None
    words: str
    trace: str

    def is_a(self, *kinds: type[BaseException]) -> bool:
        """Whether `except` with one of these classes would catch it."""
        return any(kind.__name__ in self.kinds for kind in kinds)

    def __str__(self) -> str:
        return f"{self.kinds[0]}: {self.words}"


@dataclass(frozen=True)
class Outcome:
    """What became of a child: it returned a value, raised, or died with neither.

    Attributes:
        code: Its exit code; the negative number of a signal.
        value: What its work returned.
        raised: What its work raised.
    """

    code: int
    value: Any = None
    raised: Raised | None = None

    @property
    def ok(self) -> bool:
        """Whether the work was done to its end."""
        return self.code == 0 and self.raised is None

    def __str__(self) -> str:
        if self.raised is not None:
            return self.raised.trace
        return f"value {self.value!r}" if self.ok else f"exit code {self.code}"


def fork() -> int:
    """Fork, although there are threads: the child only does what children may do then."""
    with warnings.catch_warnings():
        # Python 3.12 warns of it, since other libraries would take locks that nobody holds.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_child(work: Callable[[], object]) -> int:
    """Fork, run there, and return the child's number. It ends without Python's clean-up."""
    child = fork()
    if child == 0:
        try:
            # The threads of torch's own pool are not there after a fork, and OpenMP waits for them.
            torch.set_num_threads(1)
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child


def wait_for(ready: Callable[[], bool], timeout_secs: float = 100) -> None:
    """Return when `ready` says so."""
    ends = time.monotonic() + timeout_secs
    while not ready():
        assert time.monotonic() < ends
        time.sleep(_POLL_SECS)


def exit_code(child: int, timeout_secs: float = 200) -> int:
    """Wait for a child; one that hangs is killed, and counts as failed."""
    ends = time.monotonic() + timeout_secs
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(_POLL_SECS)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


@dataclass(frozen=True)
class Child:
    """A child whose work will be reported."""

    number: int
    report: int

    def outcome(self, timeout_secs: float = 200) -> Outcome:
        """Wait until it has ended."""
        try:
            code = exit_code(self.number, timeout_secs)
            text = os.pread(self.report, os.fstat(self.report).st_size, 0)
        finally:
            os.close(self.report)
        # One that was killed in the middle has reported nothing, or half of it.
        if code != 0 or not text:
            return Outcome(code)
        found = json.loads(text)
        raised = found["raised"]
        return Outcome(code, found["value"], None if raised is None else Raised(**raised))


def start(work: Callable[[], Any], *, user: int | None = None, close_files: bool = False) -> Child:
    """Fork and run there what returns something that JSON can express.

    Args:
        work: Runs in the child. Limits that it sets it must lift again before it returns.
        user: The user, and the group, to become first; they have no rights of root's.
        close_files: Close all files but the standard ones first.
    """
    report = os.memfd_create("report")
    number = fork()
    if number == 0:
        code = 1
        try:
            if close_files:
                os.dup2(report, _REPORT_FD)
                os.closerange(_REPORT_FD + 1, os.sysconf("SC_OPEN_MAX"))
                report = _REPORT_FD
            torch.set_num_threads(1)
            if user is not None:
                become(user)
            os.pwrite(report, json.dumps(_report_of(work)).encode(), 0)
            code = 0
        finally:
            os._exit(code)
    return Child(number, report)


def run_in_child(
    work: Callable[[], Any],
    *,
    timeout_secs: float = 200,
    user: int | None = None,
    close_files: bool = False,
) -> Outcome:
    """Fork, run there, and return what came of it; see `start`."""
    return start(work, user=user, close_files=close_files).outcome(timeout_secs)


def become(user: int) -> None:
    """Become another user for good. Without user 0, the capabilities go too."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def raised_by(work: Callable[[], object]) -> Raised | None:
    """Run and return what was raised."""
    try:
        work()
    except BaseException as error:
        return _describe(error)
    return None


def _report_of(work: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": work(), "raised": None}
    except BaseException as error:
        return {"value": None, "raised": vars(_describe(error))}


def _describe(error: BaseException) -> Raised:
    filename = getattr(error, "filename", None)
    return Raised(
        kinds=[kind.__name__ for kind in type(error).__mro__],
        errno=getattr(error, "errno", None),
        filename=None if filename is None else os.fsdecode(filename),
        words=str(error),
        trace="".join(traceback.format_exception(error)),
    )


@contextmanager
def working_in(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Work in another directory, which a user may be in without a right to go there."""
    before = os.getcwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)
