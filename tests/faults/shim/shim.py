"""The shim between a process and its C library: built with gcc, armed through ctypes.

`shim.c` counts the file operations on everything below one directory and spoils one of them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("shim.c")

# As in shim.c.
_ACTIONS = ("pass", "kill before", "kill after", "fail", "halve", "disturb", "interrupt")
_LOG_LENGTH = 8192
_NAME_LENGTH = 64
_PATH_LENGTH = 4096

#: Kinds for which EINTR is a possible answer, according to their manual pages. They wait for a disk or a
#: server, and a signal may come meanwhile.
INTERRUPTIBLE = (
    "open",
    "open directory",
    "create",
    "read",
    "cached read",
    "write",
    "fsync",
    "fsync of a directory",
    "truncate",
    "allocate",
    "flock",
    "statfs",
)


@dataclass(frozen=True)
class Plan:
    """What to do to which operation.

    Attributes:
        action: "pass", "kill before" or "kill after" the operation, "fail" with `error`, "halve" a
            transfer, "disturb": halve every transfer and interrupt every third operation, or
            "interrupt": every operation of some kinds, as signals without end would.
        at: The operation, from 1 on.
        error: The errno of "fail".
        for_ever: "fail": this operation and all that follow.
        kinds: "disturb" and "interrupt": kinds of operations that are interrupted.
    """

    action: str = "pass"
    at: int = 0
    error: int = 0
    for_ever: bool = False
    kinds: Sequence[str] = INTERRUPTIBLE

    def to_json(self) -> dict[str, Any]:
        """Return what `Plan(**...)` takes."""
        return asdict(self)


@dataclass(frozen=True)
class Operation:
    """One operation that was logged.

    Attributes:
        kind: Such as "write" or "fsync of a directory".
        name: The file, below the directory; "." is the directory itself.
        fd: The descriptor; of an operation that opens, the one that came back; else -1.
        error: The errno, 0 for success, None where it never came back.
        injected: Whether the error was the shim's.
    """

    kind: str
    name: str
    fd: int
    error: int | None
    injected: bool

    def __str__(self) -> str:
        failed = f" -> {os.strerror(self.error)}" if self.error else ""
        return f"{self.kind} {self.name}{failed}"


class _Entry(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int32),
        ("fd", ctypes.c_int32),
        ("result", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("was_injected", ctypes.c_int32),
        ("name", ctypes.c_char * _NAME_LENGTH),
    )


class _Control(ctypes.Structure):
    _fields_ = (
        ("armed", ctypes.c_int32),
        ("action", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("for_ever", ctypes.c_int32),
        ("at", ctypes.c_int64),
        ("interruptible", ctypes.c_uint64),
        ("counted", ctypes.c_int64),
        ("logged", ctypes.c_int64),
        ("directory", ctypes.c_char * _PATH_LENGTH),
        ("log", _Entry * _LOG_LENGTH),
    )


def build(directory: Path) -> Path:
    """Compile the shim; returns the library that LD_PRELOAD takes."""
    library = directory / "shim.so"
    command = ["gcc", "-O1", "-Wall", "-Wextra", "-fPIC", "-shared"]
    subprocess.run([*command, "-o", library, SOURCE, "-ldl"], check=True)
    return library


class Shim:
    """The shim that is loaded into this process; forked children share its counters and its log."""

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)
        self._library.shim_control_size.restype = ctypes.c_size_t
        self._library.shim_kind_name.restype = ctypes.c_char_p
        if self._library.shim_control_size() != ctypes.sizeof(_Control):
            raise AssertionError("shim.py and shim.c disagree about `struct control`")
        # Shared, so that a parent reads what a child did before it was killed.
        self._memory = mmap.mmap(-1, ctypes.sizeof(_Control))
        self._control = _Control.from_buffer(self._memory)
        self._library.shim_use(ctypes.byref(self._control))
        self._kinds = self._read_kinds()

    def prepare(self, plan: Plan, directory: str) -> None:
        """Set what `arm` begins, and forget what was logged."""
        control = self._control
        control.armed = 0
        control.action = _ACTIONS.index(plan.action)
        control.at = plan.at
        control.error = plan.error
        control.for_ever = plan.for_ever
        control.interruptible = sum(1 << self._kinds.index(kind) for kind in plan.kinds)
        control.counted = control.logged = 0
        # Paths of descriptors come from the kernel, symbolic links followed.
        control.directory = os.fsencode(os.path.realpath(directory))

    def arm(self) -> None:
        """Begin to count."""
        self._control.armed = 1

    def disarm(self) -> None:
        """Pass everything on."""
        self._control.armed = 0

    @property
    def counted(self) -> int:
        """How many operations there were since `prepare`."""
        return int(self._control.counted)

    def operations(self) -> list[Operation]:
        """What was logged since `prepare`."""
        length = min(self._control.logged, _LOG_LENGTH)
        return [self._operation(self._control.log[position]) for position in range(length)]

    def _operation(self, entry: Any) -> Operation:
        return Operation(
            kind=self._kinds[entry.kind],
            name=os.fsdecode(entry.name),
            fd=entry.fd,
            # 1: it never came back.
            error=None if entry.result == 1 else entry.error,
            injected=bool(entry.was_injected),
        )

    def _read_kinds(self) -> list[str]:
        names: list[str] = []
        while (name := self._library.shim_kind_name(len(names))) is not None:
            names.append(name.decode())
        return names
