"""The blocks of README and docs: how they are found, run, and compared with what they say.

    python -m tests.documented_pages    # write what the commands print now into the pages

A page is run from top to bottom, in a directory of its own and with one namespace for its Python. What
a block needs and does not show is named above it, in a comment that the rendered page hides:

    <!-- setup: NAME -->          NAME of `documented_files.SETUPS` fills a new directory
    <!-- not run: WHY -->         the next block is compiled, or nothing at all
    <!-- output of: COMMAND -->   the next block, JSON, has the shape of what COMMAND prints
    <!-- message of: PYTHON -->    the next block, text, is the error or the warning of this expression
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer
from sybil.typing import Evaluator
from tests.documented_files import SETUPS

from fastckpt.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
# Wider than the lines of the pages: where a line is wrapped would depend on its figures.
COLUMNS = "160"
COMMAND_TIMEOUT_SECS = 60.0

# What differs from machine to machine and from run to run, or with the size of what is shown: numbers
# with a unit, with a point or with thousands, checksums. Steps and counts are compared as they stand.
FIGURE = re.compile(
    r"0x[0-9a-f]+|-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?: (?:[kMGT]?B|s|ms|min)\b)", re.ASCII
)
NUMBER = re.compile(r"\b\d+-\d+\b|-?(?:\d+\.\d+(?:e[+-]?\d+)?|\d{1,3}(?:,\d{3})+|\d{5,})", re.ASCII)
# What took no time has no rate.
RATE = re.compile(r",? *\d+(?:\.\d+)? [kMGT]?B/s", re.ASCII)
# How figures are set depends on how wide they are.
SPACES = re.compile(r"[ \t]+")
# Stands for any text within a line, and by itself for any number of lines.
ELLIPSIS = "..."


def pages() -> list[Path]:
    """Return the pages whose blocks are run."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples/README.md"]


class Page:
    """One page, run block by block; `directory` is where it is at the moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.home: Path | None = None
        self.directory: Path | None = None
        # What the commands printed where it was not what the page says: the block, old and new.
        self.changes: list[tuple[Example, str, str]] = []
        document = Sybil(
            [
                PythonCodeBlockParser(),
                CodeBlockParser("console", self._run_console),
                CodeBlockParser("sh", check_usage),
                CodeBlockParser("json", self._compare_json),
                comments("setup", self._set_up),
                comments("not run", self._leave_out),
                comments("output of", self._keep_output),
                CodeBlockParser("text", self._compare_message),
                comments("message of", self._keep_message),
            ]
        ).parse(path)
        document.namespace["__name__"] = "__main__"
        self.examples: list[Example] = list(document.examples())
        self._next = 0
        self._output: str | None = None
        self._message: str | None = None

    def run_to(self, number: int, home: Path) -> None:
        """Run what was not run yet of the blocks up to this one; new directories are made in `home`."""
        self.home = home
        while self._next <= number:
            example = self.examples[self._next]
            self._next += 1
            os.chdir(self.directory or self._new_directory())
            example.evaluate()

    def _new_directory(self) -> Path:
        self.directory = Path(tempfile.mkdtemp(dir=self.home, prefix=f"{self.path.stem}-"))
        return self.directory

    def _set_up(self, example: Example) -> None:
        os.chdir(self._new_directory())
        torch.manual_seed(0)
        SETUPS[example.parsed](example.namespace)

    def _leave_out(self, example: Example) -> None:
        """Take the next block: if it is Python, it has to be Python."""
        document = example.document

        def leave_out(left_out: Example) -> None:
            document.pop_evaluator(leave_out)
            if left_out.region.lexemes.get("arguments") == "python":
                compile(left_out.parsed, left_out.path, "exec")

        if len(example.parsed.split()) < 3:
            raise AssertionError(f"{self.path}:{example.line}: say why the block is not run")
        document.push_evaluator(leave_out)

    def _keep_output(self, example: Example) -> None:
        self._output = output_of(example.parsed)

    def _run_console(self, example: Example) -> None:
        for command, said in commands_in(example.parsed):
            found = output_of(command)
            if not alike(said, found):
                new = f"$ {command}\n{merged(said, found)}"
                self.changes.append((example, f"$ {command}\n{said}", new))
                raise AssertionError(f"$ {command}\n{difference(said, found)}")

    def _keep_message(self, example: Example) -> None:
        self._message = message_of(example.parsed, example.namespace)

    def _compare_message(self, example: Example) -> None:
        found, self._message = self._message, None
        if found is None:  # text of another kind
            return
        said = " ".join(example.parsed.split())
        if not alike(f"{said}\n", f"{found}\n"):
            lines = textwrap.wrap(found, 110, break_long_words=False, break_on_hyphens=False)
            self.changes.append((example, example.parsed, "".join(f"{line}\n" for line in lines)))
            raise AssertionError(f"in the page: {said}\nraised: {found}")

    def _compare_json(self, example: Example) -> None:
        assert self._output is not None, "no comment says which command prints this"
        printed, self._output = json.loads(self._output), None
        differing = list(differing_shapes(json.loads(example.parsed), printed))
        assert not differing, "\n".join(differing)


def comments(directive: str, evaluator: Evaluator) -> Any:
    """Return a parser of the comments that begin with a directive; what follows it is `parsed`."""
    lexer = DirectiveInHTMLCommentLexer(directive)

    def parse(document: Document) -> Iterator[Region]:
        for region in lexer(document):
            yield Region(region.start, region.end, region.lexemes["arguments"].strip(), evaluator)

    return parse


# Commands and what they print.


def commands_in(block: str) -> Iterator[tuple[str, str]]:
    """Yield the commands of a console block, each with the output below it."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, said = part.partition("\n")
        while command.endswith("\\"):
            more, _, said = said.partition("\n")
            command += f"\n{more}"
        yield command, said.rstrip("\n") + "\n" if said.strip() else ""


