"""Make the API reference from the docstrings: HTML, in the directory that is named.

    python docs/make_reference.py build/docs

A warning of pdoc's is an error: a name that does not resolve, a stub that cannot be read.
"""

import sys
import tempfile
import typing
import warnings
from pathlib import Path

import pdoc
import pdoc.render

import fastckpt
from fastckpt import errors

# The native module is private, but reports contain its classes, and its stub is where they are documented.
MODULES = ("fastckpt", "fastckpt._native")


def import_public_names() -> None:
    """Import what is imported when it is first used: pdoc looks only at what is there."""
    for name in fastckpt.__all__:
        getattr(fastckpt, name)


def say_where_errors_are_written() -> None:
    """Undo what tracebacks profit from, the short name of the module: pdoc reads the source of classes there."""
    for name in errors.__all__:
        getattr(errors, name).__module__ = errors.__name__


def make_stub_runnable(directory: Path) -> None:
    """Put a copy of the native stub where pdoc looks first: pdoc runs it, and type checkers do not."""
    stub = Path(fastckpt.__file__).with_name("_native.pyi").read_text()
    (directory / "fastckpt").mkdir()
    # Stubs may name classes that are defined further down.
    (directory / "fastckpt/_native.pyi").write_text(f"from __future__ import annotations\n{stub}")
    sys.path.insert(0, str(directory))
    if not hasattr(typing, "type_check_only"):
        typing.type_check_only = lambda cls: cls  # type: ignore[attr-defined]


def make(output: Path) -> None:
    """Write the reference into a directory."""
    import_public_names()
    say_where_errors_are_written()
    pdoc.render.configure(docformat="google", show_source=False)
    with tempfile.TemporaryDirectory() as stubs, warnings.catch_warnings():
        warnings.simplefilter("error")
        make_stub_runnable(Path(stubs))
        pdoc.pdoc(*MODULES, output_directory=output)
    page = (output / "fastckpt.html").read_text()
    missing = [name for name in fastckpt.__all__ if f'id="{name}"' not in page]
    if missing:
        raise SystemExit(f"not in the reference: {missing}")
    print(f"{output}/index.html: {len(fastckpt.__all__)} public names")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
