"""What the commands print: lines for people, and data for scripts."""

from __future__ import annotations

import sys

import click

from entityframes.visible import visible, visible_json


class Level:
    """How much is printed, by -v and -q, and the command that prints."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin a command."""
        self.verbose, self.quiet, self.command = 0, False, "entityframes"


#: That of the command that runs.
level = Level()


def echo(text: str, *, err: bool = False) -> None:
    """Print lines for people, with control characters escaped, so that data cannot affect the terminal.

    Data that may contain line breaks must be passed through `visible` before it is embedded in the text.
    """
    click.echo(visible(text, keep="\n"), err=err)


def tell(text: str, *, err: bool = False) -> None:
    """Print lines that are neither errors nor data: not with -q."""
    if not level.quiet:
        echo(text, err=err)


def note(text: str) -> None:
    """Print a note on standard error; not with -q."""
    tell(f"note: {text}", err=True)


def print_exactly(text: str, *, json: bool = False) -> None:
    """Print output for scripts: unchanged, except that control characters are escaped on a terminal."""
    if sys.stdout.isatty():
        text = visible_json(text) if json else visible(text, keep="\n\t")
    click.echo(text, nl=not text.endswith("\n"))
