"""The command line: thin, one function a command. Exit status 0, 1 (some rows failed) or 2 (could not run)."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from entityframes.cli import directory, embedding, entities, imports
from entityframes.cli.common import say
from entityframes.visible import visible


class _UnreadError(Exception):
    """Whoever reads what is printed has seen enough."""


class _Commands(click.Group):
    """Commands of which click does not hear that nobody reads what they print: it would end them with status 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BrokenPipeError as error:
            raise _UnreadError from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="entityframes")
def cli() -> None:
    """Bulk work on entities: import, look up, export and delete them by the thousands.

    \b
    entityframes import people.csv --type person --id email
    entityframes get --type person ada@example.org
    entityframes export person --out people.parquet
    """


def main() -> None:
    """Run the command line and leave with its exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() in ("utf-8", "utf8"):
        # A name of a file may hold other bytes, and printing it must not fail after the work is done.
        sys.stdout.reconfigure(errors="backslashreplace")
    with _told():
        sys.exit(cli(prog_name="entityframes", standalone_mode=False) or 0)


@contextmanager
def _told() -> Iterator[None]:
    """Every expected error is one line on standard error and exit status 2, never a traceback."""
    import polars as pl

    from entityframes.errors import EntityFramesError
    from entityframes.interrupt import sigint_handler

    sigint_handler()
    try:
        yield
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        say(f"entityframes: {visible(' '.join(error.format_message().split()))}{hint}", err=True)
        sys.exit(2)
    except (_UnreadError, BrokenPipeError):
        sys.stderr.close()
        sys.exit(0)
    except (EntityFramesError, pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        # Polars goes on to show its plan.
        said = str(error).split("Resolved plan")[0]
        say(f"entityframes: {visible(' '.join(said.split())) or type(error).__name__}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("entityframes: interrupted", err=True)
        sys.exit(130)


for _command in (
    imports.import_command,
    entities.get,
    entities.exists,
    entities.delete,
    entities.export,
    directory.sync,
    embedding.embed,
    embedding.search,
    embedding.jobs,
    embedding.spaces,
    entities.stats,
    entities.verify,
    entities.bench,
):
    cli.add_command(_command)
