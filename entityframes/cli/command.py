"""What all commands have in common: help with examples that is readable on narrow terminals, and -v and -q."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import click

from entityframes.cli import output

#: Minimum columns for descriptions beside the options; with less they are below them.
_BESIDE = 42
#: Minimum and maximum columns of the help.
_WIDTHS = (36, 100)


def _columns() -> int:
    """The width of the terminal, as `shutil` finds it, whose import takes as long as the rest of a help."""
    try:
        return int(os.environ["COLUMNS"]) or 80
    except (KeyError, ValueError):
        pass
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):
        return 80


class _Formatter(click.HelpFormatter):
    """Formats help for the width of the terminal, also if that is less than click's minimum."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(width=max(_WIDTHS[0], min(_columns(), _WIDTHS[1]) - 2))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        rows = list(rows)
        terms = min(col_max, max(len(term) for term, _ in rows)) + self.current_indent + col_spacing
        if self.width - terms >= _BESIDE:
            super().write_dl(rows, col_max, col_spacing)
            return
        for term, text in rows:
            self.write(f"{'':>{self.current_indent}}{term}\n")
            with self.indentation():
                self.write_text(text)


class _Context(click.Context):
    formatter_class = _Formatter


def paths(kind: str) -> Any:
    """For `shell_complete`: the shell completes a path, of the kind "file" or "dir"."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type=kind)]

    return complete


class Command(click.Command):
    """A command with examples in its help, and with -v and -q.

    Args:
        sections: titles in the list of options, with the names of their parameters; all others are at its end.
        examples: shell commands with comments, one per line; they run as they are on an empty folder with the files
            that the tests create (`tests/test_help.py`).
    """

    context_class = _Context

    def __init__(
        self, *args: Any, sections: Mapping[str, Sequence[str]] | None = None, examples: str = "", **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.sections = sections or {}
        self.examples = examples.strip("\n")
        self.params += _verbosity()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options by section."""
        titles = {name: title for title, names in self.sections.items() for name in names}
        for title in (*self.sections, "Options"):
            params = (param for param in self.get_params(ctx) if titles.get(str(param.name), "Options") == title)
            with formatter.section(title):
                formatter.write_dl(filter(None, (param.get_help_record(ctx) for param in params)))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, at the end: on a terminal the end is what one sees."""
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.splitlines():
                    for part in _continued(line, formatter.width - formatter.current_indent):
                        formatter.write(f"{'':>{formatter.current_indent}}{part}".rstrip() + "\n")

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; with -q without progress bars."""
        from entityframes.cli.log import printed

        output.level.command = ctx.command_path
        if output.level.quiet and ctx.params.get("progress", True) is None:
            ctx.params["progress"] = False
        if "url" in ctx.params:
            _load_polars()
        with printed():
            return super().invoke(ctx)


class Later(Mapping[str, click.Command]):
    """Commands whose modules are imported when they are used, so that the help of all of them is quick.

    Args:
        package: the package of the modules.
        commands: for each command, its function as ``module.name``, and the first sentence of its help.
    """

    def __init__(self, package: str, commands: Mapping[str, tuple[str, str]]) -> None:
        self._package, self._commands = package, commands

    def __getitem__(self, name: str) -> click.Command:
        module, _, function = self._commands[name][0].partition(".")
        found: click.Command = getattr(import_module(f"{self._package}.{module}"), function)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._commands)

    def __len__(self) -> int:
        return len(self._commands)

    def help(self) -> list[tuple[str, str]]:
        """The names and what the commands do."""
        return [(name, text) for name, (_, text) in self._commands.items()]


class Group(Command, click.Group):
    """The group of all commands."""

    commands: Later  # type: ignore[assignment]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was given."""
        return click.Group.invoke(self, ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of their definition, which is that of their use."""
        return list(self.commands)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """The commands with their whole sentences, whose modules are not imported for that, or the options."""
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=text) for name, text in self.commands.help() if name.startswith(incomplete)]
        return found or click.Command.shell_complete(self, ctx, incomplete)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, and the commands."""
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each command with a complete sentence."""
        with formatter.section("Commands"):
            formatter.write_dl(self.commands.help())


def _load_polars() -> None:
    """Import Polars, whose own handler of Ctrl-C would interrupt a background job that ignores it."""
    import polars  # noqa: F401

    from entityframes.interrupt import sigint_handler

    sigint_handler()


def _verbosity() -> list[click.Parameter]:
    def louder(context: click.Context, parameter: click.Parameter, times: int) -> None:
        output.level.verbose += times

    def quieter(context: click.Context, parameter: click.Parameter, quiet: bool) -> None:
        output.level.quiet |= quiet

    return [
        click.Option(
            ["-v", "--verbose"], count=True, expose_value=False, callback=louder,
            help="Print the log; -vv also prints tracebacks of errors.",
        ),
        click.Option(
            ["-q", "--quiet"], is_flag=True, expose_value=False, callback=quieter,
            help="Print nothing but errors and the data asked for.",
        ),
    ]  # fmt: skip


def _continued(line: str, width: int) -> Iterator[str]:
    """A line of a shell script as lines of at most this width where words allow it; comments are wrapped."""
    begin, end = ("# ", "") if line.startswith("#") else ("  ", " \\")
    shown = ""
    for word in _words(line):
        if shown.strip() and len(f"{shown} {word}{end}") > width:
            yield shown + end
            shown = begin + word
        else:
            shown = f"{shown} {word}".lstrip() if not shown else f"{shown} {word}"
    yield shown


def _words(line: str) -> list[str]:
    """The words of a shell command; an option and its value, and a quoted text, are one word."""
    if line.startswith("#"):
        return line.split(" ")
    return re.findall(r"""-[\w-]+ (?:'[^']*'|"[^"]*"|[^-|<>\s]\S*)|'[^']*'|"[^"]*"|\S+""", line)
