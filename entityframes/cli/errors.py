"""Errors of the command line: a line with what happened, a line with what to do next, and an exit status."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from entityframes.cli.output import echo, level
from entityframes.errors import EntityFramesError
from entityframes.visible import visible


class OutputClosedError(Exception):
    """The reader of standard output has closed the pipe."""


class CommandError(click.ClickException):
    """The command cannot do what was asked for.

    Args:
        happened: what happened.
        advice: what to do next.
    """

    def __init__(self, happened: str, *, advice: str | None = None) -> None:
        super().__init__(happened)
        self.advice = advice


class UsageError(click.UsageError):
    """The options of a command do not fit together; with what to do next, as for `CommandError`."""

    def __init__(self, happened: str, *, advice: str | None = None) -> None:
        super().__init__(happened)
        self.advice = advice


#: What to do at the command line, where the advice of an error is in words of Python.
_HERE = (
    (r"there is no (?:store|database) at ", "check --store, or import something first: entityframes import --help"),
    (r"nothing is embedded yet", "run entityframes embed"),
    (r"no entities of type ", "list the types with: entityframes stats"),
    (r"no space named ", "list the spaces with: entityframes spaces"),
    (r"no embedder named ", "give one of these with --embedder"),
    (r"password authentication failed|no password supplied", "check the user and the password of --store"),
    (r"in memory cannot be opened read-only", "name a file or a server with --store"),
    (r"the database computes .* itself", "leave them out with --only"),
    (
        r"for which there is no SQL type|but the column of the table is ",
        "leave it out with --only, or use a file with other dtypes",
    ),
    (
        r"there is no table .* in the database",
        "check the name and the schema (entityframes tables lists them), or create it with --create",
    ),
    (r"the table .* has no column ", "rename them in the file, leave them out with --only, or add them to the table"),
)
#: What to do about errors of Polars and of the operating system.
_OTHERS = (
    (r"unable to find column ", "use one of these columns; a name with other characters is quoted"),
    (r"No such file|no such file", "check the path"),
    (r"Permission denied", "check the permissions of the file and its folder"),
    (r"No space left", "make room, and run it again: what is stored is skipped"),
)


@contextmanager
def reported() -> Iterator[None]:
    """Print any error without a traceback, and exit with its status: 2 if the command could not run, 130 for Ctrl-C."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except (OutputClosedError, BrokenPipeError):
        sys.stderr.close()
        sys.exit(0)
    except (KeyboardInterrupt, click.Abort):
        echo("entityframes: interrupted", err=True)
        sys.exit(130)
    except BaseException as error:
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        if level.verbose > 1:
            import traceback

            echo("".join(traceback.format_exception(error)).rstrip(), err=True)
        happened, following = _lines(error)
        echo(f"entityframes: {happened}", err=True)
        echo(f"  {following}", err=True)
        sys.exit(2)


def _lines(error: BaseException) -> tuple[str, str]:
    """What happened, and what to do next."""
    if isinstance(error, click.ClickException):
        happened, advice, context = error.format_message(), getattr(error, "advice", None), getattr(error, "ctx", None)
        help = context and f"see {context.command_path} --help"
        return _line(happened), "; ".join(filter(None, [_line(_advice(happened, advice)), help]))
    if isinstance(error, EntityFramesError):
        happened, advice = error.happened, error.advice
    elif isinstance(error, OSError | ValueError) or _of_polars(error):
        # Polars appends its query plan.
        happened, advice = str(error).split("Resolved plan")[0], None
    else:
        happened = f"a defect: {type(error).__name__}: {error}"
        return _line(happened), "run it again with -vv to see where it happened, and report that"
    happened = happened or type(error).__name__
    return _line(happened), _line(_advice(happened, advice) or f"see {level.command} --help")


def _advice(happened: str, given: str | None) -> str | None:
    """What to do at the command line about what happened; `given` is the advice of the error."""
    here, others = (
        next((advice for pattern, advice in known if re.search(pattern, happened)), None) for known in (_HERE, _OTHERS)
    )
    return here or (given and given.replace("key=[...]", "--key")) or others


def _line(text: str | None) -> str:
    """Text on one line."""
    return visible(" ".join((text or "").split()))


def _is_panic(error: BaseException) -> bool:
    """Whether Polars panicked, which is no Exception."""
    return type(error).__name__ == "PanicException"


def _of_polars(error: BaseException) -> bool:
    return _is_panic(error) or any(kind.__module__.startswith("polars") for kind in type(error).__mro__)
