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
    """Checkpoints of PyTorch that hold what was written.

    Works on the .pt files of torch.save, whoever wrote them.
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
    command = _named_command(args)
    _escape_what_cannot_be_encoded()
    try:
        # Commands return their work, which is done here: typer has answers of its own to Ctrl-C
        # and to a closed pipe, the latter with the exit code of damage.
        task = app(args=args, prog_name="fastckpt", standalone_mode=False)
        # After --help and --version nothing is left to do.
        return task() if callable(task) else 0
    except _UsageError as error:
        hint = _usage_hint(command)
        return fail(
            command, "usage", exit_codes.USAGE, _usage_message(error), hint, as_json=as_json
        )
    except KeyboardInterrupt:
        return fail(
            command, "interrupted", exit_codes.INTERRUPTED, "interrupted", None, as_json=as_json
        )
    except BrokenPipeError:
        return _end_quietly()
    except OSError as error:
        return fail(command, "io_error", exit_codes.IO_ERROR, str(error), None, as_json=as_json)
    except Exception as error:  # the last resort: see exit_codes.INTERNAL
        message = f"{type(error).__name__}: {error}"
        hint = "this is a bug of fastckpt; FASTCKPT_TRACEBACK=1 shows where it happened"
        if os.environ.get("FASTCKPT_TRACEBACK") == "1":
            raise
        return fail(command, "internal", exit_codes.INTERNAL, message, hint, as_json=as_json)


def _escape_what_cannot_be_encoded() -> None:
    # A tensor name with an accent must not end the command where the locale is plain C.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _usage_message(error: Exception) -> str:
    format_message = getattr(error, "format_message", None)
    return str(format_message()) if format_message is not None else str(error)


def _named_command(args: list[str]) -> str | None:
    """Return the command of a command line, if it names one."""
    first = next((arg for arg in args if not arg.startswith("-")), None)
    return first if first in {info.name for info in app.registered_commands} else None


def _usage_hint(command: str | None) -> str:
    return f"try `fastckpt {command} --help`" if command else "try `fastckpt --help`"


def _end_quietly() -> int:
    # The reader, `head` say, has what it wanted. Python would complain again while it exits,
    # unless stdout leads somewhere. 128 + SIGPIPE, as a shell reports it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
