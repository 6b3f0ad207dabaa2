"""Write results to stdout and messages to stderr.

What is printed may come from a file that someone else made: control characters never reach the
terminal unescaped. Commands escape names when they put them into columns; whatever they have left is
escaped here, so that nothing can be forgotten. Colour only repeats what a word says already.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TextIO, TypeVar

from fastckpt.cli.width import fold, stream_width

if TYPE_CHECKING:
    from fastckpt.cli.failures import Failure

SCHEMA_VERSION = 1
# Of these kinds are the messages that --quiet leaves.
_LOUD = ("error", "warning")


class _Verdict(Protocol):
    @property
    def status(self) -> str: ...
    @property
    def exit_code(self) -> int: ...


_Report = TypeVar("_Report", bound=_Verdict)


@dataclass(frozen=True)
class Output:
    """How a command says what it has to say.

    Attributes:
        as_json: As one JSON document on stdout.
        quiet: Only errors and warnings, on stderr.
        columns: Whether long lines are broken where the terminal is narrow.
    """

    as_json: bool = False
    quiet: bool = False
    columns: bool = True


@dataclass(frozen=True)
class Line:
    """One line of output; `label` is the word in it that takes the colour `style`."""

    text: str
    label: str = ""
    style: str = ""


def print_lines(
    lines: Iterable[Line], stream: TextIO | None = None, *, columns: bool = True
) -> None:
    """Print to stdout, or another stream, in colour where that is a terminal that wants it.

    Args:
        lines: The lines.
        stream: The other stream.
        columns: Whether lines that are too long for the terminal are broken between words.
    """
    stream = sys.stdout if stream is None else stream
    width = stream_width(stream) if columns else None
    if not _wants_colour(stream):
        for line in lines:
            stream.write("".join(part + "\n" for part in fold(printable(line.text), width)))
        stream.flush()
        return
    # Imported only here: pipes and scripts do not wait for it.
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False, soft_wrap=True)
    for line in lines:
        text = Text("\n".join(fold(printable(line.text), width)))
        start = text.plain.find(line.label)
        if line.label and start >= 0:
            text.stylize(line.style, start, start + len(line.label))
        console.print(text)


def print_document(
    command: str | None,
    status: str,
    exit_code: int,
    *,
    report: dict[str, Any] | None = None,
    error: dict[str, str | None] | None = None,
) -> None:
    """Print the one JSON document of a run to stdout.

    Args:
        command: The command, None where the command line did not name one.
        status: The verdict; for a failure, its status in `failures`, "interrupted" or "internal".
        exit_code: What the process will exit with.
        report: What the command found.
        error: "message" and "hint" where the command could not do its work.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "fastckpt": version(),
        "command": command,
        "status": status,
        "exit_code": exit_code,
        "ok": exit_code == 0,
        "report": report,
        "error": error,
    }
    _write(json.dumps(document, indent=2) + "\n")


def print_report(
    command: str,
    report: _Report,
    *,
    lines: Callable[[_Report], Iterable[Line]],
    document: Callable[[_Report], dict[str, Any]],
    messages: Callable[[_Report], Iterable[tuple[str, str]]],
    output: Output,
    exit_code: int | None = None,
) -> int:
    """Print what a command found, as text or as JSON, and its messages; return the exit code.

    Args:
        command: The command.
        report: What it found.
        lines: Makes the text.
        document: Makes the JSON values.
        messages: Makes (kind, text) of what belongs on stderr.
        output: The form.
        exit_code: What the process will exit with, where an option decides it; else as the report says.
    """
    code = report.exit_code if exit_code is None else exit_code
    if output.as_json:
        print_document(command, str(report.status), code, report=document(report))
    elif not output.quiet:
        print_lines(lines(report), columns=output.columns)
    elif code != 0 and report.status != "different":
        # Somebody who hears nothing else hears of this; a difference is what `diff` was asked for.
        print_message("error", next(iter(lines(report))).text)
    print_messages(messages(report), output)
    return code


def print_messages(messages: Iterable[tuple[str, str]], output: Output) -> None:
    """Print (kind, text) to stderr, as far as they are wanted."""
    for kind, text in messages:
        if kind in _LOUD or not output.quiet:
            print_message(kind, text)


def print_message(kind: str, text: str) -> None:
    """Print a message to stderr; `kind` is "error", "warning", "note" or "hint"."""
    parts = fold(f"{kind}: {printable(text)}", stream_width(sys.stderr))
    sys.stderr.write("".join(part + "\n" for part in parts))


def fail(command: str | None, failure: Failure, *, as_json: bool) -> int:
    """Say why there is no result, once on stderr and once in the document; return the exit code."""
    print_message("error", failure.message)
    if failure.hint:
        print_message("hint", failure.hint)
    if as_json:
        error = {"message": failure.message, "hint": failure.hint}
        try:
            print_document(command, failure.status, failure.exit_code, error=error)
        except OSError:
            # stdout is what failed; stderr has the message.
            return failure.exit_code
    return failure.exit_code


def version() -> str:
    """Version of fastckpt; it stands in Cargo.toml, and the native module has it from there."""
    from fastckpt import _native

    return _native.__version__


def printable(text: str) -> str:
    """Escape what is not printable: control characters, and bytes of a name that are not UTF-8.

    Text that was escaped stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def format_nbytes(nbytes: float) -> str:
    """Format a size in decimal units, as disks are measured."""
    if nbytes < 1000:
        return f"{nbytes:.0f} B"
    for unit in ("kB", "MB", "GB"):
        nbytes /= 1000
        # 999.95 would be rounded to 1000.0.
        if nbytes < 999.95:
            return f"{nbytes:.1f} {unit}"
    return f"{nbytes / 1000:.1f} TB"


def plural(count: int, noun: str) -> str:
    """Format a count and its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _wants_colour(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class _Deletable(Protocol):
    @property
    def path(self) -> str: ...
    @property
    def error(self) -> str | None: ...


def kept_notes(
    files: Iterable[_Deletable], errors: Iterable[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of why files were not deleted if that is not an error, each reason once."""
    reported = {words for _, words in errors}
    first: dict[str, str] = {}
    for file in files:
        if file.error is not None and file.error not in reported:
            first.setdefault(file.error, file.path)
    for words, path in first.items():
        yield "note", f"{path}: {words}"
