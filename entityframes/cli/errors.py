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


#: The end of a message that says what to do next begins with one of these words.
_VERBS = (
    "add|cast|check|choose|close|convert|correct|create|drop|export|get|give|import|install|leave|make|name|open|pass|put"
    "|it must|rename|restore|run|save|see|set|split|start|use|wait|write"
)
_NEXT = re.compile(rf"(?:[:;,.] )(?=(?:{_VERBS})\b)", re.IGNORECASE)

#: What to do here, for messages that say it in words of Python.
_IN_PYTHON = ((r"call store\.embed\(embedder\) first", "run entityframes embed"),)
#: What to do, for messages that do not say it.
_ADVICE = (
    (r"there is no (?:store|database) at ", "check --store, or import something first: entityframes import --help"),
    (r"no entities of type ", "list the types with: entityframes stats"),
    (r"there is no table ", "list the tables with: entityframes tables"),
    (r"no space named ", "list the spaces with: entityframes spaces"),
    (
        r"Connection refused|could not translate host name|timeout expired",
        "check the address, and that the server runs",
    ),
    (r"password authentication failed|no password supplied", "check the user and the password of --store"),
    (r"unable to find column ", "use one of these columns; a name with other characters is quoted"),
    (r"no embedder named ", "give one of these with --embedder"),
    (r"No such file|no such file", "check the path"),
    (r"Permission denied", "check the permissions of the file and its folder"),
    (r"No space left", "make room, and run it again: what is stored is skipped"),
    (r"in memory cannot be opened read-only", "name a file or a server with --store"),
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
        context = getattr(error, "ctx", None)
        happened, following = _split(error.format_message())
        return happened, "; ".join(filter(None, [following, context and f"see {context.command_path} --help"]))
    if isinstance(error, EntityFramesError | OSError | ValueError) or _of_polars(error):
        # Polars appends its query plan.
        happened, following = _split(str(error).split("Resolved plan")[0])
        return happened or type(error).__name__, following or f"see {level.command} --help"
    return (
        f"a defect: {visible(f'{type(error).__name__}: {error}')}",
        "run it again with -vv to see where it happened, and report that",
    )


def _split(message: str) -> tuple[str, str]:
    """A message on one line, and the part of it that says what to do next."""
    message = visible(" ".join(message.split()))
    for pattern, advice in _IN_PYTHON:
        message = re.sub(pattern, advice, message)
    happened, *following = _NEXT.split(message, maxsplit=1)
    if following:
        return happened, following[0]
    return message, next((advice for pattern, advice in _ADVICE if re.search(pattern, message)), "")


def _is_panic(error: BaseException) -> bool:
    """Whether Polars panicked, which is no Exception."""
    return type(error).__name__ == "PanicException"


def _of_polars(error: BaseException) -> bool:
    return _is_panic(error) or any(kind.__module__.startswith("polars") for kind in type(error).__mro__)
