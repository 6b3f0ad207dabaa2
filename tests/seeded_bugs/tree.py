"""A copy of the project that may be broken: it is changed, built and tested without the original."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]

# pytest's exit code where tests ran and some failed; others say that it could not run them.
_PYTEST_FAILED = 1
# A test that hangs has caught the bug too, but nobody waits for it.
_TIMEOUT_SECS = 1200
_EXTENSION = Path("python/fastckpt/_native.abi3.so")
_STABLE_ABI = ("--features", "pyo3/abi3-py311")


class DoesNotBuildError(Exception):
    """The changed sources do not compile."""


@dataclass(frozen=True)
class CargoTest:
    """One test of a Rust crate.

    Attributes:
        crate: Name of the crate.
        target: File or directory under its tests/, "lib" for the tests in its sources.
        name: The test, with the modules that it is in.
    """

    crate: str
    target: str
    name: str

    def __str__(self) -> str:
        return f"{self.crate} {self.target} {self.name}"


@dataclass(frozen=True)
class PythonTest:
    """One test of pytest, or all the cases of one.

    Attributes:
        node: Its node id.
    """

    node: str

    def __str__(self) -> str:
        return self.node


Test = CargoTest | PythonTest


@dataclass(frozen=True)
class Outcome:
    """What came of running a test.

    Attributes:
        verdict: "passed", "failed", or why it could not run.
        output: What it printed.
    """

    verdict: str
    output: str


class Tree:
    """The copy, with its builds.

    Args:
        path: An empty directory for it.
        target: Where cargo builds; what is there already is used.
    """

    def __init__(self, path: Path, target: Path) -> None:
        self._path = path
        self._target = target
        self._environment = {
            **os.environ,
            "CARGO_TARGET_DIR": str(target),
            # The copy is tested, not what is installed.
            "PYTHONPATH": str(path / "python"),
            "PYO3_PYTHON": sys.executable,
            "RUST_BACKTRACE": "0",
        }
        for name in _project_files():
            destination = path / name
            destination.parent.mkdir(parents=True, exist_ok=True)
            # Not the time of the last change: cargo would take what it built of another copy, at
            # any time since then, for a build of this one.
            shutil.copyfile(PROJECT / name, destination)

    def read(self, name: str) -> str:
        """Return the text of a file."""
        return (self._path / name).read_text()

    def write(self, name: str, text: str) -> None:
        """Replace the text of a file, and of nothing else."""
        (self._path / name).write_text(text)

    def build_extension(self) -> None:
        """Build the native module, and put it where the copy's package finds it.

        Raises:
            DoesNotBuildError: with what the compiler says.
        """
        features = _STABLE_ABI if sys.version_info >= (3, 11) else ()
        self._cargo("build", "-p", "fastckpt-py", *features)
        library = next(self._target.glob("debug/lib_native.*so"))
        # A new file: a process that has mapped the old one must not see it change.
        extension = self._path / _EXTENSION
        extension.unlink(missing_ok=True)
        shutil.copy(library, extension)

    def run(self, test: Test) -> Outcome:
        """Run a test in the copy.

        Raises:
            DoesNotBuildError: with what the compiler says.
        """
        if isinstance(test, PythonTest):
            return self._run_pytest(test)
        target = ["--lib"] if test.target == "lib" else ["--test", test.target]
        selected = ["test", "-p", test.crate, *target]
        self._cargo(*selected, "--no-run")
        arguments = ["cargo", *selected, "--locked", "--", "--exact", test.name]
        return self._judge(arguments, failed=101, passed=r"test result: ok\. [1-9]\d* passed")

    def _run_pytest(self, test: PythonTest) -> Outcome:
        options = ["-p", "no:cacheprovider", "-m", "", "-x", "-q"]
        arguments = [sys.executable, "-m", "pytest", *options, test.node]
        return self._judge(arguments, failed=_PYTEST_FAILED, passed=r"[1-9]\d* passed")

    def _judge(self, arguments: list[str], *, failed: int, passed: str) -> Outcome:
        try:
            process = self._call(arguments)
        except subprocess.TimeoutExpired as error:
            return Outcome("failed", f"hung: {error}")
        output = process.stdout + process.stderr
        if process.returncode == failed:
            return Outcome("failed", output)
        if process.returncode == 0 and re.search(passed, output):
            return Outcome("passed", output)
        return Outcome(f"ran no test (exit code {process.returncode})", output)

    def _cargo(self, *arguments: str) -> None:
        process = self._call(["cargo", *arguments, "--locked", "--quiet"])
        if process.returncode != 0:
            raise DoesNotBuildError(process.stderr)

    def _call(self, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            arguments,
            cwd=self._path,
            env=self._environment,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_TIMEOUT_SECS,
        )


def _project_files() -> list[str]:
    """Return what git knows of the project, and what it would if it were told."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = [name for name in listing.stdout.split("\0") if name]
    return [name for name in names if (PROJECT / name).is_file()]
