"""The command line as a whole: its commands, its options, and what happens when it fails."""

from __future__ import annotations

import os
import sys
from typing import Annotated, cast

import typer

from fastckpt.cli import (
    average,
    copy,
    diff,
    exit_codes,
    export,
    gc,
    inspect,
    prune,
    repair,
    top,
    verify,
)
from fastckpt.cli.failures import Failure, judge
from fastckpt.cli.output import fail, version

# The base of every error that the command line itself causes. typer has a click of its own in
# newer versions and the real one in older: this name is public in both.
_UsageError = cast("type[Exception]", typer.BadParameter.__mro__[1])

app = typer.Typer(
    name="fastckpt",
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    # Joins the lines of a docstring's paragraph.
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"fastckpt {version()}")
        raise typer.Exit


@app.callback()
def fastckpt(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Fast, verified checkpoints for PyTorch.

    Works on the .pt files of torch.save, whichever program wrote them. A step is written DIR@STEP, such as
    runs/d12@1200.
    """


app.command(name="verify", epilog=verify.EPILOG)(verify.verify)
app.command(name="inspect", epilog=inspect.EPILOG)(inspect.inspect)
app.command(name="diff", epilog=diff.EPILOG)(diff.diff)
app.command(name="top", epilog=top.EPILOG)(top.top)
app.command(name="average", epilog=average.EPILOG)(average.average)
app.command(name="export", epilog=export.EPILOG)(export.export)
app.command(name="copy", epilog=copy.EPILOG)(copy.copy)
app.command(name="prune", epilog=prune.EPILOG)(prune.prune)
app.command(name="gc", epilog=gc.EPILOG)(gc.gc)
app.command(name="repair", epilog=repair.EPILOG)(repair.repair)


def run(args: list[str]) -> int:
    """Run one command line; return the exit code of the process."""
    as_json = "--json" in args[: args.index("--")] if "--" in args else "--json" in args
    # Whoever types only the name wants to know what there is.
    args = args or ["--help"]
    command = _named_command(args)
    _escape_what_cannot_be_encoded()
    try:
        # Commands return their work, which is done here: typer has answers of its own to Ctrl-C
        # and to a closed pipe, the latter with the exit code of damage.
        task = app(args=args, prog_name="fastckpt", standalone_mode=False)
        # After --help and --version nothing is left to do.
        return task() if callable(task) else 0
    except _UsageError as error:
        message, hint = _usage_message(error), _usage_hint(command)
        failure = Failure("usage", exit_codes.USAGE, message, hint)
    except KeyboardInterrupt:
        failure = Failure("interrupted", exit_codes.INTERRUPTED, "interrupted")
    except BrokenPipeError:
        return _end_quietly()
    except Exception as error:  # what is not in the table is a bug: see exit_codes.INTERNAL
        judged = judge(error, command)
        if judged is None and os.environ.get("FASTCKPT_TRACEBACK") == "1":
            raise
        failure = _internal(error) if judged is None else judged
    return fail(command, failure, as_json=as_json)


def _internal(error: Exception) -> Failure:
    message = f"{type(error).__name__}: {error}"
    hint = "this is a bug in fastckpt; FASTCKPT_TRACEBACK=1 shows where it happened"
    return Failure("internal", exit_codes.INTERNAL, message, hint)


def _escape_what_cannot_be_encoded() -> None:
    # A tensor name with an accent must not end the command where the locale is plain C.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _usage_message(error: Exception) -> str:
    format_message = getattr(error, "format_message", None)
    message = str(format_message()) if format_message is not None else str(error)
    # What we say ourselves needs no introduction.
    return message.removeprefix("Invalid value: ")


def _named_command(args: list[str]) -> str | None:
    """Return the command of a command line, if it names one."""
    first = next((arg for arg in args if not arg.startswith("-")), None)
    return first if first in {info.name for info in app.registered_commands} else None


def _usage_hint(command: str | None) -> str:
    return f"try `fastckpt {command} --help`" if command else "try `fastckpt --help`"


def _end_quietly() -> int:
    # The reader, `head` say, has what it wanted. Python would complain again while it exits,
    # unless stdout leads somewhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exit_codes.CLOSED_PIPE
