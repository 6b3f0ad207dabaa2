"""Free-threaded Python: fastckpt runs with the GIL, which its import switches on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

MODULE = Path(__file__).parents[1] / "rust/fastckpt-py/src/lib.rs"

_SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore", RuntimeWarning)
import fastckpt._native
print(getattr(sys, "_is_gil_enabled", lambda: True)())
"""


def test_the_gil_is_on_where_the_native_module_is_imported() -> None:
    """Shows something on a free-threaded Python only, which `make test-matrix` may be given."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}
    command = [sys.executable, "-c", _SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_the_native_module_says_that_it_uses_the_gil() -> None:
    """PyO3's default is that it does not; in a build for the stable ABI nothing of it is to be seen."""
    (arguments,) = re.findall(r"^#\[pyo3::pymodule(.*)\]$", MODULE.read_text(), re.MULTILINE)
    assert arguments == "(gil_used = true)"