def output_of(command: str) -> str:
    """Run a command line as a user would, in the present directory; return all that it prints."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": COLUMNS,
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-c", command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMMAND_TIMEOUT_SECS,
        check=False,
    )
    lines = [line.rstrip() for line in done.stdout.rstrip().splitlines()]
    return "".join(f"{line}\n" for line in lines)


def message_of(expression: str, namespace: dict[str, Any]) -> str:
    """Evaluate an expression that fails or warns; return what a traceback would end with."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            eval(expression, namespace)
        except Exception as error:
            return " ".join(f"{type(error).__name__}: {error}".split())
    assert caught, f"{expression} neither fails nor warns"
    return " ".join(f"{caught[0].category.__name__}: {caught[0].message}".split())


def comparable(text: str) -> list[str]:
    """Return the lines of an output without its figures."""
    return [
        SPACES.sub(" ", NUMBER.sub("#", FIGURE.sub("#", RATE.sub("", line)))).strip()
        for line in text.splitlines()
    ]


def alike(said: str, found: str) -> bool:
    """Whether an output is what the page says, except for figures."""
    patterns = (
        "(?:.*\n)*?" if line == ELLIPSIS else re.escape(line).replace(r"\.\.\.", ".*") + "\n"
        for line in comparable(said)
    )
    return (
        re.fullmatch("".join(patterns), "".join(f"{line}\n" for line in comparable(found)))
        is not None
    )


def merged(said: str, found: str) -> str:
    """Return what was printed, with the lines of the page where only figures differ."""
    old, new = said.splitlines(keepends=True), found.splitlines(keepends=True)
    lines = []
    matcher = difflib.SequenceMatcher(a=comparable(said), b=comparable(found), autojunk=False)
    for operation, first, end, new_first, new_end in matcher.get_opcodes():
        lines += old[first:end] if operation == "equal" else new[new_first:new_end]
    return "".join(lines)


def difference(said: str, found: str) -> str:
    """Return a diff of what the page says and what was printed."""
    return "".join(
        difflib.unified_diff(
            said.splitlines(keepends=True), found.splitlines(keepends=True), "page", "printed"
        )
    )


def differing_shapes(said: Any, found: Any, place: str = "$") -> Iterator[str]:
    """Yield where JSON of a page has other keys or types than what was printed.

    "..." in a list stands for more of the same, and as a key or a value for anything.
    """
    if said == ELLIPSIS or said is None or found is None:
        return
    if isinstance(said, dict) and isinstance(found, dict):
        missing = said.keys() - found.keys() - {ELLIPSIS}
        if missing or (ELLIPSIS not in said and said.keys() != found.keys()):
            yield f"{place}: {sorted(said)} in the page, {sorted(found)} printed"
        for key in said.keys() & found.keys():
            yield from differing_shapes(said[key], found[key], f"{place}.{key}")
    elif isinstance(said, list) and isinstance(found, list):
        for number, (one, other) in enumerate(zip(said, found, strict=False)):
            yield from differing_shapes(one, other, f"{place}[{number}]")
    else:
        numbers = isinstance(said, (int, float)) and isinstance(found, (int, float))
        if type(said) is not type(found) and not (numbers and type(said) is not bool):
            yield f"{place}: {said!r} in the page, {found!r} printed"


# Lines that show how a command is called.


def check_usage(example: Example) -> None:
    """Check that the lines of a block name commands, options, targets and files that there are."""
    for line in example.parsed.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["fastckpt"]:
            parse_command_line(words[1:])
        elif words[:1] == ["make"] and len(words) > 1:
            target = re.compile(rf"^{re.escape(words[1])}:", re.MULTILINE)
            assert target.search((ROOT / "Makefile").read_text()), f"no target for `{line}`"
        elif words[:1] == ["python"] and words[1].endswith(".py"):
            assert (ROOT / words[1]).exists(), f"no file for `{line}`"


def parse_command_line(words: list[str]) -> None:
    """Let the command line parse its arguments. A command returns its work, which is not done."""
    try:
        app(args=words, prog_name="fastckpt", standalone_mode=False)
    except Exception as error:
        raise AssertionError(f"`fastckpt {shlex.join(words)}`: {error}") from error


def write_outputs() -> None:
    """Run all pages and write into them what their commands print, where that has changed."""
    for path in pages():
        text = path.read_text()
        with tempfile.TemporaryDirectory() as home:
            page = Page(path)
            for number in range(len(page.examples)):
                try:
                    page.run_to(number, Path(home))
                except Exception as error:
                    print(f"{path.name}:{page.examples[number].line}: {error}")
            os.chdir(ROOT)
        for block, old, new in reversed(page.changes):
            written = text[block.start : block.end].replace(old, new, 1)
            text = text[: block.start] + written + text[block.end :]
        if text != path.read_text():
            path.write_text(text)


if __name__ == "__main__":
    write_outputs()
