"""The command line: one thin function per command. Exit status 0, 1 (some rows failed) or 2 (could not run)."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from entityframes.cli import directory, embedding, entities, imports, tables
from entityframes.cli.common import echo
from entityframes.visible import visible


class _OutputClosedError(Exception):
    """The reader of standard output has closed the pipe."""


class _Commands(click.Group):
    """A group that hides BrokenPipeError from click, which would exit with status 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BrokenPipeError as error:
            raise _OutputClosedError from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="entityframes")
def cli() -> None:
    """Import, look up, export and delete entities, or rows of tables, in bulk.

    \b
    entityframes import people.csv --type person --id email
    entityframes get --type person ada@example.org
    entityframes export person --out people.parquet
    entityframes import customers.csv --table sales.customers
    """


def main() -> None:
    """Run the command line and exit with its status."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() in ("utf-8", "utf8"):
        # A file name may contain other bytes, and printing it must not fail after the work is done.
        sys.stdout.reconfigure(errors="backslashreplace")
    with _report_errors():
        sys.exit(cli(prog_name="entityframes", standalone_mode=False) or 0)


@contextmanager
def _report_errors() -> Iterator[None]:
    """Print every expected error as one line on standard error and exit with status 2, without a traceback."""
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
        echo(f"entityframes: {visible(' '.join(error.format_message().split()))}{hint}", err=True)
        sys.exit(2)
    except (_OutputClosedError, BrokenPipeError):
        sys.stderr.close()
        sys.exit(0)
    except (EntityFramesError, pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        # Polars appends its query plan.
        message = str(error).split("Resolved plan")[0]
        echo(f"entityframes: {visible(' '.join(message.split())) or type(error).__name__}", err=True)
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
    tables.tables,
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
